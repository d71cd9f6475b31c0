# `snakemake serve`: makes what is missing of an experiment's models and starts a page to try them. It declares no output,
# so that it runs whenever it is asked for, until Ctrl-C.


rule serve:
    input:
        unpack(lambda w: plan.served()),
    log:
        f"{RESULTS}/logs/serve.log",
    localrule: True
    conda:
        "../../envs/train.yaml"
    envmodules:
        *MODULES["train"],
    threads: 1
    params:
        options=lambda w: plan.served_options(),
        title=lambda w: plan.served_title(),
    message:
        "Starting the page on which both models answer; Ctrl-C ends it"
    shell:
        f"python {SCRIPTS}/app.py --before {{input.before:q}} --after {{input.after:q}} --data {{input.data:q}}"
        " {params.options:q} --title {params.title:q} 2> >(tee {log:q} >&2)"
