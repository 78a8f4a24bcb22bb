"""Decide what becomes of every episode of an index: reasons of its own, and those that compare episodes.

A second pass over the index, which reads what the criteria need and rewrites only the files whose rows change. Its
decisions depend only on the contents of the index and are made from scratch each time, so it can be interrupted and
repeated, and criteria can change without reading the source.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from oxe_curate.filter import decisions
from oxe_curate.filter.criteria import Criteria
from oxe_curate.filter.judging import judge_dataset
from oxe_curate.index import duplicates, query
from oxe_curate.index.files import IndexFile
from oxe_curate.index.index_json import Judged, Summary
from oxe_curate.index.rows_file import rewrite_tables
from oxe_curate.index.store import IndexFiles, dataset_of, split_of
from oxe_curate.index.table import SCHEMA, with_decisions
from oxe_curate.progress import Bar
from oxe_curate.quality.measure import Judgement
from oxe_curate.quality.measures import MEASURES

_NEAR = "near_duplicate"
_LARGEST = 1e30
_DECIDED = ("reason", "marks", "duplicate_of")
"""Columns that this pass writes."""


@dataclass(frozen=True, eq=False)
class Decision:
    """What becomes of the episodes of one index file.

    Attributes:
        reason, marks, duplicate_of: the columns, one value per row.
        summary: counts of the file; bytes and unreadable records are those of the scan.
        changed: whether the file says something else.
    """

    reason: Sequence[str | None]
    marks: pa.Array
    duplicate_of: Sequence[str | None]
    summary: Summary
    changed: bool


@dataclass(frozen=True, eq=False)
class Decisions:
    """What becomes of all episodes.

    Attributes:
        files: index file -> decision.
        judged: data set -> criterion -> what it found.
    """

    files: Mapping[str, Decision]
    judged: Mapping[str, Mapping[str, Judged]]


def decide(files: IndexFiles, criteria: Criteria, progress: bool = False) -> Decisions:
    """Decide what becomes of all episodes of an index.

    Args:
        files: the index files; data sets are compared with each other only for exact copies.
        criteria: which conditions apply.
        progress: whether to show a progress bar.
    """
    paths = _ordered(files)
    columns = tuple(dict.fromkeys((*decisions.columns(criteria), *_DECIDED, "action_hash")))
    parts = _slices({path: files.entries[path].rows for path in paths})
    before: dict[str, pa.Table] = {}
    reasons, hashes, usable = [], [], []
    for path, table in query.read_ahead(files, list(parts), columns):
        before[path] = table.select([*_DECIDED, "num_steps"])
        reasons.append(decisions.own_reasons(table, criteria))
        hashes.append(table["action_hash"].combine_chunks())
        usable.append(decisions.can_be_judged(table))
    if not parts:
        return Decisions({}, {})
    reason, judgeable = np.concatenate(reasons), np.concatenate(usable)
    with Bar("judge", sum(files.entry(path).bytes for path in parts), progress) as bar:
        judged = _judge(files, parts, judgeable & _kept(reason), criteria, bar)
    near = _drop(judged, reason, criteria)
    original = _copies(hashes, near, reason, criteria)
    marks = _marks(judged, near)
    names = _names(files, parts, original)
    in_train = max((part.stop for path, part in parts.items() if split_of(path) == "train"), default=0)
    found = {}
    for path, part in parts.items():
        # train splits come first, so an original in one has a low position
        leaking = _kept(reason[part]) & (original[part] >= 0) & (original[part] < in_train)
        summary = Summary.count(zip(before[path]["num_steps"].to_pylist(), reason[part].tolist(), strict=True))
        scanned = files.entry(path).summary
        summary.bytes_read, summary.corrupt = scanned.bytes_read, scanned.corrupt
        summary.copies = int((_kept(reason[part]) & (original[part] >= 0)).sum())
        summary.leaks = {split_of(path): int(leaking.sum())} if leaking.any() and split_of(path) != "train" else {}
        found[path] = _decision(before[path], reason[part], marks[part], names[part], summary)
    return Decisions(found, _summaries(files, parts, judged, marks, reason))


def _kept(reason: Any) -> NDArray[np.bool_]:
    return np.asarray(reason == None)  # noqa: E711 (elementwise)


def _decision(before: pa.Table, reason: Any, marks: Any, names: Any, summary: Summary) -> Decision:
    columns = {
        "reason": pa.array(reason.tolist(), pa.string()),
        "marks": pa.array([mine or [] for mine in marks.tolist()], SCHEMA.field("marks").type),
        "duplicate_of": pa.array(names.tolist(), pa.string()),
    }
    changed = any(not before[name].combine_chunks().equals(column) for name, column in columns.items())
    return Decision(
        columns["reason"].to_pylist(), columns["marks"], columns["duplicate_of"].to_pylist(), summary, changed
    )


def apply_decisions(files: IndexFiles, made: Decisions) -> dict[str, IndexFile]:
    """Rewrite the files that change, each completely or not at all; return their new entries in files.json."""

    def tables() -> Iterator[tuple[str, pa.Table, Summary]]:
        for path, decision in made.files.items():
            if decision.changed:
                decided = decision.reason, decision.marks, decision.duplicate_of
                yield path, with_decisions(files.table(path), *decided), decision.summary

    return rewrite_tables(files.folder, tables(), files.entries, files.tables)


def _ordered(files: IndexFiles) -> list[str]:
    """Index files in order of precedence."""

    def key(path: str) -> tuple[bool, str, str, str, int]:
        number = int(path.removesuffix(".parquet").rsplit("-", 3)[1])
        return duplicates.precedence(split_of(path), *dataset_of(path), number)

    return sorted(files.entries, key=key)


def _slices(counts: Mapping[str, int]) -> dict[str, slice]:
    """Index file -> its rows, of the files that have any."""
    stops = np.cumsum(list(counts.values()), dtype=np.int64).tolist()
    return {path: slice(stop - n, stop) for (path, n), stop in zip(counts.items(), stops, strict=True) if n}


_Found = tuple[NDArray[np.int64], dict[str, Judgement]]
"""Rows of the judged episodes of a data set, and what each criterion found in them."""


def _judge(
    files: IndexFiles, parts: Mapping[str, slice], valid: NDArray[np.bool_], criteria: Criteria, bar: Bar
) -> dict[str, _Found]:
    found = {}
    wanted = criteria.measured()
    by_dataset: dict[str, dict[str, slice]] = {}
    for path, part in parts.items():
        by_dataset.setdefault(dataset_of(path)[0], {})[path] = part
    for dataset, mine in by_dataset.items() if wanted else ():
        rows = np.concatenate([part.start + np.flatnonzero(valid[part]) for part in mine.values()])
        judged = judge_dataset(
            files, {path: valid[part] for path, part in mine.items()}, MEASURES, wanted, criteria.fixed_limits(), bar
        )
        found[dataset] = rows, {name: judged[name] for name in wanted if name in judged}
    return found


def _drop(judged: Mapping[str, _Found], reason: NDArray[np.object_], criteria: Criteria) -> NDArray[np.int64]:
    """Set the reasons of the criteria that drop; return the original of each near copy, -1 for none."""
    near = np.full(len(reason), -1, np.int64)
    drops = criteria.measured()
    for rows, judgements in judged.values():
        for name, judgement in judgements.items():
            over = judgement.exceeds
            if judgement.copy_of is not None:
                over &= judgement.copy_of >= 0
                near[rows[over]] = rows[judgement.copy_of[over]]
            elif drops[name]:
                free = rows[over]
                reason[free[_kept(reason[free])]] = name
    return near


def _copies(
    hashes: Sequence[Any], near: NDArray[np.int64], reason: NDArray[np.object_], criteria: Criteria
) -> NDArray[np.int64]:
    """The row of each episode's original, -1 for none; sets the reasons of copies that are dropped.

    What is not a near copy after all is removed from `near`.
    """
    kept = _kept(reason)
    original = np.full(len(reason), -1, np.int64)
    if criteria.duplicate is not False:
        hashed = np.concatenate([np.asarray(part.is_valid()) for part in hashes])
        values = np.concatenate([np.asarray(part.fill_null(0)) for part in hashes])
        original = duplicates.exact_copies(values, kept & hashed)
        if criteria.duplicate is True:
            reason[original >= 0] = "duplicate"
    near[~kept | (original >= 0)] = -1  # an exact copy is not also a near one
    near[(near >= 0) & ~kept[near]] = -1
    alike = np.flatnonzero(near >= 0)
    alike = alike[near[near[alike]] < 0]
    first = original[near[alike]]
    original[alike] = np.where(first >= 0, first, near[alike])
    further = np.flatnonzero(original >= 0)  # copies of an episode that is itself a near copy
    again = original[original[further]]
    original[further] = np.where(again >= 0, again, original[further])
    if criteria.measured().get(_NEAR):
        reason[alike] = _NEAR
    return original


def _marks(judged: Mapping[str, _Found], near: NDArray[np.int64]) -> NDArray[np.object_]:
    """The marks of every episode: object (n,) of lists of dicts as in `MARK`, None for none."""
    marks = np.full(len(near), None, object)
    for rows, judgements in judged.values():
        for name, judgement in judgements.items():
            for i in np.flatnonzero(judgement.exceeds).tolist():
                row = rows[i]
                if judgement.copy_of is not None and near[row] < 0:
                    continue
                mark = {
                    "criterion": name, "value": float(judgement.value[i]), "limit": float(judgement.limit),
                    "step": int(judgement.step[i]), "detail": judgement.detail(i),
                }  # fmt: skip
                marks[row] = [*(marks[row] or []), mark]
    return marks


def _summaries(
    files: IndexFiles,
    parts: Mapping[str, slice],
    judged: Mapping[str, _Found],
    marks: NDArray[np.object_],
    reason: NDArray[np.object_],
) -> dict[str, dict[str, Judged]]:
    """Data set -> criterion -> what it found."""
    worst = {
        (dataset, name): int(np.nanargmax(judgement.value))
        for dataset, (_, judgements) in judged.items()
        for name, judgement in judgements.items()
        if not np.isnan(judgement.value).all()
    }
    ids = _ids(files, parts, np.array([judged[dataset][0][i] for (dataset, _), i in worst.items()], np.int64))
    found: dict[str, dict[str, Judged]] = {}
    for dataset, (rows, judgements) in judged.items():
        marked = Counter(mark["criterion"] for row in rows.tolist() if reason[row] is None for mark in marks[row] or ())
        dropped = Counter(reason[rows].tolist())
        found[dataset] = {}
        for name, judgement in judgements.items():
            at = worst.get((dataset, name))
            found[dataset][name] = Judged(
                limit=float(judgement.limit) if math.isfinite(judgement.limit) else None,
                unit=judgement.unit,
                measured=int((~np.isnan(judgement.value)).sum()),
                marked=marked[name],
                dropped=dropped[name],
                worst=None if at is None else ids[int(rows[at])],
                value=None if at is None else min(float(judgement.value[at]), _LARGEST),
            )
    return found


def _names(files: IndexFiles, parts: Mapping[str, slice], original: NDArray[np.int64]) -> NDArray[np.object_]:
    """The id of each episode's original, None for none."""
    names = np.full(len(original), None, object)
    copies = np.flatnonzero(original >= 0)
    ids = _ids(files, parts, original[copies])
    names[copies] = [ids[row] for row in original[copies].tolist()]
    return names


def _ids(files: IndexFiles, parts: Mapping[str, slice], rows: NDArray[np.int64]) -> dict[int, str]:
    """Row -> id of its episode; each file is read once."""
    ids: dict[int, str] = {}
    wanted = np.unique(rows)
    for path, part in parts.items():
        mine = wanted[(wanted >= part.start) & (wanted < part.stop)]
        if len(mine):
            column = files.table(path, ["episode_id"])["episode_id"]
            ids |= {row: column[row - part.start].as_py() for row in mine.tolist()}
    return ids
