"""Run several tasks of a worker at once, in threads: tasks that mostly wait for an object store, or work in C."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

_BYTES = 1 << 30
"""Bytes of input of the tasks that run at once: as much memory as they may take."""
_GOODBYE = 2.0  # seconds for threads to end after Ctrl+C

_SWITCH = 0.0003
"""Seconds after which a thread that computes lets another one go on (Python's default: 5 ms). Those that make requests
need the interpreter several times for each, and would wait for all that compute every time."""


class Sized(Protocol):
    """A task, as far as its size matters."""

    @property
    def size(self) -> int:
        """Bytes to read."""


_Task = TypeVar("_Task", bound=Sized)


def _held(task: Sized) -> int:
    """Bytes of memory that a task takes: its own estimate, if it has one."""
    return int(getattr(task, "held", task.size))


def run_at_once(tasks: Sequence[_Task], run: Callable[[_Task], bool], count: int) -> None:
    """Run tasks in `count` threads, in order; after the first for which `run` returns False, start no more.

    Raises:
        BaseException: the first that `run` raised, once the tasks that had been started have ended; KeyboardInterrupt
            at once.
    """
    waiting, changed = deque(tasks), threading.Condition()
    ends = [threading.Event() for _ in range(min(count, len(tasks)))]
    used = 0
    raised: list[BaseException] = []

    def work() -> None:
        nonlocal used
        while True:
            with changed:
                while waiting and used and used + _held(waiting[0]) > _BYTES:
                    changed.wait()
                if not waiting:
                    return
                task = waiting.popleft()
                used += _held(task)
            useful = False
            try:
                useful = run(task)
            except BaseException as error:
                raised.append(error)
            with changed:
                used -= _held(task)
                if not useful:
                    waiting.clear()
                changed.notify_all()

    def work_to_end(end: threading.Event) -> None:
        try:
            work()
        finally:
            end.set()

    threads = [threading.Thread(target=work_to_end, args=(end,), daemon=True) for end in ends]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(min(interval, _SWITCH))
    try:
        for thread in threads:
            thread.start()
        for end in ends:  # Python 3.11 takes a thread for ended once its join was interrupted
            end.wait()
    except KeyboardInterrupt:
        _end(threads, ends)
        raise
    finally:
        sys.setswitchinterval(interval)
    if raised:
        raise raised[0]


def _end(threads: Sequence[threading.Thread], ends: Sequence[threading.Event]) -> None:
    """Raise SystemExit in the threads, so that they remove their temporary files, and give them a moment for it."""
    for thread in threads:
        if thread.ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
    deadline = time.monotonic() + _GOODBYE
    for end in ends:
        end.wait(max(deadline - time.monotonic(), 0))
