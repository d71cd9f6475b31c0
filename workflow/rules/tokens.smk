rule count_tokens:
    input:
        model=lambda w: plan.manifest("models", plan.model_of(w.name)),
        data=lambda w: plan.training_data(w.stage, w.name),
    output:
        manifest=f"{RESULTS}/tokens/{{stage}}-{{name}}/manifest.json",
        report=report(
            f"{RESULTS}/tokens/{{stage}}-{{name}}/report.md",
            category="Data",
            labels={"data set": "tokens of {stage} {name}"},
        ),
    log:
        f"{RESULTS}/logs/count_tokens/{{stage}}-{{name}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/count_tokens/{{stage}}-{{name}}.tsv"
    wildcard_constraints:
        stage="pretrain|finetune",
    conda:
        "../../envs/train.yaml"
    envmodules:
        *MODULES["train"],
    threads: 2
    resources:
        mem_mb=lambda w, attempt: growing(4000, attempt),
        runtime=lambda w, attempt: growing(120, attempt),
    params:
        config=lambda w: plan.tokens_params(w.stage, w.name),
        code=plan.code("count_tokens"),
    message:
        "Counting the tokens of every record for {wildcards.stage} {wildcards.name}"
    shell:
        f"RAYON_NUM_THREADS={{threads}} python {SCRIPTS}/count_tokens.py --config {{params.config:q}}"
        " --model {input.model:q} --data {input.data:q} --output {output.manifest:q} 2> {log:q}"
