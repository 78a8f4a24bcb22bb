"""What Beam's DaskRunner leaves open: one partition per task, the workers' software, a cluster that is gone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from oxe_curate.beam.job import Job, compare_hosts, host_report
from oxe_curate.beam.options import Patience
from oxe_curate.errors import ConfigError, WorkerError


def dask_options(beam_args: Sequence[str], tasks: int, patience: Patience) -> list[str]:
    """Add one partition per task: Dask puts 128 tasks into a partition otherwise, which one worker runs in turn.

    Raises ConfigError if the options name no scheduler: Dask would start processes on this machine.
    """
    names = {argument.partition("=")[0] for argument in beam_args}
    if not names & {"--dask_client_address", "--dask_scheduler_file"}:
        raise ConfigError(
            "the DaskRunner needs the address of a scheduler: --dask_client_address=tcp://HOST:8786 "
            "(or --dask_scheduler_file). To use the cores of this machine, leave --runner out."
        )
    added = []
    if not names & {"--dask_npartitions", "--dask_partition_size"}:
        added.append(f"--dask_npartitions={tasks}")
    if "--dask_connection_timeout" not in names:
        added.append(f"--dask_connection_timeout={patience.answer:.0f}")
    return [*beam_args, *added]


def check_cluster(beam_args: Sequence[str], job: Job) -> None:
    """Compare the software and the folders of the scheduler and of every worker with the job's.

    Raises:
        WorkerError: a version differs, or the package is missing.
        StorageError: a worker does not see a folder.
    """
    from dask import distributed

    from oxe_curate.beam.fn import PipelineOptions

    options = PipelineOptions(list(beam_args)).get_all_options()
    where = {"address": options["address"], "scheduler_file": options["scheduler_file"]}
    with distributed.Client(**where, timeout=options["timeout"], set_as_default=False) as client:
        reports = client.run(host_report, job.folders, on_error="return")
        for address, report in sorted(reports.items()):
            if isinstance(report, BaseException):
                raise WorkerError(explain_import(str(report), f"worker {address}") or f"worker {address}: {report!r}")
            if problem := compare_hosts(dict(job.software), report):
                raise problem


def explain_import(text: str, where: str) -> str | None:
    """The message for a process of the cluster that lacks a package, None if `text` says something else."""
    for package in ("oxe_curate", "apache_beam"):
        if f"No module named '{package}" in text:
            return (
                f"{where}: Python package {package} not found. Install oxe-curate there, in the version that the "
                "command has; a Dask scheduler needs it too."
            )
    return None


def count_workers(client: Any) -> int:
    """Ask the scheduler for its number of workers."""
    return len(client.sync(client.scheduler.identity)["workers"])
