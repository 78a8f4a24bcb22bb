"""Run tasks on another Beam runner, whose workers must see the source and the output folder."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence

from oxe_curate.beam.graph import make_pipeline
from oxe_curate.beam.task import FAILED, Outcome, Task, Work
from oxe_curate.errors import WorkerError
from oxe_curate.progress import Bar
from oxe_curate.storage import Folder


def on_runner(tasks: Sequence[Task], work: Work, beam_args: Sequence[str], bar: Bar) -> list[Outcome]:
    """Run the pipeline on another runner; new output files advance the bar, failures are returned as files."""
    out = tasks[0].out
    _remove_failures(out)
    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(tasks, bar, stop), daemon=True)
    watcher.start()
    try:
        result = make_pipeline(tasks, work, beam_args, None).run()
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
