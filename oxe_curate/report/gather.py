"""Gather one data set's numbers for the report from its index files.

Memory stays near a few numbers per episode. Actions are read once; of a data set with more than `STEPS` of them, evenly
spaced ones are kept for quantiles and histograms: reading 100 million steps again for each would take minutes.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from oxe_curate.actions.summary import ActionSummary
from oxe_curate.filter.tasks import Tasks, count_tasks
from oxe_curate.index import query
from oxe_curate.index.store import Index

if TYPE_CHECKING:
    import polars as pl

_BINS = 60
_MARGIN = 0.25
"""Of the 1 % .. 99 % range: values further out are counted in the outermost bars."""
AXES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
STEPS = 1 << 22
"""Up to this many steps of a data set, all of them are in its quantiles and histograms."""
_EXAMPLE = ["episode_id", "shard", "source_steps", "num_steps", "frame_index", "instruction", "cameras", "camera_spans"]

Tick = Callable[[], object]


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
        steps: of the data set. The smallest and largest values are those of all of them.
        counted: steps in the other statistics and in the histograms: fewer than `steps` in a large data set.
    """

    seen: ActionSummary
    kept: ActionSummary | None
    histograms: list[Histogram]
    steps: int
    counted: int


@dataclass(frozen=True, eq=False)
class Example:
    """An episode to show; `row` holds the index columns that locate its frames."""

    row: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Gathered:
    """The report's numbers of one data set.

    Attributes:
        examples: reason (None: kept) -> episodes to show.
        lengths, idle, path: histograms over episodes; None where there are no values.
        medians: of the kept episodes: steps, idle share, path length.
    """

    tasks: Tasks
    examples: dict[str | None, list[Example]]
    lengths: Histogram | None
    idle: Histogram | None
    path: Histogram | None
    medians: dict[str, float]
    actions: Actions | None


def gather_dataset(
    index: Index,
    dataset: str,
    kept_examples: int,
    dropped_examples: int,
    tick: Tick = lambda: None,
    steps: int = STEPS,
) -> Gathered:
    """Gather a data set's numbers from its index files.

    Args:
        index: an opened index.
        dataset: one of its data sets.
        kept_examples: how many kept episodes to show.
        dropped_examples: how many to show for each reason.
        tick: called after each index file whose actions were read.
        steps: count the actions of about this many steps at most, evenly spaced.
    """
    import polars as pl

    metrics = [pl.col("metrics").struct.field(name) for name in ("idle_share", "path_length")]
    hashed = pl.col("episode_id").map_batches(_hashes, return_dtype=pl.UInt32, is_elementwise=True).alias("hash")
    columns = ["kept", pl.col("num_steps").alias("steps"), *metrics, "reason", "file", "row", hashed]
    numbers = query.collect(query.scan_index(index, dataset).select(columns))
    kept = numbers["kept"].to_numpy()
    by_name = {name: numbers[name].cast(pl.Float64).to_numpy() for name in ("steps", "idle_share", "path_length")}
    return Gathered(
        tasks=count_tasks(index, dataset),
        examples=_examples(index, numbers, kept_examples, dropped_examples),
        lengths=_histogram(by_name["steps"], kept, whole=True),
        idle=_histogram(by_name["idle_share"], kept, limits=(0.0, 1.0)),
        path=_histogram(by_name["path_length"], kept),
        medians={
            name: float(np.median(some))
            for name, values in by_name.items()
            if len(some := values[kept & np.isfinite(values)])
        },
        actions=_actions(index, dataset, steps, tick),
    )


def _examples(index: Index, rows: pl.DataFrame, kept: int, dropped: int) -> dict[str | None, list[Example]]:
    """Of each reason, the episodes whose ids have the lowest hashes: an even draw that every run repeats."""
    order = ["hash", "file", "row"]
    found = {}
    for (reason,), group in sorted(
        rows.select("reason", *order).group_by("reason"), key=lambda item: (item[0][0] is not None, item[0][0] or "")
    ):
        lowest = group.bottom_k(kept if reason is None else dropped, by=order, reverse=[False, True, True])
        picks = lowest.select("file", "row").sort("file", "row").rows()
        found[reason] = [Example(index.table(path, _EXAMPLE).slice(row, 1).to_pylist()[0]) for path, row in picks]
    return found


