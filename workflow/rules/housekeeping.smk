# Disk space. These two declare no output, so that they run whenever they are asked for. The log of the first is not in
# the results, where it may have no right to write.


rule disk:
    log:
        ".snakemake/log/print_disk.log",
    localrule: True
    conda:
        "../../envs/train.yaml"
    envmodules:
        *MODULES["train"],
    threads: 1
    params:
        results=RESULTS,
        folders=lambda w: plan.folders_file(),
    message:
        "What the results take up"
    shell:
        f"python {SCRIPTS}/print_disk.py --results {{params.results:q}} --folders {{params.folders:q}} 2> >(tee {{log:q}} >&2)"


rule clean_checkpoints:
    log:
        f"{RESULTS}/logs/clean_checkpoints.log",
    localrule: True
    conda:
        "../../envs/train.yaml"
    envmodules:
        *MODULES["train"],
    threads: 1
    params:
        results=RESULTS,
    message:
        "Deleting the training state of finished stages"
    shell:
        f"python {SCRIPTS}/clean_checkpoints.py --results {{params.results:q}} 2> >(tee {{log:q}} >&2)"
