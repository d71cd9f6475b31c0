rule merge_adapter:
    input:
        model=lambda w: plan.manifest("models", plan.model_of(w.name)),
        adapter=f"{RESULTS}/finetune/{{name}}/manifest.json",
    output:
        f"{RESULTS}/merged/{{name}}/manifest.json",
    log:
        f"{RESULTS}/logs/merge_adapter/{{name}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/merge_adapter/{{name}}.tsv"
    conda:
        "../../envs/train.yaml"
    threads: 2
    resources:
        mem_mb=lambda w, attempt: plan.memory("finetunes", w.name, attempt),
        runtime=lambda w, attempt: growing(60, attempt),
    params:
        config=lambda w: plan.merge_params(w.name),
        code=plan.code("merge_adapter"),
    message:
        "Merging {wildcards.name} into its base and comparing logits"
    shell:
        f"python {SCRIPTS}/merge_adapter.py --config {{params.config:q}} --model {{input.model:q}} --adapter {{input.adapter:q}}"
        " --output {output:q} 2> {log:q}"


rule convert_model:
    input:
        f"{RESULTS}/merged/{{name}}/manifest.json",
    output:
        f"{RESULTS}/converted/{{name}}/manifest.json",
    log:
        f"{RESULTS}/logs/convert_model/{{name}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/convert_model/{{name}}.tsv"
    conda:
        "../../envs/train.yaml"
    threads: 2
    resources:
        mem_mb=lambda w, attempt: plan.memory("finetunes", w.name, attempt),
        runtime=lambda w, attempt: growing(60, attempt),
    params:
        config=lambda w: plan.convert_params(w.name),
        code=plan.code("convert_model"),
    message:
        "Writing the deployment directory of {wildcards.name}"
    shell:
        f"python {SCRIPTS}/convert_model.py --config {{params.config:q}} --model {{input:q}} --output {{output:q}} 2> {{log:q}}"


rule convert_official:
    input:
        f"{RESULTS}/converted/{{name}}/manifest.json",
    output:
        f"{RESULTS}/official/{{name}}/manifest.json",
    log:
        f"{RESULTS}/logs/convert_official/{{name}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/convert_official/{{name}}.tsv"
    conda:
        "../../envs/train.yaml"
    threads: 2
    resources:
        mem_mb=lambda w, attempt: growing(4000, attempt),
        runtime=lambda w, attempt: growing(60, attempt),
    params:
        code=plan.code("convert_official"),
    message:
        "Writing {wildcards.name} in the official layout of its family"
    shell:
        f"python {SCRIPTS}/convert_official.py --model {{input:q}} --output {{output:q}} 2> {{log:q}}"
