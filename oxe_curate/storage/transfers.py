"""This process's transfers from object stores: ranges fetched by a bounded number of requests at once.

A range waits in a queue and is cut into requests when its turn comes: long ones while much is waiting, since a request
costs time before it sends anything, and shorter ones at the end, so that all connections end together.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from oxe_curate.storage.options import StoreOptions

_Value = TypeVar("_Value")
SHORTEST, LONGEST = 16 << 20, 32 << 20
"""Bytes of a request that is a part of a longer range."""

Fetch = Callable[[int, int], None]
"""Fetches the bytes [start, stop) of a range by one request."""


@dataclass(eq=False)
class _Transfer:
    """What is left of a range in the queue."""

    fetch: Fetch
    start: int
    stop: int
    done: Future[None] = field(default_factory=Future)
    open_: int = 1  # parts that are not finished, the one in the queue included


class _Workers:
    """Threads that make requests; as many as `StoreOptions.requests` allows. They do not keep the process alive."""

    def __init__(self) -> None:
        self._queue: deque[_Transfer] = deque()
        self._changed = threading.Condition()
        self._threads = self._idle = self._waiting = 0

    def submit(self, fetch: Fetch, length: int, first: bool) -> Future[None]:
        transfer = _Transfer(fetch, 0, length)
        with self._changed:
            (self._queue.appendleft if first else self._queue.append)(transfer)
            self._waiting += length
            limit = StoreOptions.current().requests
            requests = max(len(self._queue), self._waiting // SHORTEST)
            for _ in range(min(limit - self._threads, requests - self._idle)):
                self._threads += 1
                threading.Thread(target=self._work, daemon=True, name="store-request").start()
            self._changed.notify_all()
        return transfer.done

    def _work(self) -> None:
        while True:
            transfer, start, stop = self._next()
            error = None
            try:
                transfer.fetch(start, stop)
            except BaseException as failure:
                error = failure
            self._finish(transfer, error)
            del transfer, error

    def _next(self) -> tuple[_Transfer, int, int]:
        """The next request: the whole of the first range in the queue, or a part of it."""
        with self._changed:
            self._idle += 1
            while not self._queue:
                self._changed.wait()
            self._idle -= 1
            transfer = self._queue[0]
            share = min(max(self._waiting // max(self._threads, 1), SHORTEST), LONGEST) >> 20 << 20
            start, stop = transfer.start, transfer.stop
            if stop - start > share + share // 4:
                transfer.start = stop = start + share
                transfer.open_ += 1
            else:
                self._queue.popleft()
            self._waiting -= stop - start
            return transfer, start, stop

    def _finish(self, transfer: _Transfer, error: BaseException | None) -> None:
        with self._changed:
            transfer.open_ -= 1
            if transfer.done.done():
                return
            if error is not None:
                transfer.done.set_exception(error)
            elif not transfer.open_:
                transfer.done.set_result(None)


_workers = _Workers()


def transfer(fetch: Fetch, length: int, first: bool = False) -> Future[None]:
    """Fetch a range in this process's request threads.

    Args:
        fetch: called for parts of the range, in several threads; it must not wait for another transfer.
        length: of the range, in bytes.
        first: before everything that waits, since somebody waits for it.

    Returns:
        Done when every part was fetched, or with the first error.
    """
    return _workers.submit(fetch, length, first)


def submit(call: Callable[[], _Value], first: bool = False) -> Future[_Value]:
    """The result of one request, made in one of these threads; `call` must not wait for another transfer."""
    result: Future[_Value] = Future()

    def fetch(start: int, stop: int) -> None:
        try:
            result.set_result(call())
        except BaseException as error:
            result.set_exception(error)

    transfer(fetch, 1, first)
    return result


def transfer_all(ranges: Iterable[tuple[Fetch, int]]) -> None:
    """Fetch ranges and return when all are there; raises the first error. A single short one is fetched here."""
    listed = [(fetch, length) for fetch, length in ranges if length]
    if len(listed) == 1 and listed[0][1] <= SHORTEST:
        return listed[0][0](0, listed[0][1])
    failed = False

    def unless_failed(fetch: Fetch, start: int, stop: int) -> None:
        nonlocal failed
        try:
            if not failed:
                fetch(start, stop)
        except BaseException:
            failed = True
            raise

    begun = [transfer(partial(unless_failed, fetch), length, first=True) for fetch, length in reversed(listed)]
    for future in reversed(begun):
        future.result()
    return None


def _after_fork() -> None:
    global _workers
    _workers = _Workers()  # a forked process has none of the threads


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
