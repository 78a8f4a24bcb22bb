"""Gather one data set's numbers for the report from its index files.

Memory stays near a few numbers per episode. Actions are streamed as numpy blocks, once for each pass of the exact
quantiles and once for the histograms: polars would hold all of them to compute the same quantiles.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from oxe_curate.actions.summary import ActionSummary, summarize
from oxe_curate.filter.tasks import Tasks, count_tasks
from oxe_curate.index import query
from oxe_curate.index.store import Index

if TYPE_CHECKING:
    import polars as pl

_BINS = 60
_MARGIN = 0.25
"""Of the 1 % .. 99 % range: values further out are counted in the outermost bars."""
AXES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
_BLOCK = 1 << 18  # steps per block, about: each block costs a histogram
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
    """Statistics of all finite actions and of the kept ones, and a histogram per dimension."""

    seen: ActionSummary
    kept: ActionSummary | None
    histograms: list[Histogram]


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
    index: Index, dataset: str, kept_examples: int, dropped_examples: int, tick: Tick = lambda: None
) -> Gathered:
    """Gather a data set's numbers from its index files.

    Args:
        index: an opened index.
        dataset: one of its data sets.
        kept_examples: how many kept episodes to show.
        dropped_examples: how many to show for each reason.
        tick: called after each index file whose actions were read.
    """
    import polars as pl

    metrics = [pl.col("metrics").struct.field(name) for name in ("idle_share", "path_length")]
    columns = query.scan_index(index, dataset).select("kept", pl.col("num_steps").alias("steps"), *metrics)
    numbers = query.collect(columns)
    kept = numbers["kept"].to_numpy()
    by_name = {name: numbers[name].cast(pl.Float64).to_numpy() for name in ("steps", "idle_share", "path_length")}
    return Gathered(
        tasks=count_tasks(index, dataset),
        examples=_examples(index, dataset, kept_examples, dropped_examples),
        lengths=_histogram(by_name["steps"], kept, whole=True),
        idle=_histogram(by_name["idle_share"], kept, limits=(0.0, 1.0)),
        path=_histogram(by_name["path_length"], kept),
        medians={
            name: float(np.median(some))
            for name, values in by_name.items()
            if len(some := values[kept & np.isfinite(values)])
        },
        actions=_actions(index, dataset, tick),
    )


def _examples(index: Index, dataset: str, kept: int, dropped: int) -> dict[str | None, list[Example]]:
    """Of each reason, the episodes whose ids have the lowest hashes: an even draw that every run repeats."""
    import polars as pl

    hashed = pl.col("episode_id").map_batches(_hashes, return_dtype=pl.UInt32, is_elementwise=True)
    rows = query.collect(query.scan_index(index, dataset).select("reason", "file", "row", hashed.alias("hash"))).sort(
        "hash", "file", "row", descending=[False, True, True]
    )
    found = {}
    for (reason,), group in sorted(
        rows.group_by("reason"), key=lambda item: (item[0][0] is not None, item[0][0] or "")
    ):
        picks = group.head(kept if reason is None else dropped).select("file", "row").sort("file", "row").rows()
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


class _Stream:
    """A data set's finite actions, block by block; can be iterated repeatedly."""

    def __init__(self, index: Index, dataset: str, kept_only: bool, tick: Tick) -> None:
        self._index, self._dataset, self._kept_only, self._tick = index, dataset, kept_only, tick

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        return (action[keep] if self._kept_only else action for action, keep in self.pairs())

    def pairs(self) -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
        """Yield (actions (n, 7), whether each belongs to a kept episode (n,))."""
        held: list[tuple[NDArray[np.float32], NDArray[np.bool_]]] = []
        for _, table in self._index.tables(self._dataset, ["kept", "num_steps", "action"]):
            column = table["action"].combine_chunks()
            has = np.asarray(column.is_valid())
            action = np.asarray(column.flatten().flatten()).reshape(-1, 7)
            keep = np.repeat(np.asarray(table["kept"])[has], np.asarray(table["num_steps"])[has])
            finite = np.isfinite(action).all(axis=1)
            held.append((action, keep) if finite.all() else (action[finite], keep[finite]))
            self._tick()
            if sum(len(k) for _, k in held) >= _BLOCK:
                yield _joined(held)
                held = []
        if held:
            yield _joined(held)


def _joined(
    parts: list[tuple[NDArray[np.float32], NDArray[np.bool_]]],
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    return np.concatenate([action for action, _ in parts]), np.concatenate([keep for _, keep in parts])


def _actions(index: Index, dataset: str, tick: Tick) -> Actions | None:
    summary = index.datasets[dataset].summary
    stream = _Stream(index, dataset, kept_only=False, tick=tick)
    if not any(len(action) for action in stream):
        return None
    seen, _ = summarize(stream)
    kept = None
    if summary.kept:
        kept = seen if summary.kept == summary.seen else summarize(_Stream(index, dataset, True, tick))[0]
    edges = [_edges(seen, dimension) for dimension in range(7)]
    counts = np.zeros((2, 7, _BINS), np.int64)
    for action, keep in stream.pairs():
        for dimension in range(7):
            counts[0, dimension] += _count(action[:, dimension], edges[dimension])
            counts[1, dimension] += _count(action[keep, dimension], edges[dimension])
    return Actions(seen, kept, [Histogram(edges[d], counts[0, d], counts[1, d]) for d in range(7)])


def _edges(summary: ActionSummary, dimension: int) -> NDArray[np.float64]:
    """Bins over the 1 % .. 99 % range plus a margin, limited to the values that occur."""
    least, greatest = summary.min[dimension], summary.max[dimension]
    low, high = summary.q01[dimension], summary.q99[dimension]
    margin = _MARGIN * (high - low)
    low, high = max(least, low - margin), min(greatest, high + margin)
    if not high > low:
        low, high = low - 0.5, low + 0.5
    return np.linspace(low, high, _BINS + 1)
