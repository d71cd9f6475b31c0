# `snakemake plan`: what training will need, from the model's configuration and the counted tokens. Nothing is trained.


rule plan_training:
    input:
        model=lambda w: plan.manifest("models", plan.model_of(w.name)),
        tokens=lambda w: plan.tokens(w.stage, w.name),
    output:
        f"{RESULTS}/plan/{{stage}}-{{name}}.json",
    log:
        f"{RESULTS}/logs/plan_training/{{stage}}-{{name}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/plan_training/{{stage}}-{{name}}.tsv"
    wildcard_constraints:
        stage="pretrain|finetune",
    localrule: True
    conda:
        "../../envs/train.yaml"
    envmodules:
        *MODULES["train"],
    threads: 1
    params:
        stage=lambda w: plan.forecast_params(w.stage, w.name),
        code=plan.code("plan_training"),
    message:
        "Estimating memory and time of {wildcards.stage} {wildcards.name}"
    shell:
        f"python {SCRIPTS}/plan_training.py --stage {{params.stage:q}} --model {{input.model:q}}"
        " --tokens {input.tokens:q} --output {output:q} 2> {log:q}"


# It declares no output, so that the table is printed whenever it is asked for.
rule plan:
    input:
        plan.forecasts(),
    log:
        f"{RESULTS}/logs/print_plan.log",
    localrule: True
    conda:
        "../../envs/train.yaml"
    envmodules:
        *MODULES["train"],
    threads: 1
    params:
        output=f"{RESULTS}/plan/plan.json",
    message:
        "What the training stages need"
    shell:
        f"python {SCRIPTS}/print_plan.py --stages {{input:q}} --output {{params.output:q}} 2> >(tee {{log:q}} >&2)"
