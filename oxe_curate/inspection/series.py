"""Columns of step keys as float64 series, and how two of them relate: correlation, gain, lag.

Every function is plain numpy on lists of arrays, one (T, C) array per episode. Rows with NaN or infinity are ignored.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oxe_curate.arrays import Floats

Episodes = Sequence[Mapping[str, NDArray[Any]]]
"""Episodes as step dicts: flat key ("observation/state") -> array with time first."""

WIDEST = 64
"""Most numbers per step of a state or an action; a wider float feature is an embedding or a map."""


@dataclass(frozen=True, slots=True, order=True)
class Columns:
    """Columns [start, stop) of a step key; a feature with only the time axis has one column."""

    key: str
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        return f"{self.key}[{self.start}]" if len(self) == 1 else f"{self.key}[{self.start}:{self.stop}]"

    def of(self, steps: Mapping[str, NDArray[Any]]) -> Floats:
        """The columns of one episode, float64 (T, stop - start)."""
        return as_columns(steps[self.key])[:, self.start : self.stop]

    def overlaps(self, other: Columns | None) -> bool:
        """Whether the two share a column."""
        return (
            other is not None and self.key == other.key and self.start < other.stop and other.start < self.stop
        )  # fmt: skip

    def one_by_one(self) -> list[Columns]:
        """Each column separately."""
        return [Columns(self.key, c, c + 1) for c in range(self.start, self.stop)]


def as_columns(array: NDArray[Any]) -> Floats:
    """A step feature as float64 (T, C)."""
    return np.asarray(array, np.float64).reshape(len(array), math.prod(array.shape[1:]))


def number_keys(episodes: Episodes, start: str) -> list[Columns]:
    """All columns of each numeric feature whose key begins with `start` and that has at most `WIDEST` columns."""
    found = []
    for key, array in (episodes[0] if episodes else {}).items():
        width = int(np.prod(array.shape[1:], dtype=int))
        if key.startswith(start) and array.dtype.kind in "fiu" and array.ndim <= 2 and 0 < width <= WIDEST:
            found.append(Columns(key, 0, width))
    return sorted(found)


def unwrap(x: Floats) -> Floats:
    """Remove an angle's jumps of a full turn, in radians or degrees depending on the column's range.

    Positions in metres are unchanged: they do not jump by half a turn in one step.
    """
    out = x.copy()
    for c, column in enumerate(x.T):
        largest = np.abs(column[np.isfinite(column)]).max(initial=0.0)
        period = 2 * np.pi if largest <= 2 * np.pi + 0.01 else 360.0 if largest <= 360.5 else None
        if period and np.isfinite(column).all():
            out[:, c] = np.unwrap(column, period=period)
    return out


def displacements(actions: Iterable[Floats], states: Iterable[Floats], window: int, lag: int) -> tuple[Floats, Floats]:
    """Sums of `window` actions, and the displacement of the state over the same steps, `lag` steps later.

    Returns:
        (n, A) sums a[t] + ... + a[t + window - 1], and (n, S) differences s[t + lag + window] - s[t + lag], of all
        episodes. Unlike single steps, sums over a few steps tolerate a controller that follows late.
    """
    sums, moves = [], []
    for action, state in zip(actions, states, strict=True):
        count = len(action) - window - lag
        if count > 0:
            sums.append(np.lib.stride_tricks.sliding_window_view(action, window, axis=0).sum(axis=-1)[:count])
            moves.append((state[window:] - state[:-window])[lag : lag + count])
    return _finite(sums, moves)


def levels(
    actions: Iterable[Floats], states: Iterable[Floats], lag: int, *, centre: bool = True
) -> tuple[Floats, Floats]:
    """Each action and the state `lag` steps later; with `centre`, both minus their mean over the episode."""
    left, right = [], []
    for action, state in zip(actions, states, strict=True):
        if len(action) - lag > 1:
            a, s = action[: len(action) - lag], state[lag:]
            left.append(a - a.mean(axis=0) if centre else a)
            right.append(s - s.mean(axis=0) if centre else s)
    return _finite(left, right)


def _finite(left: list[Floats], right: list[Floats]) -> tuple[Floats, Floats]:
    if not left:
        return np.empty((0, 0)), np.empty((0, 0))
    x, y = np.concatenate(left), np.concatenate(right)
    good = np.isfinite(x).all(axis=1) & np.isfinite(y).all(axis=1)
    return x[good], y[good]


def varies(x: Floats) -> NDArray[np.bool_]:
    """bool (C,): which columns are not constant, beyond rounding in float32."""
    if len(x) == 0:
        return np.zeros(x.shape[1], bool)
    spread = np.ptp(x, axis=0)
    constant: NDArray[np.bool_] = spread <= 1e-6 * np.abs(x).max(axis=0) + 1e-9
    return ~constant


def correlation(x: Floats, y: Floats) -> Floats:
    """Pearson's r of each column of x (n, A) with each of y (n, B): (A, B), 0 if a column is constant."""
    if len(x) < 3:
        return np.zeros((x.shape[1], y.shape[1]))
    dx, dy = x - x.mean(axis=0), y - y.mean(axis=0)
    norms = np.outer(np.sqrt((dx * dx).sum(axis=0)), np.sqrt((dy * dy).sum(axis=0)))
    both = np.outer(varies(x), varies(y))
    r: Floats = np.divide(dx.T @ dy, norms, out=np.zeros_like(norms), where=both & (norms > 0))
    return r


def gain(x: Floats, y: Floats) -> float:
    """The least-squares factor g of y = g x over all columns; 0 if x is zero."""
    power = float((x * x).sum())
    return float((x * y).sum()) / power if power > 0 else 0.0


def window_for(episodes: Episodes) -> int:
    """Steps to sum over: a quarter of a typical episode, 1 to 10."""
    lengths = [len(next(iter(steps.values()))) for steps in episodes if steps]
    return int(np.clip(np.median(lengths) // 4, 1, 10)) if lengths else 1


def pooled(episodes: Episodes, columns: Columns) -> Floats:
    """The columns of all episodes, concatenated; only finite rows."""
    x = np.concatenate([columns.of(steps) for steps in episodes]) if episodes else np.empty((0, len(columns)))
    out: Floats = x[np.isfinite(x).all(axis=1)]
    return out
