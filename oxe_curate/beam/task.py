"""A task of `filter` or `tokenize`: it makes one output file, and reports how it ended."""

from __future__ import annotations

import json
import traceback
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from oxe_curate.errors import CurateError
from oxe_curate.storage import Folder

FAILED = ".failed"
"""Folder, below the output folder, of the failures that tasks on other machines report."""


class Task(Protocol):
    """What the runner needs of a task; it must pickle."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def output(self) -> str:
        """The file it makes, relative to `out`."""

    @property
    def out(self) -> Folder:
        """Where outputs go."""

    @property
    def size(self) -> int:
        """Bytes to read, for balancing and the progress bar."""


@dataclass(frozen=True)
class Outcome:
    """How a task ended: well, by an error that the user can mend (kind and message), or by a fault (kind "")."""

    output: str
    size: int
    steps: int = 0
    kind: str | None = None
    message: str = ""


Work = Callable[[Any], Any]
"""Does one task; returns something with `steps_seen`. A module-level function, so that it pickles by name."""

_reporter: Callable[[Outcome], None] | None = None  # set in processes that the runner starts itself


def report_to(reporter: Callable[[Outcome], None] | None) -> None:
    """Hand the outcomes of this process's tasks to `reporter`; None: write failures to files, as on a remote worker."""
    global _reporter
    _reporter = reporter


def do(task: Task, work: Work) -> None:
    """Do one task and report how it ended: to this process's reporter, or to a file where there is none."""
    report = _reporter or _publish_failure(task)
    try:
        result = work(task)
    except CurateError as error:
        report(Outcome(task.output, task.size, 0, type(error).__name__, str(error)))
    except KeyboardInterrupt:
        report(Outcome(task.output, 0, 0, KeyboardInterrupt.__name__))  # Beam would make a RuntimeError of it
        raise
    except Exception:
        report(Outcome(task.output, task.size, 0, "", f"{task.name}\n{traceback.format_exc()}"))
    else:
        report(Outcome(task.output, task.size, int(getattr(result, "steps_seen", 0))))


def _publish_failure(task: Task) -> Callable[[Outcome], None]:
    def publish(outcome: Outcome) -> None:
        if outcome.kind is not None:
            name = f"{FAILED}/{zlib.crc32(task.output.encode()):08x}.json"
            task.out.publish_bytes(name, json.dumps(outcome.__dict__).encode())

    return publish
