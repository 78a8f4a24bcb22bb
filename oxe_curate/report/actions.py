"""A data set's actions in one pass over its index files: extremes of all steps, quantiles and histograms of a part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oxe_curate.actions.summary import ActionSummary

STEPS = 1 << 22
"""Up to this many steps of a data set, all of them are in its quantiles and histograms."""
AXES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
_BINS = 60
_MARGIN = 0.25
"""Of the 1 % .. 99 % range: values further out are counted in the outermost bars."""


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts of all values and of the kept ones over the same bins."""

    edges: NDArray[np.float64]
    seen: NDArray[np.int64]
    kept: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Actions:
    """Statistics of all finite actions and of the kept ones, and a histogram per dimension.

    Attributes:
        steps: of the data set.
        read: steps of which the smallest and largest values are: fewer than `steps` in a large data set.
        counted: steps in the other statistics and in the histograms, at most as many as were read.
    """

    seen: ActionSummary
    kept: ActionSummary | None
    histograms: list[Histogram]
    steps: int
    read: int
    counted: int


class ActionPass:
    """Collects the actions of a data set, one index file after the other.

    Reading 100 million steps again for each quantile would take minutes: of a large data set, evenly spaced steps are
    kept.

    Args:
        steps: that will be added.
        most: steps to keep, about.
    """

    def __init__(self, steps: int, most: int) -> None:
        self._every = max(1, -(-steps // most))
        self._steps = 0
        self._ranges = [np.broadcast_to(np.array([[np.inf], [-np.inf]], np.float32), (2, 2, 7))]  # of no steps
        self._parts: list[NDArray[np.float32]] = []
        self._kept: list[NDArray[np.bool_]] = []

    def add(self, table: Any) -> None:
        """Include an index file: its columns `kept`, `num_steps` and `action`."""
        column = table["action"].combine_chunks()
        lengths = np.where(np.asarray(column.is_valid()), np.asarray(table["num_steps"]), 0)
        action = np.asarray(column.flatten().flatten()).reshape(-1, 7)
        keep = np.asarray(table["kept"])[lengths > 0]
        lengths = lengths[lengths > 0]
        if not len(lengths):
            return
        self._ranges.append(_ranges(action, np.cumsum(lengths) - lengths, keep))
        first = -self._steps % self._every  # the spacing continues from file to file
        self._parts.append(action[first :: self._every].copy())
        self._kept.append(np.repeat(keep, lengths)[first :: self._every])
        self._steps += len(action)

    def finish(self, all_kept: bool, steps: int = 0) -> Actions | None:
        """The statistics; None if there are no finite actions.

        Args:
            all_kept: whether every episode is kept.
            steps: of the data set, if not all of them were added.
        """
        if not self._parts:
            return None
        sample, keep = np.ascontiguousarray(np.concatenate(self._parts).T), np.concatenate(self._kept)
        finite = np.isfinite(sample).all(axis=0)
        if not finite.any():
            return None
        if not finite.all():
            sample, keep = sample[:, finite], keep[finite]
        extremes = np.stack(self._ranges)
        least, greatest = extremes[:, :, 0].min(axis=0), extremes[:, :, 1].max(axis=0)
        seen, kept = _summary(sample, least[0], greatest[0]), None
        if keep.any():
            kept = seen if all_kept else _summary(sample[:, keep], least[1], greatest[1])
        histograms = []
        for dimension, values in enumerate(sample):
            edges = _edges(seen, dimension)
            histograms.append(Histogram(edges, count(values, edges), count(values[keep], edges)))
        counted = sample.shape[1] if self._every > 1 else self._steps
        return Actions(seen, kept, histograms, max(steps, self._steps), self._steps, counted)


def _ranges(action: NDArray[np.float32], starts: NDArray[np.int64], keep: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Extremes of the finite steps: float32 (2, 2, 7), of all and of the kept episodes, the smallest and the largest.

    Args:
        action: (n, 7), the episodes concatenated.
        starts: (episodes,), the first row of each.
        keep: (episodes,), whether each is kept.
    """
    columns = np.ascontiguousarray(action.T)  # four times as fast as along the first axis
    least, greatest = (function.reduceat(columns, starts, axis=1) for function in (np.minimum, np.maximum))
    if not (np.isfinite(least).all() and np.isfinite(greatest).all()):
        finite = np.isfinite(columns).all(axis=0)
        least = np.minimum.reduceat(np.where(finite, columns, np.float32(np.inf)), starts, axis=1)
        greatest = np.maximum.reduceat(np.where(finite, columns, np.float32(-np.inf)), starts, axis=1)
    chosen = [(least, greatest), (least[:, keep], greatest[:, keep])]
    return np.array([(low.min(axis=1, initial=np.inf), high.max(axis=1, initial=-np.inf)) for low, high in chosen])


def _summary(columns: NDArray[np.float32], least: NDArray[np.float32], greatest: NDArray[np.float32]) -> ActionSummary:
    """Statistics of a sample (7, n) with extremes that are known; quantiles are those of `actions.summary`."""
    mean = columns.mean(axis=1, dtype=np.float64)
    std = np.sqrt([np.square(values - middle).mean() for values, middle in zip(columns, mean, strict=True)])
    low, high = np.quantile(columns, np.array([0.01, 0.99]), axis=1)
    return ActionSummary(mean, std, greatest.astype(np.float64), least.astype(np.float64), low, high)


def count(values: NDArray[Any], edges: NDArray[np.float64]) -> NDArray[np.int64]:
    """Counts per bin of even width; values outside are counted in the outermost bins."""
    bins = len(edges) - 1
    place = (values - edges[0]) * (bins / (edges[-1] - edges[0]))
    return np.bincount(np.clip(place, 0, bins - 1).astype(np.int64), minlength=bins)


def _edges(summary: ActionSummary, dimension: int) -> NDArray[np.float64]:
    """Bins over the 1 % .. 99 % range plus a margin, limited to the values that occur."""
    least, greatest = summary.min[dimension], summary.max[dimension]
    low, high = summary.q01[dimension], summary.q99[dimension]
    margin = _MARGIN * (high - low)
    low, high = max(least, low - margin), min(greatest, high + margin)
    if not high > low:
        low, high = low - 0.5, low + 0.5
    return np.linspace(low, high, _BINS + 1)
