rule validate_dataset:
    input:
        source=lambda w: plan.dataset_input(w.name),
        generated=lambda w: plan.generated(w.name),
    output:
        manifest=f"{RESULTS}/data/{{name}}/manifest.json",
        report=report(
            f"{RESULTS}/data/{{name}}/report.md",
            category="Data",
            labels={"data set": "{name}"},
            caption="../report/data.rst",
        ),
    log:
        f"{RESULTS}/logs/validate_dataset/{{name}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/validate_dataset/{{name}}.tsv"
    conda:
        "../../envs/train.yaml"
    envmodules:
        *MODULES["train"],
    threads: 2
    resources:
        mem_mb=lambda w, attempt: growing(4000, attempt),
        runtime=lambda w, attempt: growing(120, attempt),
    params:
        config=lambda w: plan.dataset_params(w.name),
        root=lambda w: plan.dataset_root(w.name),
        files=lambda w: plan.files(w.name),
        schemas=plan.data_schemas(),
        code=plan.code("validate_dataset"),
        cache=f"{RESULTS}/cache/pictures/{{name}}.sqlite",
    message:
        "Checking every record and picture of {wildcards.name}"
    shell:
        f"python {SCRIPTS}/validate_dataset.py --config {{params.config:q}} --root {{params.root:q}}"
        " --generated {input.generated:q} --cache {params.cache:q} --output {output.manifest:q} 2> {log:q}"


rule check_leakage:
    input:
        train=lambda w: plan.leakage_training(w.name),
        evaluations=lambda w: plan.leakage_inputs(w.name),
    output:
        f"{RESULTS}/leakage/{{name}}.json",
    log:
        f"{RESULTS}/logs/check_leakage/{{name}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/check_leakage/{{name}}.tsv"
    priority: 10  # before the projector is trained, where both could start
    conda:
        "../../envs/train.yaml"
    envmodules:
        *MODULES["train"],
    threads: 1
    resources:
        mem_mb=lambda w, attempt: growing(4000, attempt),
        runtime=lambda w, attempt: growing(60, attempt),
    params:
        evaluations=lambda w: plan.leakage_params(w.name),
        code=plan.code("check_leakage"),
    message:
        "Looking for pictures of the evaluations in the training data of {wildcards.name}"
    shell:
        f"python {SCRIPTS}/check_leakage.py --train {{input.train:q}} --evaluations {{params.evaluations:q}}"
        " --output {output:q} 2> {log:q}"


# What fine-tuning waits for. A failed job's outputs are deleted, and a missing file, made anew, would train again, even
# as `ancient`: this one stays.
rule gate_training:
    input:
        f"{RESULTS}/leakage/{{name}}.json",
    output:
        touch(f"{RESULTS}/leakage/{{name}}.passed"),
    localrule: True
