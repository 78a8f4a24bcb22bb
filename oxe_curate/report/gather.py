"""Gather one data set's numbers for the report, reading each of its index files once.

Memory stays near a few numbers per episode.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from oxe_curate.filter.tasks import Tasks, tasks_of
from oxe_curate.index.store import SCHEMA, Index
from oxe_curate.report.actions import STEPS, ActionPass, Actions, Histogram, count
from oxe_curate.report.flags import Flagged, flag

if TYPE_CHECKING:
    import polars as pl

_METRICS = ("num_steps", "idle_share", "path_length")
_COLUMNS = ["episode_id", "kept", "reason", "num_steps", "instructions", "metrics", "marks", "duplicate_of"]

Tick = Callable[[], object]


@dataclass(frozen=True, eq=False)
class Gathered:
    """The report's numbers of one data set.

    Attributes:
        flagged: what the criteria found.
        kept: (file, row) of a few kept episodes.
        lengths, idle, path: histograms over episodes; None where there are no values.
        medians: of the kept episodes: steps, idle share, path length.
    """

    tasks: Tasks
    flagged: Flagged
    kept: list[tuple[str, int]]
    lengths: Histogram | None
    idle: Histogram | None
    path: Histogram | None
    medians: dict[str, float]
    actions: Actions | None


def gather_dataset(
    index: Index,
    dataset: str,
    kept_examples: int,
    flagged_examples: int,
    tick: Tick = lambda: None,
    steps: int = STEPS,
) -> Gathered:
    """Gather a data set's numbers from its index files.

    Args:
        index: an opened index.
        dataset: one of its data sets.
        kept_examples: how many kept episodes to choose.
        flagged_examples: how many to choose for each criterion.
        tick: called after each index file.
        steps: count the actions of about this many steps at most, evenly spaced.
    """
    import polars as pl

    summary = index.datasets[dataset].summary
    paths = index.files(dataset)
    every = max(1, min(len(paths), -(-summary.steps_seen // steps)))  # of the files, whose actions are read
    actions = ActionPass(sum(index.entry(path).summary.steps_seen for path in paths[::every]), steps)
    parts = [SCHEMA.empty_table().select(_COLUMNS)]
    for number, path in enumerate(paths):
        table = index.table(path, _COLUMNS if number % every else [*_COLUMNS, "action"])
        if "action" in table.column_names:
            actions.add(table)
        parts.append(table.select(_COLUMNS))
        tick()
    numbers = _rows(paths, parts)
    kept = numbers["kept"].to_numpy()
    by_name = {name: numbers[name].cast(pl.Float64).to_numpy() for name in _METRICS}
    return Gathered(
        tasks=tasks_of(numbers.lazy()),
        flagged=flag(numbers, index.criteria, flagged_examples),
        kept=_examples(numbers, kept_examples),
        lengths=_histogram(by_name["num_steps"], kept, whole=True),
        idle=_histogram(by_name["idle_share"], kept, limits=(0.0, 1.0)),
        path=_histogram(by_name["path_length"], kept),
        medians={
            name: float(np.median(some))
            for name, values in by_name.items()
            if len(some := values[kept & np.isfinite(values)])
        },
        actions=actions.finish(summary.kept == summary.seen, summary.steps_seen if every > 1 else 0),
    )


def _rows(paths: Sequence[str], tables: Sequence[Any]) -> pl.DataFrame:
    """The rows of all files, the first of which is empty, with their file, row and hash."""
    import polars as pl

    counts = [len(table) for table in tables[1:]]
    rows: Any = pl.from_arrow(pa.concat_tables(tables))
    places = np.repeat(np.arange(len(paths)), counts)
    return pl.DataFrame(rows).unnest("metrics").with_columns(
        pl.Series("file", list(paths), pl.String).gather(places),
        pl.Series("row", np.concatenate([np.arange(0), *map(np.arange, counts)])),
        pl.col("episode_id").map_batches(_hashes, pl.UInt32).alias("hash"),
    )  # fmt: skip


def _examples(rows: pl.DataFrame, count: int) -> list[tuple[str, int]]:
    """The kept, unmarked episodes whose ids have the lowest hashes: an even draw that every run repeats."""
    import polars as pl

    plain = pl.col("kept") & (pl.col("marks").list.len() == 0) & pl.col("duplicate_of").is_null()
    lowest = rows.filter(plain).bottom_k(count, by=["hash", "file", "row"], reverse=[False, True, True])
    return lowest.select("file", "row").sort("file", "row").rows()


def _hashes(ids: pl.Series) -> pl.Series:
    import polars as pl

    return pl.Series(list(map(zlib.crc32, ids.cast(pl.Binary).to_list())), dtype=pl.UInt32)


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
    return Histogram(edges, count(some, edges), count(values[finite & kept], edges))
