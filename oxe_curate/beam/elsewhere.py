"""Run tasks on another Beam runner, whose workers must see the source and the output folder."""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from oxe_curate import errors
from oxe_curate.beam import dask_cluster, staging
from oxe_curate.beam.job import JOB, STARTED, Job, untagged
from oxe_curate.beam.options import Patience, refuse_unknown, runner_kind, runner_name, split_options
from oxe_curate.beam.task import FAILED, Outcome, Task, Work
from oxe_curate.beam.waiting import AGAIN, Ask, notice, wait_for, within
from oxe_curate.errors import ConfigError, CurateError, WorkerError
from oxe_curate.progress import Bar
from oxe_curate.storage import Folder

_GOODBYE = 10.0  # seconds for the cancellation of a job


def on_runner(tasks: Sequence[Task], work: Work, beam_args: Sequence[str], bar: Bar) -> list[Outcome]:
    """Run the pipeline on another runner; new output files advance the bar, failures are returned as files.

    Raises:
        ConfigError: an option is wrong, or the workers cannot see a folder of this machine.
        WorkerError: the job failed, was cancelled, or lost its workers or its scheduler.
        StorageError: a worker does not see a folder.
    """
    options, patience = split_options(beam_args)
    out = tasks[0].out
    if runner_kind(options) == "dask":
        options = dask_cluster.dask_options(options, len(tasks), patience)
    _clear(out)
    finished = _Finished(tasks)
    try:
        job = Job.publish(sorted(tasks, key=lambda task: -task.size), work)
        _check_folders(job, options)
        with _watched(tasks, finished, bar), tempfile.TemporaryDirectory(prefix="oxe-curate-") as scratch:
            if staging.stages_package(runner_kind(options), options):
                options = [*options, f"--extra_package={staging.write_wheel(Path(scratch))}"]
            _run(job, options, patience)
        failures = [Outcome(**json.loads(out.read_bytes(name))) for name, _, _ in out.list(FAILED)]
    finally:
        _clear(out)
        out.sweep()  # of workers that were killed
    missing = {task.output for task in tasks} - finished.look() - {failure.output for failure in failures}
    if missing and not failures:
        raise WorkerError(
            f"the runner ended the job, but {len(missing)} of {len(tasks)} outputs are missing, such as "
            f"{min(missing)}. Its workers must have access to the same --out. {AGAIN}"
        )
    return failures


def _run(job: Job, options: Sequence[str], patience: Patience) -> None:
    """Submit the job and wait for its end; cancel it if the command ends before."""
    from oxe_curate.beam.remote import remote_pipeline

    dask = runner_kind(options) == "dask"
    name = f"{runner_name(options).rpartition('.')[2]}{_server(options)}"
    with _explained(f"{name}: the job could not be started"), refuse_unknown(), _silent():
        if dask:
            dask_cluster.check_cluster(options, job)
        result = remote_pipeline(job, options).run()
        if dask:
            result = dask_cluster.DaskJob(result)
    try:
        with _explained(f"{name}: the job failed"), _silent():
            wait_for(result, _question(result, job.out), name, patience)
    except BaseException:
        within(_GOODBYE, result.cancel)
        raise
    finally:
        if dask:
            within(_GOODBYE, result.close)


def _server(options: Sequence[str]) -> str:
    """The address of the scheduler or job server, for messages."""
    for argument in options:
        name, _, value = argument.partition("=")
        if name in ("--dask_client_address", "--dask_scheduler_file", "--job_endpoint") and value:
            return f" at {value}"
    return ""


def _question(result: Any, out: Folder) -> Ask:
    """How to ask whether the job is alive: its server, and the files that its workers leave when they start."""
    if isinstance(result, dask_cluster.DaskJob):
        return result.count_workers
    started = threading.Event()

    def ask() -> int | None:
        if hasattr(result, "_job_service"):  # of a portable runner
            result.state  # noqa: B018 (a property that asks the job server)
        if not started.is_set() and any(name.startswith(STARTED) for name, _, _ in out.list(JOB)):
            started.set()
        return None if started.is_set() else 0

    return ask


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn an exception of a runner into one clear error."""
    try:
        yield
    except CurateError as error:
        raise type(error)(f"{what}: {error}" if type(error) is WorkerError else str(error)) from error
    except Exception as error:
        text = str(error)
        for kind, message in untagged(text):
            raise getattr(errors, kind)(message) from None
        details = getattr(error, "details", None)  # of a gRPC error
        text = (str(details()) if callable(details) else text).strip() or type(error).__name__
        cause = dask_cluster.explain_import(text, "a worker") or text.splitlines()[-1 if "Traceback" in text else 0]
        raise WorkerError(f"{what}: {cause}. {AGAIN}") from error


def _report_others(fault: threading.ExceptHookArgs) -> None:
    """Report an exception that ends a thread, but not those of Beam's threads, which end with their connection."""
    if fault.thread is None or not fault.thread.name.startswith("wait_until_finish"):
        threading.__excepthook__(fault)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """In the block, hide Beam's log, which repeats a job's messages as tracebacks; its errors are raised."""
    root = logging.getLogger()
    nowhere = logging.NullHandler()
    shown = [*root.handlers]
    for handler in shown:
        root.removeHandler(handler)
    root.addHandler(nowhere)
    threading.excepthook = _report_others
    try:
        yield
    finally:
        root.removeHandler(nowhere)
        for handler in shown:
            root.addHandler(handler)


def _check_folders(job: Job, options: Sequence[str]) -> None:
    """Refuse folders of this machine where no worker can see them; warn where one may not."""
    kind = runner_kind(options)
    if job.folders and kind == "dataflow":
        raise ConfigError(
            f"Dataflow's workers cannot read {job.folders[0]}: it is on this machine. Use gs:// for the source, "
            "--index and --out."
        )
    if job.folders and kind != "dask" and staging.environment(kind, options) == "DOCKER":
        notice(
            f"warning: workers in containers see {job.folders[0]} only if it is mounted there under the same path; "
            "use gs:// or s3://, or another --environment_type"
        )


def _clear(out: Folder) -> None:
    for folder in (FAILED, JOB):
        for name, _, _ in list(out.list(folder)):
            out.remove(name)
        if out.is_local and out.path(folder).is_dir():
            out.path(folder).rmdir()


class _Finished:
    """Which outputs of a job exist, without those that another command left: one listing of the folder."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._out = tasks[0].out
        self._wanted = {task.output for task in tasks}
        self._before = self._identities()

    def _identities(self) -> dict[str, str]:
        return {file.name: file.identity for file in self._out.list_files() if file.name in self._wanted}

    def look(self) -> set[str]:
        """The outputs that the job has finished so far."""
        return {name for name, identity in self._identities().items() if self._before.get(name) != identity}


@contextlib.contextmanager
def _watched(tasks: Sequence[Task], finished: _Finished, bar: Bar) -> Iterator[None]:
    """In the block, advance the bar for every output that appears."""
    sizes = {task.output: task.size for task in tasks}
    stop = threading.Event()

    def watch() -> None:
        pause = 1.0
        while sizes and not stop.wait(pause):
            start = time.monotonic()
            with contextlib.suppress(CurateError, OSError):  # only a look; the job itself reports errors
                for output in finished.look() & sizes.keys():
                    bar.add(sizes.pop(output))
            pause = max(1.0, 20 * (time.monotonic() - start))  # a listing of many files takes a while

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
