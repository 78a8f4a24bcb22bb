"""Numbers of each episode from rows of values over the steps of many: sums, extremes, runs, shifted copies.

Rows are (..., N) arrays with the steps last; `starts` is int64 (n + 1,), as in `EpisodeBatch`. No loop over episodes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from oxe_curate.arrays import Floats
from oxe_curate.quality.episodes import EpisodeBatch


def sum_each(rows: NDArray[Any], starts: NDArray[np.int64]) -> Floats:
    """float64 (..., n)."""
    out: Floats = np.add.reduceat(rows, starts[:-1], axis=-1, dtype=np.float64)
    return out


def max_each(rows: NDArray[Any], starts: NDArray[np.int64]) -> NDArray[Any]:
    """(..., n): the largest value of each episode."""
    out: NDArray[Any] = np.maximum.reduceat(rows, starts[:-1], axis=-1)
    return out


def min_each(rows: NDArray[Any], starts: NDArray[np.int64]) -> NDArray[Any]:
    """(..., n): the smallest value of each episode."""
    out: NDArray[Any] = np.minimum.reduceat(rows, starts[:-1], axis=-1)
    return out


def peak_each(row: NDArray[Any], starts: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The largest value of each episode (n,), and the step of the episode at which it is reached first (n,)."""
    top = max_each(row, starts)
    at = np.flatnonzero(row == np.repeat(top, np.diff(starts)))
    first = at[np.searchsorted(at, starts[:-1])]
    return top, first - starts[:-1]


def runs(mask: NDArray[np.bool_], starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64 (N,): for how many steps the mask has been true without a break, in the same episode; 0 where false."""
    step = np.arange(len(mask))
    broken = np.where(mask, -1, step)
    first = starts[:-1]
    broken[first] = np.where(mask[first], first - 1, first)
    return step - np.maximum.accumulate(broken)


def head_each(mask: NDArray[np.bool_], starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64 (n,): true steps at the start of each episode."""
    stops = np.append(np.flatnonzero(~mask), len(mask))
    first: NDArray[np.int64] = np.minimum(stops[np.searchsorted(stops, starts[:-1])], starts[1:])
    return first - starts[:-1]


def delayed(rows: NDArray[Any], steps: int, batch: EpisodeBatch) -> NDArray[Any]:
    """What the rows were `steps` steps before, or will be if it is negative; 0 outside the episode."""
    if steps == 0:
        return rows
    out = np.zeros_like(rows)
    if abs(steps) >= rows.shape[-1]:
        return out
    if steps > 0:
        out[..., steps:] = rows[..., :-steps]
        out[..., batch.place < steps] = 0
    else:
        out[..., :steps] = rows[..., -steps:]
        out[..., batch.left < -steps] = 0
    return out


def window_sums(rows: NDArray[Any], width: int, batch: EpisodeBatch) -> NDArray[np.float32]:
    """float32 (..., N): the sum over `width` steps from each one on, of steps that are followed by another one.

    0 where the window leaves the episode, or reaches its last step, of which nobody knows what it leads to.
    """
    if width == 1:
        return np.where(batch.left > 0, rows, np.float32(0)).astype(np.float32, copy=False)
    total = np.zeros((*rows.shape[:-1], rows.shape[-1] + 1))
    np.cumsum(rows, axis=-1, dtype=np.float64, out=total[..., 1:])
    out = np.zeros(rows.shape, np.float32)
    out[..., : rows.shape[-1] - width + 1] = total[..., width:] - total[..., :-width]
    out[..., batch.left < width] = 0
    return out
