# What users ask for besides `all`; docs in the README.


localrules:
    data,
    pretrain,
    finetune,
    merge,
    evaluate,
    report,


rule data:
    input:
        manifests("data", plan.datasets()),


rule pretrain:
    input:
        manifests("pretrain", plan.pretrains()),


rule finetune:
    input:
        manifests("finetune", plan.finetunes()),


rule merge:
    input:
        models(),


rule evaluate:
    input:
        scores(),


rule report:
    input:
        reports(),


# `snakemake NAME` builds the experiment NAME.
for experiment in plan.config["experiments"]:

    rule:
        name:
            experiment
        input:
            f"{RESULTS}/report/{experiment}/index.html",
        localrule: True


# `snakemake SWEEP` builds all its variants and their table.
for sweep in plan.config["sweeps"]:

    rule:
        name:
            sweep
        input:
            f"{RESULTS}/tables/{sweep}/table.tsv",
            [f"{RESULTS}/report/{name}/index.html" for name in plan.variants(sweep)],
        localrule: True
