"""What snakemake is taught about running jobs again."""

from __future__ import annotations

from typing import Any

from vlmflow.plan.own_files import OwnFiles
from vlmflow.why import explain


def teach_snakemake(own_files: OwnFiles, in_job: bool) -> None:
    """Have changed parameters put into words, and every job looked at for reasons of its own.

    Snakemake skips whatever follows a job that runs, as it will run anyhow; what is behind an `ancient` file will not,
    and an edit of its own would be overlooked (snakemake issue 4166).
    """
    from snakemake.dag import DAG
    from snakemake.persistence import ParamsChange

    if not in_job:  # the snakemake inside a job records nothing
        _remember_failures()

    find_jobs_to_run = DAG.update_needrun

    async def look_at_every_job(dag: Any, *arguments: Any, **options: Any) -> None:
        dag.bfs = lambda *_: ()  # what follows a job that runs, there used for skipping alone
        try:
            await find_jobs_to_run(dag, *arguments, **options)
        finally:
            del dag.bfs

    DAG.update_needrun = look_at_every_job
    ParamsChange.__str__ = lambda change: explain(change.only_old, change.only_new, own_files)


def _remember_failures() -> None:
    """Have a job that failed planned again until it succeeds.

    Snakemake records a failed job as if it had succeeded, and then deletes its output. What was made from the output
    before is still there and looks up to date, so the next run would find nothing to do. Here the mark of an unfinished
    job stays, whether its output is there or not, and ``rerun-incomplete`` of the profile sees to the rest.
    """
    from snakemake.jobs import Job
    from snakemake.persistence import PersistenceBase

    postprocess, finished, cleanup = Job.postprocess, PersistenceBase.finished, PersistenceBase.cleanup
    failed: set[str] = set()

    async def note(job: Any, *arguments: Any, error: bool = False, **options: Any) -> None:
        outputs = set(map(str, job.output))
        (failed.update if error else failed.difference_update)(outputs)
        await postprocess(job, *arguments, error=error, **options)

    async def record(persistence: Any, job: Any) -> None:
        if failed.isdisjoint(map(str, job.output)):
            await finished(persistence, job)

    def forget(persistence: Any, job: Any) -> None:
        """Called when a job succeeded, but not its output."""
        cleanup(persistence, job)
        persistence.started(job)

    async def unfinished(persistence: Any, job: Any) -> list[Any]:
        marked = persistence._filter_incomplete_keys([persistence._get_key(file) for file in job.output])
        return [file for file in job.output if persistence._get_key(file) in marked]

    Job.postprocess = note
    PersistenceBase.finished, PersistenceBase.cleanup = record, forget
    PersistenceBase.incomplete = unfinished
