# Tables over many experiments, from the small files that these leave behind. What they are told is in a file: of many
# variants it is more than a command line takes.


rule tabulate_sweep:
    input:
        lambda w: plan.table_inputs(w.name),
    output:
        tsv=f"{RESULTS}/tables/{{name}}/table.tsv",
        table=report(
            f"{RESULTS}/tables/{{name}}/table.md",
            category="Sweeps",
            labels={"sweep": "{name}", "what": "table"},
            caption="../report/table.rst",
        ),
        page=report(
            f"{RESULTS}/tables/{{name}}/table.html",
            category="Sweeps",
            labels={"sweep": "{name}", "what": "page"},
            caption="../report/table.rst",
        ),
    log:
        f"{RESULTS}/logs/tabulate_sweep/{{name}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/tabulate_sweep/{{name}}.tsv"
    localrule: True
    conda:
        "../../envs/train.yaml"
    envmodules:
        *MODULES["train"],
    threads: 1
    params:
        table=lambda w: plan.table_params(w.name),
        file=lambda w, resources: plan.table_file(w.name),
        results=lambda w: plan.results,
        code=plan.code("tabulate_sweep"),
    message:
        "Writing the table of {wildcards.name}"
    shell:
        f"python {SCRIPTS}/tabulate_sweep.py --table {{params.file:q}} --results {{params.results:q}}"
        " --output {output.tsv:q} 2> {log:q}"


# `snakemake results`: what is finished by now. It declares no input and no output, so that it runs nothing else, and is
# printed whenever it is asked for.
rule results:
    log:
        f"{RESULTS}/logs/tabulate_results.log",
    localrule: True
    conda:
        "../../envs/train.yaml"
    envmodules:
        *MODULES["train"],
    threads: 1
    params:
        file=lambda w: plan.results_file(),
        results=RESULTS,
        output=f"{RESULTS}/tables/all.tsv",
    message:
        "What the experiments have come to"
    shell:
        f"python {SCRIPTS}/tabulate_results.py --table {{params.file:q}} --results {{params.results:q}}"
        " --output {params.output:q} 2> >(tee {log:q} >&2)"
