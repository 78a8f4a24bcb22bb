"""Run tasks on this machine: each worker process runs Beam's FnApiRunner on its share of them.

FnApiRunner's multi-process mode takes seconds to start and hangs when a worker is killed, and Beam's default runner
looks for a server on the network first. A dead worker is detected, and finished files are kept.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from oxe_curate.beam import options as beam_options
from oxe_curate.beam.graph import make_pipeline
from oxe_curate.beam.task import Outcome, Task, Work, report_to
from oxe_curate.errors import WorkerError
from oxe_curate.progress import Bar

_POLL = 0.2


def _run_here(tasks: Sequence[Task], work: Work, beam_args: Sequence[str]) -> None:
    from oxe_curate.beam.fn import FnApiRunner

    name = beam_options.runner_name(beam_args)
    local_args = [a for a in beam_args if a not in ("--runner", name, f"--runner={name}")]
    make_pipeline(tasks, work, local_args, FnApiRunner()).run().wait_until_finish()


def in_process(tasks: Sequence[Task], work: Work, bar: Bar, beam_args: Sequence[str]) -> list[Outcome]:
    """Run the tasks one after the other in this process; return their outcomes."""
    outcomes: list[Outcome] = []

    def report(outcome: Outcome) -> None:
        outcomes.append(outcome)
        bar.add(outcome.size, outcome.steps)

    report_to(report)
    try:
        _run_here(tasks, work, beam_args)
    except RuntimeError:
        if any(outcome.kind == KeyboardInterrupt.__name__ for outcome in outcomes):
            raise KeyboardInterrupt from None
        raise
    finally:
        report_to(None)
    return outcomes


def start_workers_early(module: str) -> None:
    """Start importing `module` in the server that worker processes are forked from, while the caller plans."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["oxe_curate.beam.fn", module])
        from multiprocessing import forkserver

        forkserver.ensure_running()


def _context() -> Any:
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    return multiprocessing.get_context(method)


def in_processes(tasks: Sequence[Task], work: Work, workers: int, bar: Bar, beam_args: Sequence[str]) -> list[Outcome]:
    """Run the tasks in worker processes; return their outcomes. Raises WorkerError if one was killed."""
    context = _context()
    reports = context.SimpleQueue()
    outcomes: list[Outcome] = []
    shares = _balance(tasks, workers)
    with ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(reports,)) as pool:
        futures = [pool.submit(_work_through, share, work, tuple(beam_args)) for share in shares]
        try:
            while True:
                done, pending = wait(futures, timeout=_POLL)
                _drain(reports, outcomes, bar)
                for future in done:
                    future.result()
                if not pending:
                    break
        except BrokenProcessPool:
            finished = len(outcomes)
            raise WorkerError(
                f"a worker process was killed after {finished} of {len(tasks)} tasks (out of memory, or by a user). "
                "Finished files are kept: run the same command again, with fewer --workers if memory is low."
            ) from None
        except BaseException:
            _stop(pool, futures)
            raise
        _drain(reports, outcomes, bar)
    return outcomes


def _drain(reports: Any, outcomes: list[Outcome], bar: Bar) -> None:
    while not reports.empty():
        outcome = reports.get()
        outcomes.append(outcome)
        bar.add(outcome.size, outcome.steps)


def _stop(pool: ProcessPoolExecutor, futures: Sequence[Future[None]]) -> None:
    for future in futures:
        future.cancel()
    for process in list((pool._processes or {}).values()):  # there is no public way to stop a running worker
        process.terminate()


def _balance(tasks: Sequence[Task], workers: int) -> list[list[Task]]:
    """Assign the largest tasks first, each to the worker with the fewest bytes."""
    shares: list[list[Task]] = [[] for _ in range(workers)]
    loads = [0] * workers
    for task in sorted(tasks, key=lambda t: -t.size):
        least = loads.index(min(loads))
        shares[least].append(task)
        loads[least] += max(task.size, 1)
    return [share for share in shares if share]


def _start_worker(reports: Any) -> None:
    report_to(reports.put)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it
    logging.disable(logging.WARNING)


def _work_through(tasks: list[Task], work: Work, beam_args: tuple[str, ...]) -> None:
    _run_here(tasks, work, beam_args)
