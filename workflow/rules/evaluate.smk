rule evaluate_checkpoint:
    input:
        unpack(lambda w: plan.checkpoint_inputs(w.checkpoint)),
        data=lambda w: plan.manifest("data", plan.evaluation(w.name)["dataset"]),
    output:
        scores=f"{RESULTS}/evaluate/{{name}}/{{checkpoint}}/scores.json",
        predictions=f"{RESULTS}/evaluate/{{name}}/{{checkpoint}}/predictions.jsonl",
    log:
        f"{RESULTS}/logs/evaluate_checkpoint/{{name}}/{{checkpoint}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/evaluate_checkpoint/{{name}}/{{checkpoint}}.tsv"
    conda:
        "../../envs/train.yaml"
    envmodules:
        *MODULES["train"],
    threads: lambda w: plan.resource("evaluations", w.name, "cpus")
    resources:
        gpu=lambda w: plan.resource("evaluations", w.name, "gpu"),
        cpus_per_task=lambda w: plan.resource("evaluations", w.name, "cpus"),
        mem_mb=lambda w, attempt: plan.memory("evaluations", w.name, attempt),
        runtime=lambda w, attempt: plan.runtime("evaluations", w.name, attempt),
        nodes=1,
    params:
        config=lambda w: plan.evaluation_params(w.name),
        code=plan.code("evaluate_checkpoint"),
        projector=lambda w, input: (
            f"--projector {shlex.quote(input.projector)}"
            if "projector" in input.keys()
            else ""
        ),
        batch_size=lambda w, resources: plan.evaluation_batch(w.name),
        launcher=lambda w, resources: plan.evaluation_launcher(w.name),
    message:
        "Asking {wildcards.checkpoint} the questions of {wildcards.name}"
    shell:
        f"{{params.launcher}} {SCRIPTS}/evaluate_checkpoint.py --config {{params.config:q}} --model {{input.model:q}} {{params.projector}}"
        " --checkpoint {wildcards.checkpoint:q} --data {input.data:q} --batch-size {params.batch_size}"
        " --output {output.scores:q} 2> >(tee {log:q} >&2)"


rule evaluate_baselines:
    input:
        train=lambda w: plan.training_data("finetune", w.finetune),
        data=lambda w: plan.manifest("data", plan.evaluation(w.name)["dataset"]),
    output:
        f"{RESULTS}/evaluate/{{name}}/baselines-{{finetune}}.json",
    log:
        f"{RESULTS}/logs/evaluate_baselines/{{name}}/{{finetune}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/evaluate_baselines/{{name}}/{{finetune}}.tsv"
    conda:
        "../../envs/train.yaml"
    envmodules:
        *MODULES["train"],
    threads: 1
    resources:
        mem_mb=lambda w, attempt: growing(4000, attempt),
        runtime=lambda w, attempt: growing(60, attempt),
    params:
        config=lambda w: plan.evaluation_params(w.name),
        code=plan.code("evaluate_baselines"),
    message:
        "Majority and nearest-neighbour answers for {wildcards.name}"
    shell:
        f"python {SCRIPTS}/evaluate_baselines.py --config {{params.config:q}} --train {{input.train:q}}"
        " --data {input.data:q} --output {output:q} 2> {log:q}"
