"""One workflow and one run at a time per results folder."""

from snakemake.persistence import PersistenceBase

from vlmflow.housekeeping.owner import ResultsRoot


def alone(execute, root):
    """Let `execute`, which is called for runs and dry runs, keep other runs out. This takes the place of snakemake's own
    lock, which a killed run leaves behind, and begins before snakemake looks at any file.
    """

    def execute_alone(executor_plugin, executor_settings, **settings):
        reads = executor_plugin.common_settings.dryrun_exec
        if reads or set(workflow.dag_settings.targets) == {"disk"}:
            return execute(executor_plugin, executor_settings, **settings)
        slurm = executor_plugin.name == "slurm"
        if slurm:
            parts = (root.tag, executor_settings.jobname_prefix)
            executor_settings.jobname_prefix = "_".join(filter(None, parts))
        try:
            with root.taken(slurm):
                return execute(executor_plugin, executor_settings, **settings)
        except UserError as error:
            raise WorkflowError(str(error)) from None

    return execute_alone


async def leave_marked(persistence, job):
    """What the snakemake inside a cluster job does when the job is done: nothing. Only the main one records what the
    output was made with; if it is gone, the output stays marked as incomplete and is made again, or found complete.
    """


if not workflow.is_main_process:
    PersistenceBase.finished = leave_marked
else:
    if workflow.workflow_settings.cache is not None:
        raise WorkflowError(
            "--cache would keep the manifests of folders without the folders; to share downloads and base models "
            "between workflows, name a folder as `store` in the configuration (docs/disk.md)"
        )
    root = ResultsRoot(RESULTS)
    try:
        root.check()
    except UserError as error:
        raise WorkflowError(str(error)) from None
    workflow.execute = alone(workflow.execute, root)
