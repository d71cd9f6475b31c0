"""vlmflow: fetch -> validate -> pretrain -> finetune -> merge -> convert -> evaluate before and after -> report."""

from snakemake.utils import min_version

min_version("9.27")


# a --configfile that has experiments of its own stands alone
if "experiments" not in config:

    configfile: "config/config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/environments.smk"
include: "workflow/rules/ownership.smk"
include: "workflow/rules/fetch.smk"
include: "workflow/rules/generate.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/tokens.smk"
include: "workflow/rules/plan.smk"
include: "workflow/rules/pretrain.smk"
include: "workflow/rules/finetune.smk"
include: "workflow/rules/convert.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/judge.smk"
include: "workflow/rules/score.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/table.smk"
include: "workflow/rules/serve.smk"
include: "workflow/rules/housekeeping.smk"
include: "workflow/rules/targets.smk"


localrules:
    all,


rule all:
    default_target: True
    input:
        reports(),
        tables(),
        manifests("official", plan.officials()),


onstart:
    hide_secrets()


onsuccess:
    print_headlines()
    plan.own_files.remember()


onerror:
    plan.own_files.remember()
