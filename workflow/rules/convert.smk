rule merge_adapter:
    input:
        model=lambda w: plan.manifest("models", plan.model_of(w.name)),
        adapter=f"{RESULTS}/finetune/{{name}}/manifest.json",
    output:
        manifest=f"{RESULTS}/merged/{{name}}/manifest.json",
        weights=touch(f"{RESULTS}/merged/{{name}}.weights"),
    log:
        f"{RESULTS}/logs/merge_adapter/{{name}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/merge_adapter/{{name}}.tsv"
    conda:
        "../../envs/train.yaml"
    envmodules:
        *MODULES["train"],
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
        " --output {output.manifest:q} 2> {log:q}"


# The file `weights` stands for the merged weights, which go with it unless they are kept. A missing file that nobody
# waits for is no reason to merge again; an edit of `convert` is.
rule convert_model:
    input:
        manifest=f"{RESULTS}/merged/{{name}}/manifest.json",
        weights=f"{RESULTS}/merged/{{name}}.weights",
    output:
        f"{RESULTS}/converted/{{name}}/manifest.json",
    log:
        f"{RESULTS}/logs/convert_model/{{name}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/convert_model/{{name}}.tsv"
    conda:
        "../../envs/train.yaml"
    envmodules:
        *MODULES["train"],
    threads: 2
    resources:
        mem_mb=lambda w, attempt: plan.memory("finetunes", w.name, attempt),
        runtime=lambda w, attempt: growing(60, attempt),
    params:
        config=lambda w: plan.convert_params(w.name),
        code=plan.code("convert_model"),
        drop=lambda w, input: (
            "" if plan.keeps_merged(w.name) else f"--drop {shlex.quote(input.weights)}"
        ),
    message:
        "Writing the deployment directory of {wildcards.name}"
    shell:
        f"python {SCRIPTS}/convert_model.py --config {{params.config:q}} --model {{input.manifest:q}}"
        " --output {output:q} {params.drop} 2> {log:q}"


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
    envmodules:
        *MODULES["train"],
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
