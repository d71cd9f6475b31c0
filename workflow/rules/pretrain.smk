rule build_model:
    input:
        lambda w: plan.model_inputs(w.name),
    output:
        f"{RESULTS}/models/{{name}}/manifest.json",
    log:
        f"{RESULTS}/logs/build_model/{{name}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/build_model/{{name}}.tsv"
    conda:
        "../../envs/train.yaml"
    envmodules:
        *MODULES["train"],
    threads: lambda w: plan.resource("models", w.name, "cpus")
    resources:
        cpus_per_task=lambda w: plan.resource("models", w.name, "cpus"),
        mem_mb=lambda w, attempt: plan.memory("models", w.name, attempt),
        runtime=lambda w, attempt: plan.runtime("models", w.name, attempt),
    params:
        config=lambda w: plan.model_params(w.name),
        files=lambda w: plan.model_files(w.name),
        code=plan.code("build_model"),
        store=lambda w, resources: plan.store(),
    message:
        "Building the base model {wildcards.name}"
    shell:
        f"python {SCRIPTS}/build_model.py --config {{params.config:q}} --output {{output:q}} {{params.store}}"
        " 2> {log:q}"


# `execution` takes `resources` as an argument so that snakemake does not count it among the parameters that a result
# depends on: splitting a batch in another way re-runs nothing.
rule train_projector:
    input:
        model=lambda w: plan.manifest("models", plan.model_of(w.name)),
        tokens=lambda w: plan.tokens("pretrain", w.name),
    output:
        manifest=f"{RESULTS}/pretrain/{{name}}/manifest.json",
        metrics=f"{RESULTS}/pretrain/{{name}}/metrics.jsonl",
    log:
        f"{RESULTS}/logs/train_projector/{{name}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/train_projector/{{name}}.tsv"
    conda:
        "../../envs/train.yaml"
    envmodules:
        *MODULES["train"],
    threads: lambda w: plan.resource("pretrains", w.name, "cpus")
    resources:
        **over_nodes("pretrains"),
        cpus_per_task=lambda w: plan.resource("pretrains", w.name, "cpus"),
        mem_mb=lambda w, attempt: plan.memory("pretrains", w.name, attempt),
        runtime=lambda w: plan.resource("pretrains", w.name, "runtime"),
    params:
        config=lambda w: plan.pretrain_params(w.name),
        code=plan.code("train_projector"),
        execution=lambda w, resources: plan.execution("pretrains", w.name),
        launcher=lambda w, resources: plan.launcher("pretrains", w.name),
        checkpoints=f"{RESULTS}/checkpoints/pretrain/{{name}}",
        features=f"{RESULTS}/cache/features",
    message:
        "Training the projector {wildcards.name} (language model and vision tower frozen)"
    shell:
        f"{IGNORING_STOPS} {{params.launcher}} {SCRIPTS}/train_projector.py --config {{params.config:q}} --model {{input.model:q}}"
        " --data {input.tokens:q} --execution {params.execution:q} --checkpoints {params.checkpoints:q}"
        " --output {output.manifest:q} --features {params.features:q} 2> >(tee {log:q} >&2)"


# LMDeploy loads whole model directories: a base with what pretraining made of it.
rule assemble_pretrained:
    input:
        model=lambda w: plan.manifest("models", plan.model_of(w.name)),
        pretrained=f"{RESULTS}/pretrain/{{name}}/manifest.json",
    output:
        f"{RESULTS}/assembled/{{name}}/manifest.json",
    log:
        f"{RESULTS}/logs/assemble_pretrained/{{name}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/assemble_pretrained/{{name}}.tsv"
    conda:
        "../../envs/train.yaml"
    envmodules:
        *MODULES["train"],
    threads: 2
    resources:
        mem_mb=lambda w, attempt: growing(8000, attempt),
        runtime=lambda w, attempt: growing(60, attempt),
    params:
        code=plan.code("assemble_pretrained"),
    message:
        "Putting what {wildcards.name} trained into its base"
    shell:
        f"python {SCRIPTS}/assemble_pretrained.py --model {{input.model:q}} --pretrained {{input.pretrained:q}}"
        " --output {output:q} 2> {log:q}"
