"""Criteria that compare episodes: copies, and actions far outside the data set's range.

A second pass over the index, which reads a few columns and rewrites only the files whose rows change. Its decisions
depend only on the contents of the index and are made from scratch each time, so it can be interrupted and repeated.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from oxe_curate.filter.screen import ACROSS, Criteria
from oxe_curate.index import duplicates, query
from oxe_curate.index.files import IndexFile
from oxe_curate.index.index_json import Summary
from oxe_curate.index.store import IndexFiles, dataset_of, describe_file, split_of, write_table
from oxe_curate.index.table import SCHEMA

if TYPE_CHECKING:
    import polars as pl

_QUANTILES = (0.01, 0.99)


@dataclass(frozen=True, eq=False)
class IndexChange:
    """New decisions for one index file.

    Attributes:
        reason, duplicate_of: the two columns, one value per row.
        leaks: split -> kept episodes that are copies of episodes of a train split.
    """

    path: str
    reason: list[str | None]
    duplicate_of: list[str | None]
    leaks: dict[str, int]


def decide(files: IndexFiles, criteria: Criteria) -> list[IndexChange]:
    """Compare all episodes of an index; return the files that must change.

    Args:
        files: the index files to compare.
        criteria: `action_outlier`, `duplicate` and `near_duplicate` are decided here.
    """
    import polars as pl

    paths = _ordered(files)
    rows = query.scan_files(files, paths)
    parts = _slices({path: files.entries[path].rows for path in paths})
    columns = ["reason", "duplicate_of", "num_steps", "action_hash"]
    if criteria.near_duplicate is not None:
        columns.append("image_hash")
    frame = query.collect(rows.select(columns))
    if frame.is_empty():
        return []
    own = pl.when(pl.col("reason").is_in(ACROSS)).then(None).otherwise("reason").alias("decided")
    frame = frame.with_columns(own)
    if criteria.action_outlier is not None:
        found = pl.when(pl.Series(_outlying(files, parts, frame, criteria.action_outlier))).then(
            pl.lit("action_outlier")
        )
        frame = frame.with_columns(found.otherwise("decided").alias("decided"))
    original, near = _originals(frame, criteria)
    copies = original >= 0
    if criteria.duplicate is True:
        kind = pl.when(pl.Series(near)).then(pl.lit("near_duplicate")).otherwise(pl.lit("duplicate"))
        frame = frame.with_columns(pl.when(pl.Series(copies)).then(kind).otherwise("decided").alias("decided"))
    copy_of = _names(rows, original)
    differs = (
        frame.select(pl.col("reason").ne_missing(pl.col("decided")) | pl.col("duplicate_of").ne_missing(copy_of))
        .to_series()
        .to_numpy()
    )
    reason, kept = frame["decided"], frame["decided"].is_null().to_numpy()
    # train splits come first, so an original in one has a low position
    in_train = max((part.stop for path, part in parts.items() if split_of(path) == "train"), default=0)
    changes = []
    for path, part in parts.items():
        if differs[part].any():
            split = split_of(path)
            leaks = int((kept[part] & (original[part] >= 0) & (original[part] < in_train)).sum())
            counted = {split: leaks} if leaks and split != "train" else {}
            changes.append(IndexChange(path, reason[part].to_list(), copy_of[part].to_list(), counted))
    return changes


def apply_changes(files: IndexFiles, changes: Iterable[IndexChange]) -> dict[str, IndexFile]:
    """Rewrite the files, each completely or not at all; return their new entries in files.json."""
    changed = {}
    for change in changes:
        old = files.entry(change.path)
        table = files.table(change.path)
        for name, values in (
            ("kept", [r is None for r in change.reason]),
            ("reason", change.reason),
            ("duplicate_of", change.duplicate_of),
        ):
            field = SCHEMA.field(name)
            table = table.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type))
        summary = Summary.count(zip(table["num_steps"].to_pylist(), change.reason, strict=True))
        summary.bytes_read, summary.corrupt = old.summary.bytes_read, old.summary.corrupt
        summary.copies = sum(
            c is not None and r is None for c, r in zip(change.duplicate_of, change.reason, strict=True)
        )
        summary.leaks = change.leaks
        write_table(files.folder, change.path, table.combine_chunks(), summary, old.fingerprint, old.shard)
        changed[change.path] = describe_file(files.folder, change.path)
    return changed


def outliers(action: NDArray[np.float32], bounds: NDArray[np.float64], times: float) -> NDArray[np.bool_]:
    """Find steps with a pose value outside the bounds by more than `times` their range.

    Args:
        action: float32 (T, 7).
        bounds: (2, 6), the data set's lower and upper quantiles. A dimension where they are equal is ignored.
        times: the allowed distance, as a multiple of the range.

    Returns:
        bool (T,).
    """
    low, high = bounds
    margin = times * (high - low)
    pose = action[:, :6]
    return np.asarray((((pose < low - margin) | (pose > high + margin)) & (high > low)).any(axis=1))


def _ordered(files: IndexFiles) -> list[str]:
    """Index files in order of precedence."""

    def key(path: str) -> tuple[bool, str, str, str, int]:
        number = int(path.removesuffix(".parquet").rsplit("-", 3)[1])
        return duplicates.precedence(split_of(path), *dataset_of(path), number)

    return sorted(files.entries, key=key)


def _originals(frame: pl.DataFrame, criteria: Criteria) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The position of each episode's original, -1 for none; and which copies are near copies only."""
    near = np.zeros(frame.height, bool)
    if criteria.duplicate is False:
        return np.full(frame.height, -1, np.int64), near
    valid = frame["decided"].is_null().to_numpy()
    hashed = valid & frame["action_hash"].is_not_null().to_numpy()
    original = duplicates.exact_copies(frame["action_hash"].fill_null(0).to_numpy(), hashed)
    exact = original >= 0
    if criteria.near_duplicate is None:
        return original, near
    rows = np.flatnonzero(frame["image_hash"].is_not_null().to_numpy() & valid & ~exact)
    if len(rows):
        seen = frame[rows]
        hashes = seen["image_hash"].explode().to_numpy().reshape(len(rows), -1)
        steps = seen["num_steps"].to_numpy().astype(np.int64)
        found = duplicates.near_copies(hashes, steps, np.ones(len(rows), bool), criteria.near_duplicate)
        original[rows[found >= 0]] = rows[found[found >= 0]]
        near[rows[found >= 0]] = True
        further = exact & (original[original] >= 0)  # copies of an episode that is itself a near copy
        original[further] = original[original[further]]
    return original, near


