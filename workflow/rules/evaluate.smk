# What a job that asks questions needs, as functions of its wildcards.
of_evaluation = {
    "gpu": lambda w: plan.resource("evaluations", w.name, "gpu"),
    "cpus_per_task": lambda w: plan.resource("evaluations", w.name, "cpus"),
    "mem_mb": lambda w, attempt: plan.memory("evaluations", w.name, attempt),
    "runtime": lambda w, attempt: plan.runtime("evaluations", w.name, attempt),
    "nodes": 1,
}


rule ask_transformers:
    input:
        unpack(lambda w: plan.checkpoint_inputs(w.name, w.checkpoint)),
        weights=lambda w: plan.checkpoint_weights(w.checkpoint),
        data=lambda w: plan.manifest("data", plan.evaluation(w.name)["dataset"]),
    output:
        f"{RESULTS}/evaluate/{{name}}/{{checkpoint}}/answers/{{scatteritem}}.json",
    log:
        f"{RESULTS}/logs/ask_transformers/{{name}}/{{checkpoint}}/{{scatteritem}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/ask_transformers/{{name}}/{{checkpoint}}/{{scatteritem}}.tsv"
    wildcard_constraints:
        name=one_of(plan.asked_by("transformers")),
    conda:
        "../../envs/train.yaml"
    envmodules:
        *MODULES["train"],
    threads: lambda w: plan.resource("evaluations", w.name, "cpus")
    resources:
        **of_evaluation,
    params:
        config=lambda w: plan.ask_params(w.name),
        code=plan.code("ask_transformers"),
        over=lambda w, input: " ".join(
            f"--{part} {shlex.quote(input[part])}"
            for part in ("projector", "adapter")
            if part in input.keys()
        ),
        batch_size=lambda w, resources: plan.evaluation_batch(w.name),
        launcher=lambda w, resources: plan.evaluation_launcher(w.name),
        cache=f"{RESULTS}/cache/answers",
    message:
        "Asking {wildcards.checkpoint} the questions of {wildcards.name} ({wildcards.scatteritem})"
    shell:
        f"{{params.launcher}} {SCRIPTS}/ask_transformers.py --config {{params.config:q}} --model {{input.model:q}} {{params.over}}"
        " --checkpoint {wildcards.checkpoint:q} --data {input.data:q} --shard {wildcards.scatteritem} --batch-size {params.batch_size}"
        " --cache {params.cache:q} --output {output:q} 2> >(tee {log:q} >&2)"


rule ask_lmdeploy:
    input:
        unpack(lambda w: plan.checkpoint_inputs(w.name, w.checkpoint)),
        weights=lambda w: plan.checkpoint_weights(w.checkpoint),
        data=lambda w: plan.manifest("data", plan.evaluation(w.name)["dataset"]),
    output:
        f"{RESULTS}/evaluate/{{name}}/{{checkpoint}}/answers/{{scatteritem}}.json",
    log:
        f"{RESULTS}/logs/ask_lmdeploy/{{name}}/{{checkpoint}}/{{scatteritem}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/ask_lmdeploy/{{name}}/{{checkpoint}}/{{scatteritem}}.tsv"
    wildcard_constraints:
        name=one_of(plan.asked_by("lmdeploy")),
    conda:
        "../../envs/lmdeploy.yaml"
    envmodules:
        *MODULES["lmdeploy"],
    threads: lambda w: plan.resource("evaluations", w.name, "cpus")
    resources:
        **of_evaluation,
    params:
        config=lambda w: plan.ask_params(w.name),
        code=plan.code("ask_lmdeploy"),
        gpus=lambda w, resources: plan.resource("evaluations", w.name, "gpu"),
        launcher=lambda w, resources: plan.evaluation_launcher(w.name),
        cache=f"{RESULTS}/cache/answers",
    message:
        "Asking {wildcards.checkpoint} the questions of {wildcards.name} ({wildcards.scatteritem}) in LMDeploy"
    shell:
        f"{{params.launcher}} {SCRIPTS}/ask_lmdeploy.py --config {{params.config:q}} --model {{input.model:q}}"
        " --checkpoint {wildcards.checkpoint:q} --data {input.data:q} --shard {wildcards.scatteritem} --gpus {params.gpus}"
        " --cache {params.cache:q} --output {output:q} 2> >(tee {log:q} >&2)"
