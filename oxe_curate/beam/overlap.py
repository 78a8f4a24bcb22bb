"""Run several tasks of a worker at once, in threads: tasks that mostly wait for an object store."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

_BYTES = 1 << 30
"""Bytes of input of the tasks that run at once: as much memory as they may take."""


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

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(count, len(tasks)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if raised:
        raise raised[0]
