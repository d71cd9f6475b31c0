rule train_adapter:
    input:
        model=lambda w: plan.manifest("models", plan.model_of(w.name)),
        projector=lambda w: plan.projector(w.name),
        tokens=lambda w: plan.tokens("finetune", w.name),
        leakage=lambda w: ancient(plan.leakage_gate(w.name)),
    output:
        manifest=f"{RESULTS}/finetune/{{name}}/manifest.json",
        metrics=f"{RESULTS}/finetune/{{name}}/metrics.jsonl",
    log:
        f"{RESULTS}/logs/train_adapter/{{name}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/train_adapter/{{name}}.tsv"
    wildcard_constraints:
        name=one_of(plan.trained()),
    conda:
        "../../envs/train.yaml"
    envmodules:
        *MODULES["train"],
    threads: lambda w: plan.resource("finetunes", w.name, "cpus")
    resources:
        **over_nodes("finetunes"),
        cpus_per_task=lambda w: plan.resource("finetunes", w.name, "cpus"),
        mem_mb=lambda w, attempt: plan.memory("finetunes", w.name, attempt),
        runtime=lambda w: plan.resource("finetunes", w.name, "runtime"),
    params:
        config=lambda w: plan.finetune_params(w.name),
        code=plan.code("train_adapter"),
        execution=lambda w, resources: plan.execution("finetunes", w.name),
        launcher=lambda w, resources: plan.launcher("finetunes", w.name),
        checkpoints=f"{RESULTS}/checkpoints/finetune/{{name}}",
        features=f"{RESULTS}/cache/features",
    message:
        "Fine-tuning {wildcards.name}"
    shell:
        f"{IGNORING_STOPS} {{params.launcher}} {SCRIPTS}/train_adapter.py --config {{params.config:q}} --model {{input.model:q}}"
        " --projector {input.projector:q} --data {input.tokens:q} --execution {params.execution:q}"
        " --checkpoints {params.checkpoints:q} --output {output.manifest:q} --features {params.features:q} 2> >(tee {log:q} >&2)"


rule import_adapter:
    input:
        lambda w: plan.import_inputs(w.name),
        model=lambda w: plan.manifest("models", plan.model_of(w.name)),
        leakage=lambda w: ancient(plan.leakage_gate(w.name)),
    output:
        f"{RESULTS}/finetune/{{name}}/manifest.json",
    log:
        f"{RESULTS}/logs/import_adapter/{{name}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/import_adapter/{{name}}.tsv"
    wildcard_constraints:
        name=one_of(plan.imported()),
    conda:
        "../../envs/train.yaml"
    envmodules:
        *MODULES["train"],
    threads: 2
    resources:
        mem_mb=lambda w, attempt: plan.memory("finetunes", w.name, attempt),
        runtime=lambda w, attempt: growing(60, attempt),
    params:
        config=lambda w: plan.finetune_params(w.name),
        checkpoint=lambda w: plan.import_checkpoint(w.name),
        files=lambda w: plan.import_files(w.name),
        code=plan.code("import_adapter"),
    message:
        "Taking over what XTuner trained as {wildcards.name}"
    shell:
        f"python {SCRIPTS}/import_adapter.py --config {{params.config:q}} --checkpoint {{params.checkpoint:q}}"
        " --model {input.model:q} --output {output:q} 2> {log:q}"
