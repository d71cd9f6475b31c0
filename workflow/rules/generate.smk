rule generate_annotations:
    input:
        lambda w: plan.dataset_input(w.name),
    output:
        f"{RESULTS}/generated/{{name}}/manifest.json",
    log:
        f"{RESULTS}/logs/generate_annotations/{{name}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/generate_annotations/{{name}}.tsv"
    localrule: True
    conda:
        "../../envs/train.yaml"
    envmodules:
        *MODULES["train"],
    threads: 1
    params:
        config=lambda w: plan.generate_params(w.name),
        images=lambda w: plan.pictures_folder(w.name),
        files=lambda w: plan.files(w.name),
        code=plan.code("generate_annotations"),
        limits=lambda w, input: plan.generate_limits(w.name),
        cache=f"{RESULTS}/cache/generated",
    message:
        "Asking for questions and answers about the pictures of {wildcards.name}"
    shell:
        f"python {SCRIPTS}/generate_annotations.py --config {{params.config:q}} --limits {{params.limits:q}}"
        " --images {params.images:q} --cache {params.cache:q} --output {output:q} 2> >(tee {log:q} >&2)"
