"""What is normal for a task: episodes compared with those of the same instruction, or with all where those are few."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from oxe_curate.arrays import Floats

_MANY, _SOME, _FEW = 8, 5, 3
"""Episodes of a task: enough to be compared with each other only, hardly enough, and enough for a usual value."""


def task_of(text: str) -> int:
    """A number for the instruction, whatever its case, spaces and final stop are."""
    return zlib.crc32(" ".join(text.lower().split()).rstrip(".").encode())


def episodes_by_task(task: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """The episodes of each task, in order."""
    order = np.argsort(task, kind="stable")
    if len(order):
        yield from np.split(order, np.flatnonzero(np.diff(task[order])) + 1)


def normal(peers: Floats, least: Floats) -> tuple[Floats, Floats]:
    """(F,) each: the median and the robust standard deviation of peers (n, F), larger where few make it uncertain."""
    low, middle, high = np.quantile(peers, (0.2, 0.5, 0.8), axis=0)
    near = 1.4826 * np.median(np.abs(peers - middle), axis=0)
    return middle, np.maximum(np.maximum(near, (high - low) / 1.68), least) * (1 + 4 / len(peers))


def deviations(
    values: Floats, task: NDArray[np.int64], least: Floats, peers: NDArray[np.bool_] | None = None
) -> Floats:
    """How many robust standard deviations values are above the median of their task's, negative below.

    Args:
        values: (n, F).
        task: (n,), numbers of tasks.
        least: (F,), the smallest deviation that counts as one.
        peers: bool (n,), the episodes that say what is normal; all if it is None.

    Returns:
        (n, F). An episode of a rare task is compared with the whole data set, and, where its task has another usual
        value, with that: the smaller deviation counts.
    """
    known = np.ones(len(task), bool) if peers is None else peers
    out = np.zeros_like(values)
    if known.sum() < _MANY:
        return out
    middle, spread = normal(values[known], least)
    parts = list(episodes_by_task(task))
    lone = sum(len(part) for part in parts if len(part) < _FEW) < 0.5 * len(task)
    for part in parts:
        own = values[part[known[part]]]
        far = (values[part] - middle) / spread
        if len(own) >= _FEW:
            apart = (values[part] - np.median(own, axis=0)) / spread
            far = np.sign(apart) * np.minimum(np.abs(far), np.abs(apart))
        elif lone:
            far = far / 2  # the only episode of its task may differ from the others' tasks
        if len(own) >= _SOME:
            usual, width = normal(own, least)
            near = (values[part] - usual) / width
            far = near if len(own) >= _MANY else np.where(np.abs(near) > np.abs(far), near, far)
        out[part] = far
    return out
