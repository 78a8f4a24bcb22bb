"""Wait for a job on other machines, but never without limit for an answer, and never in silence for workers."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from oxe_curate.beam.options import Patience
from oxe_curate.errors import WorkerError

AGAIN = "Finished files are kept: run the same command again to continue."
_POLL = 0.5  # seconds between looks at the job
_NOTED = 10.0  # seconds without a worker before the user is informed
_PULSE = 3.0  # seconds between questions to the scheduler or job server

Ask = Callable[[], int | None]
"""Asks the scheduler or job server how it is; returns the number of workers, None if there are some."""


def wait_for(result: Any, ask: Ask, name: str, patience: Patience) -> None:
    """Return when a Beam job is done.

    Args:
        result: Beam's PipelineResult.
        ask: fails or does not return if the scheduler or job server does not answer.
        name: of the scheduler or job server, for messages.
        patience: how long to wait for an answer, and for workers.

    Raises:
        WorkerError: the job ended in another state than DONE, nobody answers, or there are no workers.
        Exception: whatever the runner raises.
    """
    ended, outcome = threading.Event(), _Outcome()

    def finish() -> None:
        try:
            outcome.state = str(result.wait_until_finish() or "DONE")
        except BaseException as error:  # raised again below, in the main thread
            outcome.error = error
        ended.set()

    threading.Thread(target=finish, daemon=True).start()
    pulse = _Pulse(ask)
    idle, noted = 0.0, False
    try:
        while not ended.wait(_POLL):
            now = time.monotonic()
            if now - pulse.heard > patience.answer:
                raise WorkerError(
                    f"{name} has not answered for {patience.answer:.0f} s (stopped, or the network is down). {AGAIN} "
                    "-- --wait_for_answer=SECONDS sets the limit."
                )
            if pulse.workers != 0:
                idle = 0.0
                continue
            if not idle:
                idle, noted = now, False
            if not noted and now - idle > min(_NOTED, patience.workers / 2):
                noted = True
                notice(
                    f"waiting for workers: {name} has none; ends after {patience.workers:.0f} s (--wait_for_workers)"
                )
            if now - idle > patience.workers:
                raise WorkerError(
                    f"{name} has had no worker for {patience.workers:.0f} s. Start workers. {AGAIN} "
                    "-- --wait_for_workers=SECONDS sets the limit."
                )
    finally:
        pulse.stop()
    if outcome.error is not None:
        raise outcome.error
    if outcome.state not in ("DONE", "UNKNOWN"):
        raise WorkerError(f"{name}: the job ended in state {outcome.state}. {AGAIN}")


class _Outcome:
    state = ""
    error: BaseException | None = None


class _Pulse:
    """Asks in a thread of its own, since a question to a stopped server may never return."""

    def __init__(self, ask: Ask) -> None:
        self.heard = time.monotonic()
        self.workers: int | None = None
        self._stop = threading.Event()
        threading.Thread(target=self._run, args=(ask,), daemon=True).start()

    def _run(self, ask: Ask) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(Exception):  # a failure counts as no answer
                self.workers = ask()
                self.heard = time.monotonic()
            self._stop.wait(_PULSE)

    def stop(self) -> None:
        self._stop.set()


def within(seconds: float, action: Callable[[], Any]) -> None:
    """Run an action that may hang or fail, such as the cancellation of a job of a server that is gone."""

    def attempt() -> None:
        with contextlib.suppress(Exception):
            action()

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)


def notice(text: str) -> None:
    """Print a line to standard error, above a progress bar if there is one."""
    tqdm.write(text, file=sys.stderr)
