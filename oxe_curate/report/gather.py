"""One data set's numbers for the report, gathered from its index files one after the other.

Memory stays near a few numbers an episode: actions are read as a stream, once for each pass of the exact quantiles
and once for the histograms.
"""

from __future__ import annotations

import heapq
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oxe_curate.actions.summary import ActionSummary, summarize
from oxe_curate.filter.tasks import Tasks
from oxe_curate.index.store import Index

BINS = 60
MARGIN = 0.25
"""Of the 1 % .. 99 % range: what lies further out is counted in the outermost bars."""
AXES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
_BLOCK = 1 << 18  # steps: index files are handed on in blocks of about this many, since each costs a histogram
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
    """Statistics of all finite actions and of the kept ones, and a histogram a dimension."""

    seen: ActionSummary
    kept: ActionSummary | None
    histograms: list[Histogram]


@dataclass(frozen=True, eq=False)
class Example:
    """An episode that is shown; `row` holds the index columns that lead to its frames."""

    row: dict[str, Any]


@dataclass
class Gathered:
    """What the report says of one data set.

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


@dataclass
class _Columns:
    """Per-episode numbers as they grow."""

    kept: list[NDArray[np.bool_]] = field(default_factory=list)
    values: dict[str, list[NDArray[np.float64]]] = field(default_factory=dict)


def gather_dataset(
    index: Index, dataset: str, kept_examples: int, dropped_examples: int, tick: Tick = lambda: None
) -> Gathered:
    """Read a data set's index files.

    Args:
        index: an opened index.
        dataset: one of its data sets.
        kept_examples: how many kept episodes to show.
        dropped_examples: how many to show for each reason.
        tick: called after each file that was read.
    """
    tasks, columns = Tasks(), _Columns()
    chosen: dict[str | None, list[tuple[int, str, int]]] = {}
    for path, table in index.tables(dataset, ["episode_id", "kept", "reason", "num_steps", "instructions", "metrics"]):
        kept = np.asarray(table["kept"])
        tasks.add(table["instructions"].to_pylist(), kept.tolist())
        columns.kept.append(kept)
        metrics = table["metrics"].combine_chunks()
        found = {name: metrics.field(name).to_numpy(zero_copy_only=False) for name in ("idle_share", "path_length")}
        for name, values in {"steps": np.asarray(table["num_steps"]), **found}.items():
            columns.values.setdefault(name, []).append(values.astype(np.float64))
        ids, reasons = table["episode_id"].to_pylist(), table["reason"].to_pylist()
        for row, (name, reason) in enumerate(zip(ids, reasons, strict=True)):
            _choose(
                chosen.setdefault(reason, []), kept_examples if reason is None else dropped_examples, name, path, row
            )
        tick()
    kept = np.concatenate(columns.kept) if columns.kept else np.zeros(0, bool)
    by_name = {name: np.concatenate(parts) for name, parts in columns.values.items()}
    steps, idle, path_length = (by_name.get(n, np.zeros(0)) for n in ("steps", "idle_share", "path_length"))
    return Gathered(
        tasks=tasks,
        examples={reason: _examples(index, picks) for reason, picks in sorted(chosen.items(), key=_by_reason)},
        lengths=_histogram(steps, kept, whole=True),
        idle=_histogram(idle, kept, limits=(0.0, 1.0)),
        path=_histogram(path_length, kept),
        medians={
            name: float(np.median(some))
            for name, values in by_name.items()
            if len(some := values[kept & np.isfinite(values)])
        },
        actions=_actions(index, dataset, tick),
    )


def _by_reason(item: tuple[str | None, Any]) -> tuple[bool, str]:
    return item[0] is not None, item[0] or ""


def _choose(heap: list[tuple[int, str, int]], most: int, name: str, path: str, row: int) -> None:
    """Keep the `most` episodes of the lowest hash: an even draw that every run repeats."""
    item = (-zlib.crc32(name.encode()), path, row)
    if len(heap) < most:
        heapq.heappush(heap, item)
    elif most:
        heapq.heappushpop(heap, item)


def _examples(index: Index, picks: list[tuple[int, str, int]]) -> list[Example]:
    found = []
    for _, path, row in sorted(picks, key=lambda pick: pick[1:]):
        found.append(Example(index.table(path, _EXAMPLE).slice(row, 1).to_pylist()[0]))
    return found


def _histogram(
    values: NDArray[np.float64],
    kept: NDArray[np.bool_],
    limits: tuple[float, float] | None = None,
    whole: bool = False,
) -> Histogram | None:
    """Over episodes; the upper limit is the 99 % quantile and a half, unless given; `whole` numbers fill their bins."""
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
        limits = (-0.5, bins * width - 0.5)  # a bar stands over its number
    edges = np.linspace(*limits, bins + 1)
    return Histogram(edges, _count(some, edges), _count(values[finite & kept], edges))


def _count(values: NDArray[Any], edges: NDArray[np.float64]) -> NDArray[np.int64]:
    """Counts per bin of even width; what lies outside counts in the outermost ones."""
    bins = len(edges) - 1
    place = (values - edges[0]) * (bins / (edges[-1] - edges[0]))
    return np.bincount(np.clip(place, 0, bins - 1).astype(np.int64), minlength=bins)


class _Stream:
    """A data set's finite actions, block by block; may be iterated again."""

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
    entry = index.datasets[dataset]
    stream = _Stream(index, dataset, kept_only=False, tick=tick)
    if not any(len(action) for action in stream):
        return None
    seen, _ = summarize(stream)
    kept = None
    if entry["kept"]:
        kept = seen if entry["kept"] == entry["seen"] else summarize(_Stream(index, dataset, True, tick))[0]
    edges = [_edges(seen, dimension) for dimension in range(7)]
    counts = np.zeros((2, 7, BINS), np.int64)
    for action, keep in stream.pairs():
        for dimension in range(7):
            counts[0, dimension] += _count(action[:, dimension], edges[dimension])
            counts[1, dimension] += _count(action[keep, dimension], edges[dimension])
    return Actions(seen, kept, [Histogram(edges[d], counts[0, d], counts[1, d]) for d in range(7)])


def _edges(summary: ActionSummary, dimension: int) -> NDArray[np.float64]:
    """Bins over the 1 % .. 99 % range and a margin, but not beyond the values that occur."""
    least, greatest = summary.min[dimension], summary.max[dimension]
    low, high = summary.q01[dimension], summary.q99[dimension]
    margin = MARGIN * (high - low)
    low, high = max(least, low - margin), min(greatest, high + margin)
    if not high > low:
        low, high = low - 0.5, low + 0.5
    return np.linspace(low, high, BINS + 1)
