rule validate_dataset:
    input:
        lambda w: plan.dataset_input(w.name),
        schema="workflow/schemas/llava.schema.yaml",
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
    threads: 2
    resources:
        mem_mb=4000,
        runtime=120,
    params:
        config=lambda w: plan.dataset_params(w.name),
        root=lambda w: plan.dataset_root(w.name),
        files=lambda w: plan.files(w.name),
        code=plan.code("validate_dataset"),
    message:
        "Checking every record and picture of {wildcards.name}"
    shell:
        f"python {SCRIPTS}/validate_dataset.py --config {{params.config:q}} --root {{params.root:q}}"
        " --output {output.manifest:q} 2> {log:q}"
