"""Requests to object stores: limited in time, repeated after failures that may pass, several at once."""

from __future__ import annotations

import os
import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

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


class _Workers:
    """Threads that make requests; as many as `StoreOptions.requests` allows. They do not keep the process alive."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = self._idle = 0

    def submit(self, call: Callable[[], _Value]) -> Future[_Value]:
        done: Future[_Value] = Future()
        self._waiting.put((call, done))
        with self._lock:
            if self._idle < self._waiting.qsize() and self._threads < StoreOptions.current().requests:
                self._threads += 1
                threading.Thread(target=self._work, daemon=True, name="store-request").start()
        return done

    def _work(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
            call, done = self._waiting.get()
            with self._lock:
                self._idle -= 1
            _run(call, done)
            del call, done


_workers = _Workers()


def submit(call: Callable[[], _Value]) -> Future[_Value]:
    """Call in one of this process's request threads; `call` must not wait for another `submit`."""
    return _workers.submit(call)


def all_at_once(calls: Sequence[Callable[[], _Value]]) -> list[_Value]:
    """The results of several calls, made at once as far as `StoreOptions.requests` allows; raises the first error."""
    if len(calls) == 1:
        return [calls[0]()]
    return [future.result() for future in [submit(call) for call in calls]]


def _after_fork() -> None:
    global _workers
    _workers = _Workers()  # a forked process has none of the threads


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