def _names(rows: pl.LazyFrame, original: NDArray[np.int64]) -> pl.Series:
    """The id of each episode's original, null for none."""
    import polars as pl

    positions = np.unique(original[original >= 0])
    if not len(positions):
        return pl.Series([None] * len(original), dtype=pl.String)
    found = rows.filter(pl.col("position").is_in(pl.Series(positions, dtype=pl.get_index_type()).implode()))
    ids = query.collect(found.select("episode_id"))["episode_id"]
    place = np.searchsorted(positions, original)
    return ids.gather(pl.Series(np.where(original >= 0, place, -1)).replace(-1, None))


def _slices(counts: Mapping[str, int]) -> dict[str, slice]:
    """Index file -> its rows, of the files that have any."""
    stops = np.cumsum(list(counts.values()), dtype=np.int64).tolist()
    return {path: slice(stop - n, stop) for (path, n), stop in zip(counts.items(), stops, strict=True) if n}


def _outlying(files: IndexFiles, parts: Mapping[str, slice], frame: pl.DataFrame, times: float) -> NDArray[np.bool_]:
    """Which kept episodes have an outlier. numpy: polars would copy the nested actions to flatten them."""
    valid = frame["decided"].is_null().to_numpy()
    kept = {path: valid[part] for path, part in parts.items()}
    found = {path: np.zeros(len(rows), bool) for path, rows in kept.items()}
    for dataset in dict.fromkeys(dataset_of(path)[0] for path in kept):
        mine = [path for path in kept if dataset_of(path)[0] == dataset]
        # one dimension at a time: 4 bytes per step in memory, not 24
        bounds = np.array([_quantiles(files, mine, kept, dimension) for dimension in range(6)], np.float64).T
        if not np.isfinite(bounds).all():
            continue
        for path in mine:
            action, row = _actions(files, path, kept[path])
            found[path][row[outliers(action, bounds, times)]] = True
    return np.concatenate(list(found.values()))


def _quantiles(
    files: IndexFiles, paths: Sequence[str], kept: Mapping[str, NDArray[np.bool_]], dimension: int
) -> NDArray[np.float64]:
    """float64 (2,) of one dimension over the episodes kept so far; NaN if there are none."""
    values = [_actions(files, path, kept[path])[0][:, dimension] for path in paths]
    joined = np.concatenate(values) if values else np.empty(0, np.float32)
    return np.quantile(joined, _QUANTILES).astype(np.float64) if len(joined) else np.full(2, np.nan)


def _actions(files: IndexFiles, path: str, kept: NDArray[np.bool_]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Actions (n, 7) of a file's kept episodes, and the row of each (n,)."""
    column = files.table(path, ["action"])["action"].combine_chunks()
    lengths = np.diff(np.asarray(column.offsets))  # 0 where there are no actions
    row = np.repeat(np.arange(len(kept)), lengths)
    chosen = kept[row]
    return np.asarray(column.values.flatten()).reshape(-1, 7)[chosen], row[chosen]
