"""One workflow and one run at a time per results folder."""

from snakemake.persistence import PersistenceBase

from vlmflow.housekeeping.alone import alone
from vlmflow.housekeeping.owner import ResultsRoot


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
    workflow.execute = alone(workflow, root)