def _hashes(ids: pl.Series) -> pl.Series:
    import polars as pl

    return pl.Series([zlib.crc32(name.encode()) for name in ids], dtype=pl.UInt32)


def _histogram(
    values: NDArray[np.float64],
    kept: NDArray[np.bool_],
    limits: tuple[float, float] | None = None,
    whole: bool = False,
) -> Histogram | None:
    """Over episodes. The upper limit is 1.5 times the 99 % quantile unless given; `whole` aligns bins with integers."""
    finite = np.isfinite(values)
    if not finite.any():
        return None
    some = values[finite]
    if limits is None:
        limits = (0.0, min(float(some.max()), 1.5 * float(np.quantile(some, 0.99))) or 1.0)
    bins = 40
    if whole:
        width = max(1, -int(-(limits[1] + 1) // bins))
        bins = -int(-(limits[1] + 1) // width)
        limits = (-0.5, bins * width - 0.5)  # a bar is centred on its number
    edges = np.linspace(*limits, bins + 1)
    return Histogram(edges, _count(some, edges), _count(values[finite & kept], edges))


def _count(values: NDArray[Any], edges: NDArray[np.float64]) -> NDArray[np.int64]:
    """Counts per bin of even width; values outside are counted in the outermost bins."""
    bins = len(edges) - 1
    place = (values - edges[0]) * (bins / (edges[-1] - edges[0]))
    return np.bincount(np.clip(place, 0, bins - 1).astype(np.int64), minlength=bins)


def _actions(index: Index, dataset: str, most: int, tick: Tick) -> Actions | None:
    """Statistics in one pass: extremes of all steps, the rest from at most about `most` evenly spaced ones."""
    summary = index.datasets[dataset].summary
    every = max(1, -(-summary.steps_seen // most))
    ranges, parts, flags = [_NOTHING], [], []
    steps = 0
    for _, table in index.tables(dataset, ["kept", "num_steps", "action"]):
        column = table["action"].combine_chunks()
        lengths = np.where(np.asarray(column.is_valid()), np.asarray(table["num_steps"]), 0)
        action = np.asarray(column.flatten().flatten()).reshape(-1, 7)
        keep = np.asarray(table["kept"])[lengths > 0]
        lengths = lengths[lengths > 0]
        tick()
        if not len(lengths):
            continue
        ranges.append(_ranges(action, np.cumsum(lengths) - lengths, keep))
        first = -steps % every  # the spacing continues from file to file
        parts.append(action[first::every])
        flags.append(np.repeat(keep, lengths)[first::every])
        steps += len(action)
    sample = np.ascontiguousarray(np.concatenate(parts).T) if parts else np.empty((7, 0), np.float32)
    finite = np.isfinite(sample).all(axis=0)
    if not finite.any():
        return None
    sample, keep = sample[:, finite], np.concatenate(flags)[finite]
    extremes = np.stack(ranges)
    least, greatest = extremes[:, :, 0].min(axis=0), extremes[:, :, 1].max(axis=0)
    seen, kept = _summary(sample, least[0], greatest[0]), None
    if keep.any():
        kept = seen if keep.all() and summary.kept == summary.seen else _summary(sample[:, keep], least[1], greatest[1])
    histograms = []
    for dimension, values in enumerate(sample):
        edges = _edges(seen, dimension)
        histograms.append(Histogram(edges, _count(values, edges), _count(values[keep], edges)))
    return Actions(seen, kept, histograms, steps, sample.shape[1] if every > 1 else steps)


_NOTHING = np.broadcast_to(np.array([[np.inf], [-np.inf]], np.float32), (2, 2, 7))
"""The extremes of no steps."""


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


def _edges(summary: ActionSummary, dimension: int) -> NDArray[np.float64]:
    """Bins over the 1 % .. 99 % range plus a margin, limited to the values that occur."""
    least, greatest = summary.min[dimension], summary.max[dimension]
    low, high = summary.q01[dimension], summary.q99[dimension]
    margin = _MARGIN * (high - low)
    low, high = max(least, low - margin), min(greatest, high + margin)
    if not high > low:
        low, high = low - 0.5, low + 0.5
    return np.linspace(low, high, _BINS + 1)
