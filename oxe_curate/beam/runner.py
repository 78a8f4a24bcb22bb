"""Run a list of tasks through one Beam ParDo: locally on all cores, or on another Beam runner.

A task writes one output file and is safe to repeat. Locally, each worker process runs Beam's FnApiRunner on its share
of the tasks: its multi-process mode takes seconds to start and hangs when a worker is killed, and the default runner
looks for a server on the network first. A dead worker is detected, and finished files are kept.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from oxe_curate import errors
from oxe_curate.beam import options as beam_options
from oxe_curate.beam.task import FAILED, Outcome, Task, Work, report_to
from oxe_curate.errors import CurateError, WorkerError
from oxe_curate.progress import Bar
from oxe_curate.storage import Folder

_POLL = 0.2


def run_tasks(
    tasks: Sequence[Task],
    work: Work,
    *,
    title: str,
    workers: int | None = None,
    bytes_per_worker: int = 256 << 20,
    beam_args: Sequence[str] = (),
    progress: bool = True,
) -> None:
    """Run every task; return when all outputs exist.

    Args:
        tasks: in the order in which to run them.
        work: runs one of them.
        title: of the progress bar.
        workers: processes on this machine; None: one per core, limited by `bytes_per_worker`.
        bytes_per_worker: bytes to read that justify one more process.
        beam_args: Beam's own options; `--runner=...` selects another runner.
        progress: whether to show a progress bar (only if stderr is a terminal).

    Raises:
        CurateError: the first error that the user can fix, with the number of further ones; the other tasks were run.
        WorkerError: a worker process was killed.
        RuntimeError: an internal error, with the worker's traceback.
    """
    beam_options.check_beam_options(beam_args)
    if not tasks:
        return
    out = tasks[0].out
    total = sum(task.size for task in tasks)
    with Bar(title, total, enabled=progress) as bar:
        if beam_options.runner_name(beam_args) not in ("", "FnApiRunner", "DirectRunner", "direct"):
            outcomes = _elsewhere(tasks, work, beam_args, bar)
        else:
            count = workers or max(1, min(_cores(), len(tasks), total // bytes_per_worker))
            if min(count, len(tasks)) == 1:
                outcomes = _in_process(tasks, work, bar, beam_args)
            else:
                outcomes = _in_processes(tasks, work, min(count, len(tasks)), bar, beam_args)
    _raise_failures([o for o in outcomes if o.kind is not None], out, len(tasks))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def build_pipeline(pipeline: Any, tasks: Sequence[Task], work: Work) -> Any:
    """The Beam graph, the same on every runner: Create, Reshuffle, ParDo."""
    from oxe_curate.beam.fn import DoTask, beam

    return (
        pipeline
        | "Tasks" >> beam.Create(list(tasks))
        | "Spread" >> beam.Reshuffle()
        | "Work" >> beam.ParDo(DoTask(work))
    )


def _pipeline(tasks: Sequence[Task], work: Work, beam_args: Sequence[str], runner: Any) -> Any:
    from oxe_curate.beam.fn import PipelineOptions, beam

    # a task's error is returned as its outcome; Beam would print it a second time
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL if runner else logging.ERROR)
    pipeline = beam.Pipeline(runner=runner, options=PipelineOptions(list(beam_args)))
    build_pipeline(pipeline, tasks, work)
    return pipeline


def _run_here(tasks: Sequence[Task], work: Work, beam_args: Sequence[str]) -> None:
    from oxe_curate.beam.fn import FnApiRunner

    name = beam_options.runner_name(beam_args)
    local_args = [a for a in beam_args if a not in ("--runner", name, f"--runner={name}")]
    _pipeline(tasks, work, local_args, FnApiRunner()).run().wait_until_finish()


def _in_process(tasks: Sequence[Task], work: Work, bar: Bar, beam_args: Sequence[str]) -> list[Outcome]:
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


def _in_processes(tasks: Sequence[Task], work: Work, workers: int, bar: Bar, beam_args: Sequence[str]) -> list[Outcome]:
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


def _elsewhere(tasks: Sequence[Task], work: Work, beam_args: Sequence[str], bar: Bar) -> list[Outcome]:
    """Run the pipeline on another runner; new output files advance the bar, failures are returned as files."""
    out = tasks[0].out
    _remove_failures(out)
    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(tasks, bar, stop), daemon=True)
    watcher.start()
    try:
        result = _pipeline(tasks, work, beam_args, None).run()
        state = str(result.wait_until_finish() or "DONE")
    finally:
        stop.set()
        watcher.join()
    failures = [Outcome(**json.loads(out.read_bytes(name))) for name, _, _ in out.list(FAILED)]
    _remove_failures(out)
    missing = [t for t in tasks if not out.exists(t.output) and t.output not in {f.output for f in failures}]
    if missing and not failures:
        raise WorkerError(
            f"the runner ended ({state}), but {len(missing)} of {len(tasks)} outputs are missing, such as "
            f"{missing[0].output}. Its workers must have access to the same --out. Run the same command again: "
            "finished files are kept."
        )
    return failures


def _remove_failures(out: Folder) -> None:
    for name, _, _ in list(out.list(FAILED)):
        out.remove(name)
    if out.is_local and out.path(FAILED).is_dir():
        out.path(FAILED).rmdir()


def _watch(tasks: Sequence[Task], bar: Bar, stop: threading.Event) -> None:
    waiting = {task.output: task for task in tasks}
    pause = 1.0 if tasks[0].out.is_local else 10.0
    while waiting and not stop.wait(pause):
        for output in [name for name in waiting if tasks[0].out.exists(name)]:
            bar.add(waiting.pop(output).size)


def _raise_failures(failures: Sequence[Outcome], out: Folder, total: int) -> None:
    if not failures:
        return
    faults = [f for f in failures if not f.kind]
    if faults:
        raise RuntimeError(faults[0].message)
    first = min(failures, key=lambda f: f.output)
    more = f"\n… and {len(failures) - 1} more of {total} tasks failed." if len(failures) > 1 else ""
    kind = getattr(errors, str(first.kind), CurateError)
    raise kind(f"{first.message}{more}\nFinished files are kept in {out}; run the same command again afterwards.")


__all__ = ["build_pipeline", "run_tasks", "start_workers_early"]
