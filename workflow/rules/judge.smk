rule judge_answers:
    input:
        answers=lambda w: plan.answers(w.name, w.checkpoint),
        data=lambda w: plan.manifest("data", plan.evaluation(w.name)["dataset"]),
    output:
        f"{RESULTS}/evaluate/{{name}}/{{checkpoint}}/judged.json",
    log:
        f"{RESULTS}/logs/judge_answers/{{name}}/{{checkpoint}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/judge_answers/{{name}}/{{checkpoint}}.tsv"
    localrule: True
    conda:
        "../../envs/train.yaml"
    envmodules:
        *MODULES["train"],
    threads: 1
    params:
        config=lambda w: plan.judge_params(w.name),
        code=plan.code("judge_answers"),
        limits=lambda w, input: plan.judge_limits(w.name),
        cache=f"{RESULTS}/cache/judged",
    message:
        "Judging the answers of {wildcards.checkpoint} to the questions of {wildcards.name}"
    shell:
        f"python {SCRIPTS}/judge_answers.py --config {{params.config:q}} --limits {{params.limits:q}}"
        " --answers {input.answers:q} --data {input.data:q} --cache {params.cache:q} --output {output:q}"
        " 2> >(tee {log:q} >&2)"
