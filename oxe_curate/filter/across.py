"""Criteria that need the other episodes: copies, and actions far outside the data set's range.

A second pass over the index, which reads a few columns and rewrites only the files whose rows change. What it decides
depends on the index's contents alone, and it decides anew each time, so that it may be interrupted and repeated.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from oxe_curate.filter.screen import ACROSS, Criteria
from oxe_curate.index import duplicates
from oxe_curate.index.store import SCHEMA, Summary, read_index_meta, read_table, shard_files, write_table
from oxe_curate.storage import Folder

QUANTILES = (0.01, 0.99)


@dataclass(frozen=True, eq=False)
class IndexChange:
    """New decisions for one index file.

    Attributes:
        dataset: as index.json names it.
        reason, duplicate_of: the two columns, a value per row.
    """

    dataset: str
    path: str
    reason: list[str | None]
    duplicate_of: list[str | None]
    leaks: dict[str, int]


@dataclass(frozen=True, eq=False)
class _File:
    dataset: str
    path: str
    rows: int
    start: int


def decide(out: Folder, versions: Mapping[str, str], criteria: Criteria) -> list[IndexChange]:
    """Compare all episodes of an index; return the files that must change.

    Args:
        out: the index.
        versions: data set -> version, of those that count.
        criteria: `action_outlier`, `duplicate` and `near_duplicate` are decided here.
    """
    files = _files(out, versions)
    columns = ["reason", "duplicate_of", "num_steps", "action_hash"]
    if criteria.near_duplicate is not None:
        columns.append("image_hash")
    held: list[_File] = []
    tables: list[pa.Table] = []
    total = 0
    for dataset, path in files:
        table = read_table(out, path, columns)
        held.append(_File(dataset, path, len(table), total))
        tables.append(table)
        total += len(table)
    if not total:
        return []
    joined = pa.concat_tables(tables)
    before: list[str | None] = joined["reason"].to_pylist()
    reason = [None if r in ACROSS else r for r in before]
    if criteria.action_outlier is not None:
        _mark_outliers(out, held, reason, criteria.action_outlier)
    original = _originals(joined, np.array([r is None for r in reason]), criteria, reason)
    copy_of = _names(out, held, original)
    if criteria.duplicate is not True:
        reason = [None if r in ACROSS[1:] else r for r in reason]
    marked: list[str | None] = joined["duplicate_of"].to_pylist()
    changes = []
    for file in held:
        part = slice(file.start, file.start + file.rows)
        if reason[part] != before[part] or copy_of[part] != marked[part]:
            leaks = _leaks(file, held, original[part], reason[part])
            changes.append(IndexChange(file.dataset, file.path, reason[part], copy_of[part], leaks))
    return changes


def apply_changes(out: Folder, changes: Iterable[IndexChange]) -> None:
    """Rewrite the files, each complete or not at all."""
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
    """Steps with a pose value further outside the bounds than `times` their range; a constant dimension has no say.

    Args:
        action: float32 (T, 7).
        bounds: (2, 6), the data set's lower and upper quantiles.
        times: how many ranges beyond them are still allowed.

    Returns:
        bool (T,).
    """
    low, high = bounds
    margin = times * (high - low)
    pose = action[:, :6]
    return np.asarray((((pose < low - margin) | (pose > high + margin)) & (high > low)).any(axis=1))


def _files(out: Folder, versions: Mapping[str, str]) -> list[tuple[str, str]]:
    """(data set, index file), in order of precedence."""
    found = []
    for dataset, version in versions.items():
        for path in shard_files(out, f"{dataset}/{version}"):
            split, number = _split(path)
            found.append((duplicates.precedence(split, dataset, version, number), dataset, path))
    return [(dataset, path) for _, dataset, path in sorted(found)]


def _split(path: str) -> tuple[str, int]:
    split, number, _, _ = path.rsplit("/", 1)[-1].removesuffix(".parquet").rsplit("-", 3)
    return split, int(number)


def _originals(
    table: pa.Table, valid: NDArray[np.bool_], criteria: Criteria, reason: list[str | None]
) -> NDArray[np.int64]:
    """What each episode is a copy of, -1 for nothing; marks the reasons of copies."""
    if criteria.duplicate is False:
        return np.full(len(valid), -1, np.int64)
    column = table["action_hash"].combine_chunks()
    told = valid & np.asarray(column.is_valid())
    original = duplicates.exact_copies(np.asarray(column.fill_null(0)), told)
    exact = original >= 0
    if criteria.near_duplicate is not None:
        images = table["image_hash"].combine_chunks()
        seen = np.asarray(images.is_valid()) & valid & ~exact
        if seen.any():
            flat = np.asarray(images.filter(pa.array(seen)).flatten())
            rows = np.flatnonzero(seen)
            hashes = flat.reshape(len(rows), -1)
            steps = np.asarray(table["num_steps"])[rows].astype(np.int64)
            near = duplicates.near_copies(hashes, steps, np.ones(len(rows), bool), criteria.near_duplicate)
            original[rows[near >= 0]] = rows[near[near >= 0]]
            for row in rows[near >= 0].tolist():
                reason[row] = "near_duplicate"
            further = exact & (original[original] >= 0)  # copies of what is itself a near copy
            original[further] = original[original[further]]
    for row in np.flatnonzero(exact).tolist():
        reason[row] = "duplicate"
    return original


def _names(out: Folder, held: Sequence[_File], original: NDArray[np.int64]) -> list[str | None]:
    """The ids of the originals, read from the files that hold them alone."""
    names: list[str | None] = [None] * len(original)
    copies = np.flatnonzero(original >= 0)
    starts = np.array([file.start for file in held])
    of_file = np.searchsorted(starts, original[copies], side="right") - 1
    for number in np.unique(of_file).tolist():
        file = held[number]
        ids = read_table(out, file.path, ["episode_id"])["episode_id"]
        for row in copies[of_file == number].tolist():
            names[row] = ids[int(original[row]) - file.start].as_py()
    return names


def _leaks(file: _File, held: Sequence[_File], original: NDArray[np.int64], reason: list[str | None]) -> dict[str, int]:
    """split -> kept episodes of this file that are copies of a train split's."""
    split, _ = _split(file.path)
    if split == "train":
        return {}
    in_train = max((f.start + f.rows for f in held if _split(f.path)[0] == "train"), default=0)
    kept = np.array([r is None for r in reason])
    count = int(((original >= 0) & (original < in_train) & kept).sum())
    return {split: count} if count else {}


