# Downloads run where snakemake runs: compute nodes often have no network.


rule fetch_source:
    output:
        f"{RESULTS}/sources/{{name}}/manifest.json",
    log:
        f"{RESULTS}/logs/fetch_source/{{name}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/fetch_source/{{name}}.tsv"
    localrule: True
    conda:
        "../../envs/train.yaml"
    envmodules:
        *MODULES["train"],
    threads: 1
    params:
        config=lambda w: plan.source_params(w.name),
        files=lambda w: plan.source_files(w.name),
        code=plan.code("fetch_source"),
        store=lambda w, resources: plan.store(),
    message:
        "Fetching {wildcards.name}"
    shell:
        f"python {SCRIPTS}/fetch_source.py --config {{params.config:q}} --output {{output:q}} {{params.store}} 2> {{log:q}}"


rule prepare_source:
    input:
        f"{RESULTS}/sources/{{name}}/manifest.json",
    output:
        f"{RESULTS}/prepared/{{name}}/manifest.json",
    log:
        f"{RESULTS}/logs/prepare_source/{{name}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/prepare_source/{{name}}.tsv"
    localrule: True
    conda:
        "../../envs/train.yaml"
    envmodules:
        *MODULES["train"],
    threads: 1
    params:
        kind=lambda w: plan.config["sources"][w.name]["prepare"],
        code=plan.code("prepare_source"),
    message:
        "Preparing {wildcards.name}: pictures and annotations from the raw files"
    shell:
        f"python {SCRIPTS}/prepare_source.py --kind {{params.kind:q}} --source {{input:q}} --output {{output:q}} 2> {{log:q}}"
