"""Judge the episodes of one data set by the measures of `quality`, from its index files, one file at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from oxe_curate.blas import one_thread
from oxe_curate.index import query
from oxe_curate.index.looks import read_looked_frames
from oxe_curate.index.store import IndexFiles
from oxe_curate.progress import Bar
from oxe_curate.quality.episodes import EpisodeBatch, join
from oxe_curate.quality.looks import LookedFrames
from oxe_curate.quality.measure import SAMPLE, Judgement, Measure, judge_batches

_SAMPLED_FILES = 32
_STEPS = 1 << 14
"""Steps of a batch, at most, if it has several files."""
_COLUMNS = {
    "proprio": "proprio", "instruction": "instruction", "instructions": "instructions", "success": "success",
    "frame_bytes": "cameras", "looks": "look",
}  # fmt: skip
"""What a measure uses -> the column of the index that has it."""


def judge_dataset(
    files: IndexFiles,
    valid: Mapping[str, NDArray[np.bool_]],
    measures: Sequence[Measure],
    criteria: Collection[str],
    limits: Mapping[str, float],
    bar: Bar,
) -> dict[str, Judgement]:
    """Judge a data set's episodes.

    Args:
        files: the index.
        valid: its index files, in order -> which episodes to judge, bool (rows,). Others do not count.
        measures: all that there are.
        criteria: those to decide.
        limits: see `judge_batches`.
        bar: counts the bytes of the files.

    Returns:
        Criterion -> judgement; its arrays have one value per valid episode, in order.
    """
    measures = [measure for measure in measures if set(measure.criteria) & set(criteria)]
    used = frozenset[str]().union(*(measure.columns for measure in measures))
    columns = ["action", *(_COLUMNS[name] for name in sorted(used))]
    present = {path: rows for path, rows in valid.items() if rows.any()}
    if not present or not measures:
        return {}

    def batches() -> Iterator[EpisodeBatch]:
        for path, table in query.read_ahead(files, list(present), columns):
            yield episodes_of(table, np.flatnonzero(present[path]), used)
            bar.add(files.entry(path).bytes, len(table))

    with one_thread():
        sample = _sample(files, present, columns, used)
        return judge_batches(measures, sample, lambda: _joined(batches()), criteria, limits)


def _joined(batches: Iterable[EpisodeBatch]) -> Iterator[EpisodeBatch]:
    """The same episodes in fewer batches, where they have the same columns: a numpy call costs less than its call."""
    waiting: list[EpisodeBatch] = []
    for batch in batches:
        if waiting and (_kind(batch) != _kind(waiting[0]) or sum(len(b.action) for b in (*waiting, batch)) > _STEPS):
            yield join(waiting)
            waiting = []
        waiting.append(batch)
    if waiting:
        yield join(waiting)


def _kind(batch: EpisodeBatch) -> tuple[Any, ...]:
    return batch.proprio.shape[1], set(batch.frame_bytes), set(batch.looks)


def _sample(
    files: IndexFiles, valid: Mapping[str, NDArray[np.bool_]], columns: Sequence[str], used: Collection[str]
) -> EpisodeBatch:
    """Up to `SAMPLE` episodes, evenly from files that are spread evenly."""
    paths = list(valid)
    chosen = [paths[i] for i in np.unique(np.linspace(0, len(paths) - 1, _SAMPLED_FILES).round().astype(int))]
    counts = np.array([int(valid[path].sum()) for path in chosen])
    most = _share(counts, SAMPLE)
    found = []
    for path, table in query.read_ahead(files, chosen, columns):
        rows = np.flatnonzero(valid[path])
        take = np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int))
        found.append(episodes_of(table, rows[take], used))
    return join(found)


def _share(counts: NDArray[np.int64], total: int) -> int:
    """The most episodes to take of each file so that there are at most `total`; at least 1."""
    low, high = 1, total
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if int(np.minimum(counts, middle).sum()) <= total else (low, middle - 1)
    return low


def episodes_of(table: pa.Table, rows: NDArray[np.int64], used: Collection[str]) -> EpisodeBatch:
    """Some rows of an index table as a batch.

    Args:
        table: with the column action and those for `used`.
        rows: their numbers; each has at least one step.
        used: see `Measure.columns`.
    """
    action = table["action"].combine_chunks()
    begin = np.asarray(action.offsets, np.int64)
    counts = begin[rows + 1] - begin[rows]
    starts = np.concatenate(([0], np.cumsum(counts)))
    steps = np.arange(int(starts[-1])) + np.repeat(begin[rows] - starts[:-1], counts)
    values = np.asarray(action.values.flatten()).reshape(-1, 7)
    proprio = np.empty((len(steps), 0), np.float32)
    if "proprio" in used:
        proprio = _proprio(table["proprio"].combine_chunks(), len(values))[steps]
    flags = np.full(len(rows), -1, np.int8)
    if "success" in used:
        flags = np.asarray(table["success"].combine_chunks().cast(pa.int8()).fill_null(-1), np.int8)[rows]
    return EpisodeBatch(
        action=values[steps],
        proprio=proprio,
        starts=starts,
        instruction=table["instruction"].take(rows).to_pylist() if "instruction" in used else [""] * len(rows),
        instructions=table["instructions"].take(rows).to_pylist() if "instructions" in used else (),
        success=flags,
        looks=_looks(table["look"], rows) if "looks" in used else {},
        frame_bytes=_frame_bytes(table["cameras"].combine_chunks(), rows, counts) if "frame_bytes" in used else {},
    )


def _proprio(column: Any, count: int) -> NDArray[np.float32]:
    """float32 (steps of the file, P); P = 0 if the steps differ in it."""
    steps = column.values
    widths = np.diff(np.asarray(steps.offsets, np.int64))
    width = int(widths[0]) if len(widths) else 0
    if len(widths) != count or (widths != width).any():
        return np.empty((count, 0), np.float32)
    return np.asarray(steps.values, np.float32)[int(steps.offsets[0].as_py()) :][: count * width].reshape(count, width)


def _frame_bytes(column: Any, rows: NDArray[np.int64], counts: NDArray[np.int64]) -> dict[str, NDArray[np.int32]]:
    """Lengths of the frames of each camera of which every step of every row is located."""
    begin = np.asarray(column.offsets, np.int64)
    keys = np.asarray(column.keys.to_pylist(), object)
    frames = np.asarray(column.items.offsets, np.int64)
    length = np.asarray(column.items.values.field("length"), np.int32)
    owner = np.repeat(np.arange(len(column)), np.diff(begin))
    found = {}
    for role in sorted(set(keys.tolist())):
        at = np.full(len(column), -1, np.int64)
        at[owner[keys == role]] = np.flatnonzero(keys == role)
        mine = at[rows]
        if (mine < 0).any() or (frames[mine + 1] - frames[mine] != counts).any():
            continue
        starts = np.concatenate(([0], np.cumsum(counts)))
        found[role] = length[np.arange(int(starts[-1])) + np.repeat(frames[mine] - starts[:-1], counts)]
    return found


def _looks(column: Any, rows: NDArray[np.int64]) -> dict[str, LookedFrames]:
    return {role: frames.take(rows) for role, frames in read_looked_frames(column).items()}
