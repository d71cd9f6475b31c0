rule compare_checkpoints:
    input:
        lambda w: plan.comparison_inputs(w.name),
    output:
        json=f"{RESULTS}/report/{{name}}/comparison.json",
        csv=report(
            f"{RESULTS}/report/{{name}}/comparison.csv",
            category="Before and after",
            labels={"experiment": "{name}", "what": "numbers"},
            caption="../report/numbers.rst",
        ),
        table=report(
            f"{RESULTS}/report/{{name}}/comparison.md",
            category="Before and after",
            labels={"experiment": "{name}", "what": "table"},
            caption="../report/comparison.rst",
        ),
    log:
        f"{RESULTS}/logs/compare_checkpoints/{{name}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/compare_checkpoints/{{name}}.tsv"
    conda:
        "../../envs/train.yaml"
    envmodules:
        *MODULES["train"],
    threads: 1
    resources:
        mem_mb=lambda w, attempt: growing(4000, attempt),
        runtime=lambda w, attempt: growing(30, attempt),
    params:
        experiment=lambda w: plan.experiment_params(w.name),
        evaluations=lambda w: plan.comparison_params(w.name),
        code=plan.code("compare_checkpoints"),
    message:
        "Comparing before and after of {wildcards.name}"
    shell:
        f"python {SCRIPTS}/compare_checkpoints.py --experiment {{params.experiment:q}}"
        " --evaluations {params.evaluations:q} --output {output.json:q} 2> {log:q}"


rule render_report:
    input:
        lambda w: plan.report_inputs(w.name),
        comparison=f"{RESULTS}/report/{{name}}/comparison.json",
    output:
        report(
            f"{RESULTS}/report/{{name}}/index.html",
            category="Before and after",
            labels={"experiment": "{name}", "what": "page"},
            caption="../report/page.rst",
        ),
    log:
        f"{RESULTS}/logs/render_report/{{name}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/render_report/{{name}}.tsv"
    conda:
        "../../envs/train.yaml"
    envmodules:
        *MODULES["train"],
    threads: 1
    resources:
        mem_mb=lambda w, attempt: growing(4000, attempt),
        runtime=lambda w, attempt: growing(30, attempt),
    params:
        experiment=lambda w: plan.experiment_params(w.name),
        evaluations=lambda w: plan.comparison_params(w.name),
        # taking `input` keeps this out of the rerun triggers: the name of a configuration file is no result
        sources=lambda w, input: plan.report_params(w.name, CONFIG_FILES),
        code=plan.code("render_report"),
    message:
        "Writing the report of {wildcards.name}"
    shell:
        f"python {SCRIPTS}/render_report.py --experiment {{params.experiment:q}}"
        " --evaluations {params.evaluations:q} --sources {params.sources:q}"
        " --comparison {input.comparison:q} --output {output:q} 2> {log:q}"
