"""What Beam's DaskRunner leaves open: one partition per task, the workers' software, a cluster that is gone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from oxe_curate.beam.job import HostReport, Job, compare_hosts, host_report
from oxe_curate.beam.options import Patience
from oxe_curate.beam.waiting import AGAIN
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

    # its errors come back as exceptions; the log would show them, and failed attempts to reconnect, as tracebacks
    for name in [name for name in logging.root.manager.loggerDict if name.split(".")[0] == "distributed"]:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    from oxe_curate.beam.fn import PipelineOptions

    options = PipelineOptions(list(beam_args)).get_all_options()
    where = {"address": options["address"], "scheduler_file": options["scheduler_file"]}
    with distributed.Client(**where, timeout=options["timeout"], set_as_default=False) as client:
        reports = client.run(host_report, job.folders, on_error="return")
        reports["scheduler"] = _of_scheduler(client)  # it unpickles the graph
        for address, report in sorted(reports.items()):
            if isinstance(report, BaseException):
                raise WorkerError(explain_import(str(report), address) or f"{address}: {report!r}")
            if problem := compare_hosts(dict(job.software), report):
                raise problem


def _of_scheduler(client: Any) -> HostReport | Exception:
    try:
        report: HostReport = client.run_on_scheduler(host_report, ())
    except Exception as error:
        return error
    return report


def explain_import(text: str, where: str) -> str | None:
    """The message for a process of the cluster that lacks a package, None if `text` says something else."""
    for package in ("oxe_curate", "apache_beam"):
        if f"No module named '{package}" in text:
            return (
                f"{where}: Python package {package} not found. Install oxe-curate on every worker, in the version "
                "that the command has; a Dask scheduler needs it too."
            )
    return None


class DaskJob:
    """Beam's result of a job on Dask, but done only if every task is: a lost connection ends Beam's wait as well."""

    def __init__(self, result: Any) -> None:
        self._result = result

    def wait_until_finish(self) -> str:
        """Wait for the tasks. Raises WorkerError if the scheduler is gone, or whatever a task raised."""
        state = str(self._result.wait_until_finish())
        if any(future.status != "finished" for future in self._result.futures):
            raise WorkerError(f"lost the connection to the scheduler (it ended, or the network is down). {AGAIN}")
        return state

    def count_workers(self) -> int:
        """Ask the scheduler for its number of workers."""
        client = self._result.client
        return len(client.sync(client.scheduler.identity)["workers"])

    def cancel(self) -> None:
        """Cancel the tasks that have not started; a worker finishes the one that it is running."""
        self._result.cancel()

    def close(self) -> None:
        """Close the connection."""
        self._result.client.close(timeout=2)
