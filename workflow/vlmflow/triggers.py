"""What snakemake is taught about running jobs again."""

from __future__ import annotations

from typing import Any

from vlmflow.plan.own_files import OwnFiles
from vlmflow.why import explain


def teach_snakemake(own_files: OwnFiles) -> None:
    """Have changed parameters put into words, and every job looked at for reasons of its own.

    Snakemake skips whatever follows a job that runs, as it will run anyhow; what is behind an `ancient` file will not,
    and an edit of its own would be overlooked (snakemake issue 4166).
    """
    from snakemake.dag import DAG
    from snakemake.persistence import ParamsChange

    find_jobs_to_run = DAG.update_needrun

    async def look_at_every_job(dag: Any, *arguments: Any, **options: Any) -> None:
        dag.bfs = lambda *_: ()  # what follows a job that runs, there used for skipping alone
        try:
            await find_jobs_to_run(dag, *arguments, **options)
        finally:
            del dag.bfs

    DAG.update_needrun = look_at_every_job
    ParamsChange.__str__ = lambda change: explain(change.only_old, change.only_new, own_files)
