"""Requests to object stores: limited in number and time, repeated after failures that may pass."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import pyarrow as pa

from oxe_curate.errors import StorageError
from oxe_curate.storage.explain import explain_request, may_pass
from oxe_curate.storage.options import StoreOptions

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 20.0  # seconds
_SLOWEST = 1 << 20
"""Bytes per second: a request that moves many bytes gets as many more seconds."""
_Value = TypeVar("_Value")


def attempt(
    name: str, call: Callable[[], _Value], *, size: int = 0, patience: float = 1.0, retries: int | None = None
) -> _Value:
    """Make a request; repeat it after failures that may pass, with exponential pauses and full jitter.

    Args:
        name: of the object, for messages.
        call: makes the request; it may be called again while an earlier call still hangs.
        size: bytes that the request moves.
        retries: if not those of the options.
        patience: multiplies the time limit (a listing is many requests).

    Raises:
        StorageError: the store refused the request, or every try failed: the object, the answer, the number of tries.
    """
    options = StoreOptions.current()
    start = time.monotonic()
    retries = options.retries if retries is None else retries
    for tries in range(1, retries + 2):
        try:
            with _slots:
                return _limited(call, options.timeout * patience + size / _SLOWEST)
        except (OSError, pa.ArrowException) as error:
            if not may_pass(error):
                raise StorageError(f"{name}: {explain_request(error)}") from error
            if tries > retries:
                counted = f"{tries} tries in {time.monotonic() - start:.0f} s" if tries > 1 else "1 try"
                raise StorageError(
                    f"{name}: {explain_request(error)} ({counted}). Run the same command again: finished work is kept. "
                    "--store-retries and --store-timeout allow more tries and more time."
                ) from error
        time.sleep(random.uniform(0, min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (tries - 1))))
    raise AssertionError("unreachable")


def _limited(call: Callable[[], _Value], seconds: float) -> _Value:
    """Call in a thread that is left behind when the time is up: neither client stops in time by itself."""
    done: Future[_Value] = Future()
    threading.Thread(target=_run, args=(call, done), daemon=True).start()
    try:
        return done.result(seconds)
    except TimeoutError as error:
        if done.done():
            raise
        raise TimeoutError(f"no answer within {seconds:.3g} s") from error


def _run(call: Callable[[], _Value], done: Future[_Value]) -> None:
    try:
        done.set_result(call())
    except BaseException as error:
        done.set_exception(error)


class _Slots:
    """As many tries may be in flight as `StoreOptions.requests` says, of whatever kind."""

    def __init__(self) -> None:
        self._changed, self._used = threading.Condition(), 0

    def __enter__(self) -> None:
        with self._changed:
            while self._used >= StoreOptions.current().requests:
                self._changed.wait()
            self._used += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._used -= 1
            self._changed.notify()


_slots = _Slots()


def _after_fork() -> None:
    global _slots
    _slots = _Slots()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
