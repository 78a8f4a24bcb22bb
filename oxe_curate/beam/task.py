"""A task of `filter` or `tokenize`: it writes one output file and reports its outcome."""

from __future__ import annotations

import json
import socket
import traceback
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from oxe_curate.errors import CurateError
from oxe_curate.storage import Folder

FAILED = ".failed"
"""Folder below the output folder, with the failures of tasks on other machines."""


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


@dataclass(frozen=True)
class Outcome:
    """Outcome of a task: success, an error that the user can fix (kind and message), or an internal error (kind "")."""

    output: str
    size: int
    steps: int = 0
    kind: str | None = None
    message: str = ""


Work = Callable[[Any], Any]
"""Runs one task; returns an object with `steps_seen`. A module-level function, so that it pickles by name."""

_reporter: Callable[[Outcome], None] | None = None  # set in processes that the runner starts


def report_to(reporter: Callable[[Outcome], None] | None) -> None:
    """Pass the outcomes of this process's tasks to `reporter`; None: write failures to files, as on a remote worker."""
    global _reporter
    _reporter = reporter


def do(task: Task, work: Work) -> None:
    """Run one task and report its outcome to this process's reporter, or to a file if there is none."""
    report = _reporter or _publish_failure(task)
    try:
        result = work(task)
    except CurateError as error:
        report(Outcome(task.output, task.size, 0, type(error).__name__, str(error)))
    except KeyboardInterrupt:
        report(Outcome(task.output, 0, 0, KeyboardInterrupt.__name__))  # Beam would turn it into a RuntimeError
        raise
    except Exception:
        report(Outcome(task.output, task.size, 0, "", f"{task.name}\n{traceback.format_exc()}"))
    else:
        report(Outcome(task.output, task.size, int(getattr(result, "steps_seen", 0))))


def _publish_failure(task: Task) -> Callable[[Outcome], None]:
    def publish(outcome: Outcome) -> None:
        if outcome.kind is not None:
            outcome = replace(outcome, message=f"{outcome.message}\n(on host {socket.gethostname()})")
            name = f"{FAILED}/{zlib.crc32(task.output.encode()):08x}.json"
            task.out.publish_bytes(name, json.dumps(outcome.__dict__).encode())

    return publish
