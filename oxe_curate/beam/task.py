"""A task of `filter` or `tokenize`: it writes one output file and reports its outcome."""

from __future__ import annotations

import errno
import hashlib
import json
import socket
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

from oxe_curate.beam.overlap import run_at_once
from oxe_curate.errors import CurateError, StorageError, WorkerError
from oxe_curate.storage import Folder, explain

FAILED = ".failed"
"""Folder below the output folder, with the failures of tasks on other machines."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class Task(Protocol):
    """The interface of a task; it must be picklable."""

    @property
    def name(self) -> str:
        """Name for messages."""

    @property
    def output(self) -> str:
        """The file that it writes, relative to `out`."""

    @property
    def out(self) -> Folder:
        """The output folder."""

    @property
    def size(self) -> int:
        """Bytes to read, for balancing and the progress bar."""


class Share:
    """Tasks that this process runs one after the other, as one element of a Beam graph; their copy is themselves.

    Beam pickles and compresses every element several times, which takes longer than a small task.
    """

    _all: ClassVar[dict[int, Share]] = {}

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = tasks
        self._all[id(self)] = self

    def __reduce__(self) -> tuple[Callable[[int], Share], tuple[int]]:
        return _share, (id(self),)

    def forget(self) -> None:
        """Free the tasks."""
        del self._all[id(self)]


def _share(number: int) -> Share:
    return Share._all[number]


@dataclass(frozen=True)
class Outcome:
    """Outcome of a task: success, an error that the user can fix (kind and message), or an internal error (kind "").

    Attributes:
        result: of a task that this machine ran, for the caller; None if it has none.
    """

    output: str
    size: int
    steps: int = 0
    kind: str | None = None
    message: str = ""
    result: Any = None


Work = Callable[[Any], Any]
"""Runs one task; returns an object with `steps_seen`, perhaps `result`. A module-level function: it pickles by name."""

_reporter: Callable[[Outcome], None] | None = None  # set in processes that the runner starts
_starting: Callable[[str], None] | None = None
_reporting = threading.Lock()  # a pipe takes one message at a time, and tasks may run in threads


def report_to(reporter: Callable[[Outcome], None] | None, starting: Callable[[str], None] | None = None) -> None:
    """Pass the outcomes of this process's tasks to `reporter`, and their names to `starting` when they start.

    None: write failures to files, as on a remote worker.
    """
    global _reporter, _starting
    _reporter, _starting = reporter, starting


def do(task: Task, work: Work) -> bool:
    """Run one task and report its outcome to this process's reporter, or to a file if there is none.

    Returns:
        whether further tasks of this process may succeed: False once the disk is full or cannot be written.

    Raises:
        RuntimeError: a failure can be neither reported nor written to a file; its text holds both errors.
    """
    publish = _reporter or _publish_failure(task)

    def report(outcome: Outcome) -> None:
        with _reporting:
            publish(outcome)

    if _starting is not None:
        with _reporting:
            _starting(task.name)
    useful = True
    try:
        result = work(task)
    except Exception as error:
        useful = not any(getattr(cause, "errno", None) in _FULL for cause in causes(error))
        report(Outcome(task.output, task.size, 0, *_explain(task, error)))
    else:
        steps = int(getattr(result, "steps_seen", 0))
        report(Outcome(task.output, task.size, steps, result=getattr(result, "result", None)))
    return useful


def do_all(tasks: Sequence[Task], work: Work, threads: int = 1) -> None:
    """Run tasks, and leave out the rest where they cannot succeed.

    They run one after the other, or as many at once as `threads` or the first one's `at_once`, if it has one, says.
    """
    count = min(max(threads, getattr(tasks[0], "at_once", 1)) if tasks else 1, len(tasks))
    if count > 1:
        try:
            return run_at_once(tasks, lambda task: do(task, work), count)
        except KeyboardInterrupt:  # while this thread waited
            if _reporter:
                _reporter(Outcome(tasks[0].output, 0, 0, KeyboardInterrupt.__name__))
            raise
    for task in tasks:
        if not do(task, work):
            break
    return None


def _explain(task: Task, error: Exception) -> tuple[str, str]:
    """Kind and message of an error: a class of `errors`, or "" for an internal error."""
    if isinstance(error, CurateError):
        return type(error).__name__, str(error)
    if any(isinstance(cause, MemoryError) or getattr(cause, "errno", None) == errno.ENOMEM for cause in causes(error)):
        return WorkerError.__name__, f"{task.name}: out of memory. Use fewer --workers, or a machine with more memory."
    if isinstance(error, OSError) and error.errno:
        where = f"{error.filename}: " if error.filename else ""
        return StorageError.__name__, f"{task.name}: {where}{explain(error)}"
    return "", f"{task.name}\n{''.join(traceback.format_exception(error))}"


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception, and what it was raised from or while handling."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _publish_failure(task: Task) -> Callable[[Outcome], None]:
    def publish(outcome: Outcome) -> None:
        if outcome.kind is None:
            return
        named = replace(outcome, message=f"{outcome.message}\n(on host {socket.gethostname()})")
        name = f"{FAILED}/{hashlib.blake2b(task.output.encode(), digest_size=16).hexdigest()}.json"
        try:
            task.out.publish_bytes(name, json.dumps(named.__dict__).encode())
        except CurateError as error:  # the runner reports it, and may try the task again
            raise RuntimeError(f"{task.name}: {outcome.message}\nThis could not be written down: {error}") from None

    return publish
