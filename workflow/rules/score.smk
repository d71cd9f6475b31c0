rule score_answers:
    input:
        answers=lambda w: plan.answers(w.name, w.checkpoint),
        judged=lambda w: plan.judged_inputs(w.name, w.checkpoint),
        data=lambda w: plan.manifest("data", plan.evaluation(w.name)["dataset"]),
    output:
        scores=f"{RESULTS}/evaluate/{{name}}/{{checkpoint}}/scores.json",
        predictions=f"{RESULTS}/evaluate/{{name}}/{{checkpoint}}/predictions.jsonl",
    log:
        f"{RESULTS}/logs/score_answers/{{name}}/{{checkpoint}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/score_answers/{{name}}/{{checkpoint}}.tsv"
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
        code=plan.code("score_answers"),
        judged=lambda w, input: (
            f"--judged {shlex.quote(input.judged[0])}" if input.judged else ""
        ),
    message:
        "Scoring the answers of {wildcards.checkpoint} to {wildcards.name}"
    shell:
        f"python {SCRIPTS}/score_answers.py --config {{params.config:q}} --checkpoint {{wildcards.checkpoint:q}} --answers {{input.answers:q}}"
        " --data {input.data:q} {params.judged} --output {output.scores:q} 2> {log:q}"


rule check_parity:
    input:
        unpack(lambda w: plan.checkpoint_inputs(w.name, w.checkpoint)),
        data=lambda w: plan.manifest("data", plan.evaluation(w.name)["dataset"]),
        answers=lambda w: plan.answers(w.name, w.checkpoint),
    output:
        f"{RESULTS}/evaluate/{{name}}/{{checkpoint}}/parity.json",
    log:
        f"{RESULTS}/logs/check_parity/{{name}}/{{checkpoint}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/check_parity/{{name}}/{{checkpoint}}.tsv"
    conda:
        "../../envs/train.yaml"
    envmodules:
        *MODULES["train"],
    threads: lambda w: plan.resource("evaluations", w.name, "cpus")
    resources:
        **of_evaluation,
    params:
        config=lambda w: plan.parity_params(w.name),
        code=plan.code("check_parity"),
        batch_size=lambda w, resources: plan.evaluation_batch(w.name),
        launcher=lambda w, resources: plan.evaluation_launcher(w.name),
    message:
        "Asking {wildcards.checkpoint} some questions of {wildcards.name} in transformers too"
    shell:
        f"{{params.launcher}} {SCRIPTS}/check_parity.py --config {{params.config:q}} --model {{input.model:q}} --checkpoint {{wildcards.checkpoint:q}}"
        " --data {input.data:q} --answers {input.answers:q} --batch-size {params.batch_size} --output {output:q} 2> >(tee {log:q} >&2)"


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
        config=lambda w: plan.baseline_params(w.name),
        code=plan.code("evaluate_baselines"),
    message:
        "Majority and nearest-neighbour answers for {wildcards.name}"
    shell:
        f"python {SCRIPTS}/evaluate_baselines.py --config {{params.config:q}} --train {{input.train:q}}"
        " --data {input.data:q} --output {output:q} 2> {log:q}"
