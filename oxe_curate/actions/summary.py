"""Exact statistics of a data set's actions, in two passes and constant memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oxe_curate.errors import ConfigError, DataError

Values = NDArray[Any] | Iterable[NDArray[Any]]
"""(N, D) numbers, or blocks of them along the first axis."""

_BLOCK = 1 << 19  # rows; scratch memory is about 8 MB, and zeroing 65,536 counts is cheap in comparison
_HALF = 1 << 16


@dataclass(frozen=True, slots=True, eq=False)
class ActionSummary:
    """Statistics of (N, D) values, every array float64 (D,).

    Attributes:
        mean: summed in float64. (OpenVLA sums in float32, but does not train with the mean.)
        std: population standard deviation, in float64.
        max: largest value.
        min: smallest value.
        q01: lower quantile: that of `low`, 0.01 by default.
        q99: upper quantile: that of `high`, 0.99 by default.
    """

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    max: NDArray[np.float64]
    min: NDArray[np.float64]
    q01: NDArray[np.float64]
    q99: NDArray[np.float64]

    @property
    def width(self) -> int:
        """D, the number of dimensions."""
        return len(self.q01)


def summarize(values: Values, low: float = 0.01, high: float = 0.99) -> tuple[ActionSummary, int]:
    """Return the statistics of `values`, cast to float32, and the number of rows.

    The quantiles are exact: `np.quantile(values, np.array([low, high]), axis=0)` on float32, bit for bit. (It
    interpolates linearly; the difference of the two neighbours is taken in float32, the rest in float64.)
    Nothing is sorted: the 32 bits of a value map to an integer of the same order; the first pass counts the upper 16
    bits, the second the lower 16 bits of the values whose upper bits are those of a quantile.

    Args:
        values: (N, D) array, or an iterable of (n, D) blocks, which is read twice; an iterator, which can be read only
            once, is kept in memory.
        low: probability of the lower quantile.
        high: probability of the upper quantile.

    Raises:
        ConfigError: not 0 <= low < high <= 1.
        DataError: no rows, blocks of different widths, or a value that is not finite.
    """
    if not 0 <= low < high <= 1:
        raise ConfigError(f"bounds: expected 0 <= low < high <= 1, got low {low} and high {high}")
    if isinstance(values, np.ndarray):
        chunks: Iterable[NDArray[Any]] = [values]
    else:
        chunks = list(values) if isinstance(values, Iterator) else values

    first = _count_upper(chunks)
    mean = first.total / first.count
    places = [_place(first.count, q) for q in (low, high)]
    ranks = sorted({rank for before, after, _ in places for rank in (before, after)})
    tops = [np.searchsorted(np.cumsum(upper), ranks, side="right").tolist() for upper in first.upper]
    lower, squares = _count_lower(chunks, tops, mean, first.count)

    quantiles = np.empty((2, len(mean)))
    for d, upper in enumerate(first.upper):
        value = {r: _value(upper, top, lower[d][top], r) for r, top in zip(ranks, tops[d], strict=True)}
        for row, (before, after, weight) in enumerate(places):
            quantiles[row, d] = _between(value[before], value[after], weight)
    std = np.sqrt(squares / first.count)
    return ActionSummary(mean, std, first.greatest, first.least, quantiles[0], quantiles[1]), first.count


@dataclass(frozen=True, slots=True, eq=False)
class _FirstPass:
    count: int
    total: NDArray[np.float64]  # (D,)
    least: NDArray[np.float64]
    greatest: NDArray[np.float64]
    upper: NDArray[np.int64]  # (D, 65536)


def _count_upper(chunks: Iterable[NDArray[Any]]) -> _FirstPass:
    blocks = _blocks(chunks)
    head = next(blocks, None)
    if head is None:
        raise DataError("there are no steps to compute statistics of")
    width, count = len(head[1]), 0
    total, least, greatest = np.zeros(width), np.full(width, np.inf), np.full(width, -np.inf)
    upper = np.zeros((width, _HALF), np.int64)
    for start, columns in itertools.chain([head], blocks):
        if len(columns) != width:
            raise DataError(f"row {start}: expected {width} dimensions, as in the rows before it, got {len(columns)}")
        np.minimum(least, columns.min(axis=1), out=least)
        np.maximum(greatest, columns.max(axis=1), out=greatest)
        if not (np.isfinite(least).all() and np.isfinite(greatest).all()):
            d, row = np.argwhere(~np.isfinite(columns))[0]
            raise DataError(
                f"row {start + row}, dimension {d} is {columns[d, row]}; drop such episodes (criterion not_finite)"
            )
        total += columns.sum(axis=1, dtype=np.float64)
        for d, column in enumerate(columns):
            upper[d] += np.bincount(_ordered(column) >> 16, minlength=_HALF)
        count += columns.shape[1]
    return _FirstPass(count, total, least, greatest, upper)


def _count_lower(
    chunks: Iterable[NDArray[Any]], tops: list[list[int]], mean: NDArray[np.float64], count: int
) -> tuple[list[dict[int, NDArray[np.int64]]], NDArray[np.float64]]:
    """Return per dimension {upper half: counts of the lower half}, and the sums of squared deviations."""
    lower = [{top: np.zeros(_HALF, np.int64) for top in row} for row in tops]
    squares = np.zeros(len(mean))
    seen = 0
    for _, columns in _blocks(chunks):
        for d, column in enumerate(columns):
            deviation = column - mean[d]
            squares[d] += np.square(deviation).sum()  # a product would depend on BLAS and its threads
            key = _ordered(column)
            upper = key >> 16
            for top, counts in lower[d].items():
                counts += np.bincount(key[upper == top] & (_HALF - 1), minlength=_HALF)
        seen += columns.shape[1]
    if seen != count:
        raise ValueError(f"the blocks gave {count} rows when read first and {seen} when read again")
    return lower, squares


def _blocks(chunks: Iterable[NDArray[Any]]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield (first row, contiguous float32 (D, n)) with n at most `_BLOCK`."""
    first = 0
    for chunk in chunks:
        if chunk.ndim != 2:
            raise DataError(f"expected rows of numbers (N, D), got shape {chunk.shape}")
        for start in range(0, len(chunk), _BLOCK):
            part = chunk[start : start + _BLOCK]
            yield first + start, np.ascontiguousarray(part.T, np.float32)
        first += len(chunk)


