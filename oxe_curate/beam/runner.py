"""Run a list of tasks through one Beam ParDo: locally on all cores, or on another Beam runner.

A task writes one output file and is safe to repeat.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from oxe_curate import errors
from oxe_curate.beam import elsewhere, local
from oxe_curate.beam import options as beam_options
from oxe_curate.beam.task import Outcome, Task, Work
from oxe_curate.errors import CurateError
from oxe_curate.lock import check_locks
from oxe_curate.progress import Bar
from oxe_curate.storage import Folder


def run_tasks(
    tasks: Sequence[Task],
    work: Work,
    *,
    title: str,
    workers: int | None = None,
    bytes_per_worker: int = 256 << 20,
    threads: int = 1,
    beam_args: Sequence[str] = (),
    progress: bool = True,
) -> dict[str, Any]:
    """Run every task; return when all outputs exist: output -> the task's `result`, of those that this machine ran.

    Args:
        tasks: in the order in which to run them.
        work: runs one of them.
        title: of the progress bar.
        workers: processes on this machine; None: one per core, limited by `bytes_per_worker`.
        bytes_per_worker: bytes to read that justify one more process.
        threads: tasks that a process runs at once, if `workers` is None: of tasks that spend their time in C.
        beam_args: Beam's own options; `--runner=...` selects another runner.
        progress: whether to show a progress bar (only if stderr is a terminal).

    Raises:
        CurateError: the first error that the user can fix, with the number of further ones; the other tasks were run,
            unless the disk is full. ConfigError: another command has taken over the output folder meanwhile.
        WorkerError: a worker process was killed.
        RuntimeError: an internal error, with the worker's traceback.
    """
    beam_options.check_beam_options(beam_args)
    if not tasks:
        return {}
    out = tasks[0].out
    total = sum(task.size for task in tasks)
    skipped = 0
    with Bar(title, total, enabled=progress) as bar:
        if not beam_options.is_here(beam_args):
            outcomes = elsewhere.on_runner(tasks, work, beam_args, bar)
        else:
            each = min(threads, usable_cores()) if workers is None else 1
            most = -(-min(usable_cores(), len(tasks)) // each)
            count = min(workers, len(tasks)) if workers else max(1, min(most, total // bytes_per_worker))
            if count == 1:
                outcomes = local.in_process(tasks, work, bar, beam_args, each)
            else:
                outcomes = local.in_processes(tasks, work, count, bar, beam_args, each)
            skipped = len(tasks) - len(outcomes)
    _raise_failures([o for o in outcomes if o.kind is not None], out, len(tasks), skipped)
    check_locks()
    return {o.output: o.result for o in outcomes if o.kind is None and o.result is not None}


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _raise_failures(failures: Sequence[Outcome], out: Folder, total: int, skipped: int) -> None:
    if not failures:
        return
    faults = [f for f in failures if not f.kind]
    if faults:
        raise RuntimeError(faults[0].message)
    first = min(failures, key=lambda f: f.output)
    more = f"\n… and {len(failures) - 1} more of {total} tasks failed." if len(failures) > 1 else ""
    more += f"\n{skipped} of {total} tasks were not started, since they would fail too." if skipped else ""
    kind = getattr(errors, str(first.kind), CurateError)
    raise kind(f"{first.message}{more}\nFinished files are kept in {out}; run the same command again afterwards.")
