"""Run tasks on this machine: in a plain loop in this process or in several, or through Beam's FnApiRunner.

Beam runs them only if its options are given: a loop needs no runner, and Beam's import takes a second per process.
FnApiRunner's multi-process mode takes seconds to start and hangs when a worker is killed, and Beam's default runner
looks for a server on the network first. Each worker has a pipe of its own, so that one that is killed while it reports
leaves the others alone; its end is the end of the pipe. Workers end when the command does (`process.end_with_parent`).
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from typing import Any

from oxe_curate.beam import options as beam_options
from oxe_curate.beam.graph import make_pipeline
from oxe_curate.beam.task import Outcome, Share, Task, Work, causes, do_all, report_to
from oxe_curate.errors import CurateError, WorkerError
from oxe_curate.process import end_with_parent
from oxe_curate.progress import Bar

_SILENCE = 600.0  # seconds without a finished task until the user hears which ones are running
_GOODBYE = 10.0  # seconds for the system to end a killed worker


def _run_here(tasks: Sequence[Task], work: Work, beam_args: Sequence[str], threads: int) -> None:
    """Run the tasks in this process."""
    if not beam_args:
        do_all(tasks, work, threads)
        return
    from oxe_curate.beam.fn import FnApiRunner

    name = beam_options.runner_name(beam_args)
    local_args = [a for a in beam_args if a not in ("--runner", name, f"--runner={name}")]
    share = Share(tasks)
    try:
        make_pipeline([share], work, local_args, FnApiRunner()).run().wait_until_finish()
    finally:
        share.forget()


def in_process(
    tasks: Sequence[Task], work: Work, bar: Bar, beam_args: Sequence[str], threads: int = 1
) -> list[Outcome]:
    """Run the tasks in this process, `threads` of them at once; return their outcomes."""
    outcomes: list[Outcome] = []

    def report(outcome: Outcome) -> None:
        outcomes.append(outcome)
        bar.add(outcome.size, outcome.steps)

    report_to(report)
    try:
        _run_here(tasks, work, beam_args, threads)
    except RuntimeError as error:
        for cause in causes(error):
            if isinstance(cause, KeyboardInterrupt):  # Beam turns it into a RuntimeError
                raise cause from None
        raise
    finally:
        report_to(None)
    return outcomes


def start_workers_early(module: str) -> None:
    """Start importing `module` in the server that worker processes are forked from, while the caller plans."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([module])
        from multiprocessing import forkserver

        with _without_signals():
            forkserver.ensure_running()


@contextmanager
def _without_signals() -> Iterator[None]:
    """Processes started in the block never get Ctrl+C, which a terminal sends to all of them; the command gets it."""
    resource_tracker.ensure_running()  # its start unblocks signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass
class _Worker:
    """A worker process, the end of its pipe, and what it is doing."""

    process: Any
    reports: Any
    task: str = ""
    since: float = 0.0
    done: bool = False


def in_processes(
    tasks: Sequence[Task], work: Work, workers: int, bar: Bar, beam_args: Sequence[str], threads: int = 1
) -> list[Outcome]:
    """Run the tasks in worker processes, `threads` of them at once in each; return their outcomes.

    Raises:
        WorkerError: a worker was killed; the others are ended.
        RuntimeError: an internal error in a worker outside its tasks; the others are ended.
    """
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context: Any = multiprocessing.get_context(method)
    started: list[_Worker] = []
    outcomes: list[Outcome] = []
    try:
        for share in _balance(tasks, workers):
            reports, sender = context.Pipe(duplex=False)
            # a daemon, so that nothing waits for it if this process fails here
            process = context.Process(
                target=_work_through, args=(share, work, tuple(beam_args), threads, sender), daemon=True
            )
            started.append(_Worker(process, reports))
            with _without_signals():
                process.start()
            sender.close()
        for outcome in _collect(started, len(tasks)):
            outcomes.append(outcome)
            bar.add(outcome.size, outcome.steps)
    finally:
        for worker in started:
            if worker.process.pid is not None and not worker.done:
                worker.process.kill()  # nothing is lost: a file appears complete or not at all
        for worker in started:
            if worker.process.pid is not None:
                worker.process.join(_GOODBYE)
            worker.reports.close()
        if not all(worker.done for worker in started):
            with suppress(CurateError):  # the next run removes what cannot be removed now
                tasks[0].out.sweep()
    return outcomes


def _collect(workers: Sequence[_Worker], total: int) -> Iterator[Outcome]:
    """Yield the outcomes as they arrive, until every worker is done."""
    finished, heard = 0, time.monotonic()
    while open_ := {worker.reports: worker for worker in workers if not worker.done}:
        for reports in connection.wait(list(open_), timeout=_SILENCE):
            worker = open_[reports]
            try:
                kind, value = worker.reports.recv()
            except (EOFError, OSError):
                worker.process.join(_GOODBYE)
                raise _killed(worker, finished, total) from None
            if kind == "fault":
                raise RuntimeError(value)
            if kind == "end":
                worker.done = True
            elif kind == "start":
                worker.task, worker.since = value, time.monotonic()
            else:
                finished, heard = finished + 1, time.monotonic()
                yield value
        if time.monotonic() - heard > _SILENCE:
            heard = time.monotonic()
            _tell_silence(list(open_.values()), heard)


def _tell_silence(workers: Sequence[_Worker], now: float) -> None:
    """Say what each worker is doing: a slow task cannot be distinguished from one that hangs, so the user decides."""
    lines = [f"  process {w.process.pid}: {w.task or 'starting'}, for {(now - w.since) / 60:.0f} min" for w in workers]
    print(
        f"no task has finished for {_SILENCE / 60:.0f} minutes. Running:\n" + "\n".join(lines) + "\nTo end one: "
        "kill PID; the command then stops, keeps finished files, and continues when it is run again.",
        file=sys.stderr, flush=True,
    )  # fmt: skip


def _killed(worker: _Worker, finished: int, total: int) -> WorkerError:
    code = worker.process.exitcode
    cause = {
        -signal.SIGKILL: "was killed (out of memory, or by a user)",
        -signal.SIGBUS: "was killed by SIGBUS: a file that it was reading was truncated, or the disk failed",
        None: "closed its pipe",
    }.get(code, f"was killed by {signal.Signals(-code).name}" if code and code < 0 else f"ended with code {code}")
    doing = f" while it worked on {worker.task}" if worker.task else ""
    return WorkerError(
        f"a worker process {cause}{doing}, after {finished} of {total} tasks. Finished files are kept: run the same "
        "command again, with fewer --workers if memory is low."
    )


def _balance(tasks: Sequence[Task], workers: int) -> list[list[Task]]:
    """Assign the largest tasks first, each to the worker with the fewest bytes."""
    shares: list[list[Task]] = [[] for _ in range(workers)]
    loads = [0] * workers
    for task in sorted(tasks, key=lambda t: -t.size):
        least = loads.index(min(loads))
        shares[least].append(task)
        loads[least] += max(task.size, 1)
    return [share for share in shares if share]


def _work_through(tasks: list[Task], work: Work, beam_args: tuple[str, ...], threads: int, sender: Any) -> None:
    """Run a share of the tasks in a worker process."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    logging.disable(logging.WARNING)
    report_to(lambda outcome: sender.send(("done", outcome)), lambda name: sender.send(("start", name)))
    try:
        _run_here(tasks, work, beam_args, threads)
    except Exception:
        sender.send(("fault", traceback.format_exc()))
    else:
        sender.send(("end", None))
