"""The rows of the episode index as an Arrow table: the schema, and columns built without a Python object per step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import crc32c
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from oxe_curate.episode import EpisodeId, Trajectory
from oxe_curate.index.looks import LOOKS, looks_column
from oxe_curate.index.metrics import action_hash, metrics
from oxe_curate.quality.looks import LookedFrames

FRAME = pa.struct([("offset", pa.int64()), ("length", pa.int32())])
SPAN = pa.struct([("offset", pa.int64()), ("length", pa.int64())])
METRICS = pa.struct(
    [
        ("idle_share", pa.float32()),
        ("largest_action", pa.float32()),
        ("path_length", pa.float32()),
        ("seconds", pa.float32()),
    ]
)
MARK = pa.struct(
    [
        ("criterion", pa.string()),
        ("value", pa.float32()),
        ("limit", pa.float32()),
        ("step", pa.int32()),
        ("detail", pa.string()),
    ]
)
SCHEMA = pa.schema(
    [
        ("episode_id", pa.string()),
        ("shard", pa.string()),
        ("record_offset", pa.int64()),
        ("record_length", pa.int64()),
        ("record_crc", pa.uint32()),
        ("num_steps", pa.int32()),
        ("source_steps", pa.int32()),
        ("kept", pa.bool_()),
        ("reason", pa.string()),
        ("applies", pa.list_(pa.string())),
        ("success", pa.bool_()),
        ("marks", pa.list_(MARK)),
        ("instruction", pa.string()),
        ("instructions", pa.list_(pa.string())),
        ("instruction_index", pa.list_(pa.int32())),
        ("frame_index", pa.list_(pa.int32())),
        ("action", pa.list_(pa.list_(pa.float32(), 7))),
        ("proprio", pa.list_(pa.list_(pa.float32()))),
        ("cameras", pa.map_(pa.string(), pa.list_(FRAME))),
        ("camera_spans", pa.map_(pa.string(), SPAN)),
        ("values_crc", pa.uint32()),
        ("metrics", METRICS),
        ("action_hash", pa.uint64()),
        ("duplicate_of", pa.string()),
        ("look", LOOKS),
    ]
)


@dataclass(frozen=True, slots=True)
class IndexRow:
    """An episode to be written to the index.

    Attributes:
        record: (offset, length) of the record's data in the shard.
        record_crc: the masked CRC32C of the record's data, as stored after it.
        source_steps: T, before the trim.
        applies: criteria of the scan that it does not meet, whether or not they are on (see filter/screen.py).
        success: the success flag, None if there is none.
        trajectory: None if the card has no recipe.
        frames: role -> int64 (T', 2), (offset, length) of each remaining step's encoded frame; empty if the frames
            were not located (see `spans`).
        spans: role -> (offset, length) of the whole list of frames in the shard.
        looks: role -> what is known of the frames that were decoded; None if the scan did not look.
    """

    id: EpisodeId
    shard: str
    record: tuple[int, int]
    record_crc: int
    source_steps: int
    applies: tuple[str, ...]
    success: bool | None
    trajectory: Trajectory | None
    frames: Mapping[str, NDArray[np.int64]]
    spans: Mapping[str, tuple[int, int]]
    control_hz: float | None
    looks: Mapping[str, LookedFrames] | None = None

    @property
    def num_steps(self) -> int:
        """Steps after the trim; of the source if the card has no recipe."""
        return self.source_steps if self.trajectory is None else len(self.trajectory)


def _metrics(rows: Sequence[IndexRow], action: NDArray[np.float32], lengths: Sequence[int]) -> Any:
    columns = metrics(action, np.array(lengths, np.int64), [row.control_hz for row in rows])
    return pa.StructArray.from_arrays(
        [pa.array(columns[field.name], from_pandas=True) for field in METRICS],
        fields=list(METRICS),
        mask=pa.array([row.trajectory is None for row in rows], pa.bool_()),
    )


def index_table(rows: Sequence[IndexRow]) -> pa.Table:
    """Build an Arrow table with `SCHEMA` from rows, without a Python object per step. All episodes count as kept."""
    trajectories = [row.trajectory for row in rows]
    lengths = [len(t) if t is not None else 0 for t in trajectories]
    missing = np.array([t is None for t in trajectories], bool)
    action = _join([t.action for t in trajectories if t is not None], np.float32).reshape(-1, 7)
    columns: dict[str, Any] = {
        "episode_id": [str(row.id) for row in rows],
        "shard": [row.shard for row in rows],
        "record_offset": [row.record[0] for row in rows],
        "record_length": [row.record[1] for row in rows],
        "record_crc": [row.record_crc for row in rows],
        "num_steps": [row.num_steps for row in rows],
        "source_steps": [row.source_steps for row in rows],
        "kept": [True] * len(rows),
        "reason": pa.nulls(len(rows), pa.string()),
        "applies": [list(row.applies) for row in rows],
        "success": [row.success for row in rows],
        "marks": pa.ListArray.from_arrays(
            pa.array(np.zeros(len(rows) + 1, np.int32)), pa.array([], MARK), type=SCHEMA.field("marks").type
        ),
        "instruction": [t.instruction if t is not None else "" for t in trajectories],
        "instructions": [list(t.instructions) if t is not None else [] for t in trajectories],
        # most episodes have a single instruction, so its index is omitted
        "instruction_index": [
            t.instruction_index if t is not None and t.instructions and t.instruction_index.any() else None
            for t in trajectories
        ],
        "frame_index": _lists(
            _join([t.frame_index for t in trajectories if t is not None], np.int32), lengths, pa.int32(), missing
        ),
        "action": _lists(
            pa.FixedSizeListArray.from_arrays(pa.array(action.ravel()), 7), lengths, pa.list_(pa.float32(), 7), missing
        ),
        "proprio": _proprio(trajectories, lengths, missing),
        "cameras": _cameras(rows),
        "camera_spans": _spans(rows),
        "values_crc": [_values_crc(row) for row in rows],
        "metrics": _metrics(rows, action, lengths),
        "action_hash": [action_hash(t) if t is not None else None for t in trajectories],
        "duplicate_of": pa.nulls(len(rows), pa.string()),  # filled in by across.py
        "look": looks_column([row.looks for row in rows]),
    }
    return pa.table(
        [c if isinstance(c, pa.Array) else pa.array(c, SCHEMA.field(n).type) for n, c in columns.items()], schema=SCHEMA
    )


def with_decisions(
    table: pa.Table,
    reasons: Sequence[str | None],
    marks: Any = None,
    duplicate_of: Sequence[str | None] | None = None,
) -> pa.Table:
    """Replace the columns that say what becomes of each episode; None leaves one as it is.

    Args:
        table: an index table, n rows.
        reasons: n reasons, None for an episode that is kept.
        marks: an array of lists of `MARK`, or n lists of dicts.
        duplicate_of: n ids.
    """
    columns = {
        "kept": [reason is None for reason in reasons], "reason": reasons, "marks": marks, "duplicate_of": duplicate_of,
    }  # fmt: skip
    for name, values in columns.items():
        if values is not None:
            field = SCHEMA.field(name)
            array = values if isinstance(values, pa.Array) else pa.array(values, field.type)
            table = table.set_column(table.schema.get_field_index(name), field, array)
    return table


def values_crc(
    action: NDArray[np.float32],
    proprio: NDArray[np.float32],
    frame_index: NDArray[np.int32],
    frames: NDArray[np.int64],
) -> int:
    """CRC32C over a row's numbers, so that values read by byte range can be checked.

    Args:
        action: float32 (T', 7).
        proprio: float32 (T', P).
        frame_index: int32 (T',).
        frames: int64 (n, 2), (offset, length) of the located frames of all cameras, in the order of the column.
    """
    crc = crc32c.crc32c(np.ascontiguousarray(action, np.float32).tobytes())
    for values in (
        np.ascontiguousarray(proprio, np.float32), np.ascontiguousarray(frame_index, np.int32),
        frames[:, 0].astype(np.int64), frames[:, 1].astype(np.int32),
    ):  # fmt: skip
        crc = crc32c.crc32c(values.tobytes(), crc)
    return int(crc)


_NO_FRAMES = np.empty((0, 2), np.int64)


def _values_crc(row: IndexRow) -> int | None:
    if row.trajectory is None:
        return None
    frames = np.concatenate([*row.frames.values()]) if row.frames else _NO_FRAMES
    return values_crc(row.trajectory.action, row.trajectory.proprio, row.trajectory.frame_index, frames)


def _join(parts: Sequence[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate(parts).astype(dtype, copy=False) if parts else np.empty(0, dtype)


def _offsets(lengths: Iterable[int]) -> NDArray[np.int32]:
    return np.concatenate(([0], np.cumsum(list(lengths), dtype=np.int64))).astype(np.int32)


def _lists(values: Any, lengths: Sequence[int], kind: Any, missing: NDArray[np.bool_] | None = None) -> Any:
    values = values if isinstance(values, pa.Array) else pa.array(values)
    mask = pa.array(missing) if missing is not None and missing.any() else None
    return pa.ListArray.from_arrays(pa.array(_offsets(lengths)), values, type=pa.list_(kind), mask=mask)


def _proprio(trajectories: Sequence[Trajectory | None], lengths: Sequence[int], missing: NDArray[np.bool_]) -> Any:
    widths = np.repeat([t.proprio.shape[1] if t is not None else 0 for t in trajectories], lengths)
    flat = _join([t.proprio.ravel() for t in trajectories if t is not None], np.float32)
    return _lists(_lists(flat, widths.tolist(), pa.float32()), lengths, pa.list_(pa.float32()), missing)


def _spans(rows: Sequence[IndexRow]) -> Any:
    flat = np.array([span for row in rows for span in row.spans.values()], np.int64).reshape(-1, 2)
    items = pa.StructArray.from_arrays([pa.array(np.ascontiguousarray(part)) for part in flat.T], fields=list(SPAN))
    keys = pa.array([role for row in rows for role in row.spans], pa.string())
    return pa.MapArray.from_arrays(pa.array(_offsets(len(row.spans) for row in rows)), keys, items)


def _cameras(rows: Sequence[IndexRow]) -> Any:
    frames = [array for row in rows for array in row.frames.values()]
    flat = np.concatenate(frames) if frames else np.empty((0, 2), np.int64)
    items = pa.StructArray.from_arrays(
        [pa.array(np.ascontiguousarray(flat[:, 0])), pa.array(flat[:, 1].astype(np.int32))], fields=list(FRAME)
    )
    lists = _lists(items, [len(array) for array in frames], FRAME)
    keys = pa.array([role for row in rows for role in row.frames], pa.string())
    return pa.MapArray.from_arrays(pa.array(_offsets(len(row.frames) for row in rows)), keys, lists)