def _mark_outliers(out: Folder, held: Sequence[_File], reason: list[str | None], times: float) -> None:
    for dataset in dict.fromkeys(file.dataset for file in held):
        mine = [file for file in held if file.dataset == dataset]
        # one dimension at a time: 4 bytes a step are held, not 24
        bounds = np.array([_quantiles(out, mine, reason, dimension) for dimension in range(6)], np.float64).T
        if not np.isfinite(bounds).all():
            continue
        for file in mine:
            action, row = _actions(out, file, reason)
            for number in np.unique(row[outliers(action, bounds, times)]).tolist():
                reason[file.start + number] = "action_outlier"


def _quantiles(out: Folder, files: Sequence[_File], reason: list[str | None], dimension: int) -> NDArray[np.float64]:
    """float64 (2,) of one dimension over the episodes kept so far; NaN if there are none."""
    values = np.concatenate([_actions(out, file, reason)[0][:, dimension] for file in files])
    return np.quantile(values, QUANTILES).astype(np.float64) if len(values) else np.full(2, np.nan)


def _actions(out: Folder, file: _File, reason: list[str | None]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Actions (n, 7) of a file's episodes that are kept so far, and the row that each belongs to (n,)."""
    column = read_table(out, file.path, ["action"])["action"].combine_chunks()
    lengths = np.diff(np.asarray(column.offsets))  # 0 where there are no actions
    row = np.repeat(np.arange(file.rows), lengths)
    kept = np.array([r is None for r in reason[file.start : file.start + file.rows]], bool)[row]
    return np.asarray(column.values.flatten()).reshape(-1, 7)[kept], row[kept]