def _ordered(column: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Map float32 to uint32 of the same order: flip the sign bit of positives and every bit of negatives."""
    sign = (column.view(np.int32) >> 31).view(np.uint32)
    key: NDArray[np.uint32] = column.view(np.uint32) ^ (sign | np.uint32(1 << 31))
    return key


def _value(upper: NDArray[np.int64], top: int, lower: NDArray[np.int64], rank: int) -> np.float32:
    """Return the `rank`-th smallest value, which has the upper half `top`; inverts `_ordered`."""
    within = rank - int(upper[:top].sum())
    key = top << 16 | int(np.searchsorted(np.cumsum(lower), within, side="right"))
    bits = key ^ (1 << 31) if key >> 31 else key ^ 0xFFFFFFFF
    return np.uint32(bits).view(np.float32) + np.float32(0)  # -0.0 becomes 0.0


def _place(count: int, q: float) -> tuple[int, int, float]:
    """Return the ranks on both sides of the quantile and the weight of the second."""
    virtual = (count - 1) * q
    before = min(int(virtual), count - 1)
    return before, min(before + 1, count - 1), virtual - before


def _between(a: np.float32, b: np.float32, weight: float) -> float:
    """Interpolate as numpy does, from the nearer end, so that the result is monotonic."""
    difference = float(b - a)  # rounded to float32
    return float(b) - difference * (1 - weight) if weight >= 0.5 else float(a) + difference * weight
