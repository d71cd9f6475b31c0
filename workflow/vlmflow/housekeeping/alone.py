"""One run at a time, in the place of snakemake's own lock, which a killed run leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vlmflow.errors import UserError
from vlmflow.housekeeping.owner import ResultsRoot

_ONLY_LOOKING = {"disk", "results"}


def alone(workflow: Any, root: ResultsRoot) -> Callable[..., Any]:
    """``workflow.execute``, which is called for runs and dry runs, so that it keeps other runs out of ``root``.

    It begins before snakemake looks at any file. Not in a rule file: snakemake would name that as the place of every
    failure of a run.
    """
    execute = workflow.execute

    def execute_alone(executor_plugin: Any, executor_settings: Any, **settings: Any) -> Any:
        from snakemake.exceptions import WorkflowError

        targets = set(workflow.dag_settings.targets)
        looks = targets and targets <= _ONLY_LOOKING
        if looks or executor_plugin.common_settings.dryrun_exec:
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
