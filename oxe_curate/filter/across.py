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
from oxe_curate.index.index_json import Summary
from oxe_curate.index.store import SCHEMA, read_index_meta, read_table, shard_files, split_of, write_table
from oxe_curate.storage import Folder

if TYPE_CHECKING:
    import polars as pl

_QUANTILES = (0.01, 0.99)


@dataclass(frozen=True, eq=False)
class IndexChange:
    """New decisions for one index file.

    Attributes:
        dataset: its name in index.json.
        reason, duplicate_of: the two columns, one value per row.
        leaks: split -> kept episodes that are copies of episodes of a train split.
    """

    dataset: str
    path: str
    reason: list[str | None]
    duplicate_of: list[str | None]
    leaks: dict[str, int]


def decide(out: Folder, versions: Mapping[str, str], criteria: Criteria) -> list[IndexChange]:
    """Compare all episodes of an index; return the files that must change.

    Args:
        out: the index.
        versions: data set -> version, of the data sets to compare.
        criteria: `action_outlier`, `duplicate` and `near_duplicate` are decided here.
    """
    import polars as pl

    files = _files(out, versions)
    rows = query.scan_files(out, list(files))
    columns = ["file", "reason", "duplicate_of", "num_steps", "action_hash"]
    if criteria.near_duplicate is not None:
        columns.append("image_hash")
    frame = query.collect(rows.select(columns), out)
    if frame.is_empty():
        return []
    own = pl.when(pl.col("reason").is_in(ACROSS)).then(None).otherwise("reason").alias("decided")
    frame = frame.with_columns(own)
    if criteria.action_outlier is not None:
        found = pl.when(pl.Series(_outlying(out, files, frame, criteria.action_outlier))).then(pl.lit("action_outlier"))
        frame = frame.with_columns(found.otherwise("decided").alias("decided"))
    original, near = _originals(frame, criteria)
    copies = original >= 0
    if criteria.duplicate is True:
        kind = pl.when(pl.Series(near)).then(pl.lit("near_duplicate")).otherwise(pl.lit("duplicate"))
        frame = frame.with_columns(pl.when(pl.Series(copies)).then(kind).otherwise("decided").alias("decided"))
    frame = frame.with_columns(_names(out, rows, original).alias("copy_of"), pl.Series("original", original))
    differs = pl.col("reason").ne_missing(pl.col("decided")) | pl.col("duplicate_of").ne_missing(pl.col("copy_of"))
    changed = frame.filter(differs.any().over("file"))
    # train splits come first, so an original in one has a low position
    in_train = frame.filter(pl.col("file").is_in([path for path in files if split_of(path) == "train"])).height
    changes = []
    for part in changed.partition_by("file", maintain_order=True):
        path = part["file"][0]
        leaks = part.filter(pl.col("decided").is_null(), pl.col("original").is_between(0, in_train - 1)).height
        counted = {split_of(path): leaks} if leaks and split_of(path) != "train" else {}
        changes.append(IndexChange(files[path], path, part["decided"].to_list(), part["copy_of"].to_list(), counted))
    return changes


def apply_changes(out: Folder, changes: Iterable[IndexChange]) -> None:
    """Rewrite the files, each completely or not at all."""
    for change in changes:
        meta = read_index_meta(out, change.path)
        table = read_table(out, change.path)
        for name, values in (
            ("kept", [r is None for r in change.reason]),
            ("reason", change.reason),
            ("duplicate_of", change.duplicate_of),
        ):
            field = SCHEMA.field(name)
            table = table.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type))
        summary = Summary.count(zip(table["num_steps"].to_pylist(), change.reason, strict=True))
        old = Summary(**meta["summary"])
        summary.bytes_read, summary.corrupt = old.bytes_read, old.corrupt
        summary.copies = sum(
            c is not None and r is None for c, r in zip(change.duplicate_of, change.reason, strict=True)
        )
        summary.leaks = change.leaks
        write_table(out, change.path, table.combine_chunks(), summary, meta["fingerprint"])


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


def _files(out: Folder, versions: Mapping[str, str]) -> dict[str, str]:
    """Index file -> data set, in order of precedence."""
    found = []
    for dataset, version in versions.items():
        for path in shard_files(out, f"{dataset}/{version}"):
            number = int(path.removesuffix(".parquet").rsplit("-", 3)[1])
            found.append((duplicates.precedence(split_of(path), dataset, version, number), dataset, path))
    return {path: dataset for _, dataset, path in sorted(found)}


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


def _names(out: Folder, rows: pl.LazyFrame, original: NDArray[np.int64]) -> pl.Series:
    """The id of each episode's original, null for none."""
    import polars as pl

    positions = np.unique(original[original >= 0])
    if not len(positions):
        return pl.Series([None] * len(original), dtype=pl.String)
    found = rows.filter(pl.col("position").is_in(pl.Series(positions, dtype=pl.get_index_type()).implode()))
    ids = query.collect(found.select("episode_id"), out)["episode_id"]
    place = np.searchsorted(positions, original)
    return ids.gather(pl.Series(np.where(original >= 0, place, -1)).replace(-1, None))


def _outlying(out: Folder, files: Mapping[str, str], frame: pl.DataFrame, times: float) -> NDArray[np.bool_]:
    """Which kept episodes have an outlier. numpy: polars would copy the nested actions to flatten them."""
    parts = frame.partition_by("file", maintain_order=True)
    kept = {part["file"][0]: part["decided"].is_null().to_numpy() for part in parts}
    found = {path: np.zeros(len(rows), bool) for path, rows in kept.items()}
    for dataset in dict.fromkeys(files.values()):
        mine = [path for path in kept if files[path] == dataset]
        # one dimension at a time: 4 bytes per step in memory, not 24
        bounds = np.array([_quantiles(out, mine, kept, dimension) for dimension in range(6)], np.float64).T
        if not np.isfinite(bounds).all():
            continue
        for path in mine:
            action, row = _actions(out, path, kept[path])
            found[path][row[outliers(action, bounds, times)]] = True
    return np.concatenate(list(found.values()))


def _quantiles(
    out: Folder, paths: Sequence[str], kept: Mapping[str, NDArray[np.bool_]], dimension: int
) -> NDArray[np.float64]:
    """float64 (2,) of one dimension over the episodes kept so far; NaN if there are none."""
    values = [_actions(out, path, kept[path])[0][:, dimension] for path in paths]
    joined = np.concatenate(values) if values else np.empty(0, np.float32)
    return np.quantile(joined, _QUANTILES).astype(np.float64) if len(joined) else np.full(2, np.nan)


def _actions(out: Folder, path: str, kept: NDArray[np.bool_]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Actions (n, 7) of a file's kept episodes, and the row of each (n,)."""
    column = read_table(out, path, ["action"])["action"].combine_chunks()
    lengths = np.diff(np.asarray(column.offsets))  # 0 where there are no actions
    row = np.repeat(np.arange(len(kept)), lengths)
    chosen = kept[row]
    return np.asarray(column.values.flatten()).reshape(-1, 7)[chosen], row[chosen]
