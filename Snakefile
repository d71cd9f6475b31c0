"""vlmflow: fetch -> validate -> pretrain -> finetune -> merge -> convert -> evaluate before and after -> report."""

from snakemake.utils import min_version

min_version("9.27")


if (
    "experiments" not in config
):  # a --configfile that has experiments of its own stands alone

    configfile: "config/config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/fetch.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/tokens.smk"
include: "workflow/rules/plan.smk"
include: "workflow/rules/pretrain.smk"
include: "workflow/rules/finetune.smk"
include: "workflow/rules/convert.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"


localrules:
    all,
    data,
    pretrain,
    finetune,
    merge,
    evaluate,
    report,


rule all:
    default_target: True
    input:
        reports(),
        manifests("official", plan.officials()),


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


onsuccess:
    print_headlines()
