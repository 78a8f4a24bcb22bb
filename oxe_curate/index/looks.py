"""The index column `look`: what is known of the decoded frames of each camera."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from oxe_curate.quality.looks import COLOUR, GREY, LookedFrames, empty_looks, join_looks

LOOK = pa.struct(
    [
        ("step", pa.int32()),
        ("length", pa.int32()),
        ("checksum", pa.uint32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("channels", pa.int8()),
        ("mean", pa.list_(pa.float32(), 3)),
        ("deviation", pa.list_(pa.float32(), 3)),
        ("detail", pa.float32()),
        ("grey", pa.binary(GREY * GREY)),
        ("colour", pa.binary(COLOUR * COLOUR * 3)),
    ]
)
LOOKS = pa.map_(pa.string(), pa.list_(LOOK))
"""Type of the column: role -> looked-at frames; null if the scan did not look."""


def looks_column(rows: Sequence[Mapping[str, LookedFrames] | None]) -> Any:
    """The column of some rows, each with role -> the frames of one episode."""
    if all(row is None for row in rows):
        return pa.nulls(len(rows), LOOKS)
    parts = [part for row in rows if row for part in row.values()]
    frames = join_looks(parts) if parts else empty_looks(0)
    columns = [_values(getattr(frames, field.name), field.type) for field in LOOK]
    items = pa.StructArray.from_arrays(columns, fields=list(LOOK))
    lists = pa.ListArray.from_arrays(pa.array(frames.starts.astype(np.int32)), items, type=pa.list_(LOOK))
    keys = pa.array([role for row in rows if row for role in row], pa.string())
    ends = np.cumsum([0, *(len(row or ()) for row in rows)])
    return pa.MapArray.from_arrays(
        pa.array([None if row is None else int(end) for row, end in zip([*rows, {}], ends, strict=True)], pa.int32()),
        keys,
        lists,
    )


def _values(values: NDArray[Any], kind: Any) -> Any:
    flat = np.ascontiguousarray(values).reshape(-1)
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(pa.array(flat), type=kind)
    if pa.types.is_fixed_size_binary(kind):
        return pa.FixedSizeBinaryArray.from_buffers(kind, len(values), [None, pa.py_buffer(flat)])
    return pa.array(flat, kind)


def read_looked_frames(column: Any) -> dict[str, LookedFrames]:
    """Role -> looked-at frames of all rows of a `look` column; {} if no row has any.

    Args:
        column: a pyarrow MapArray, or ChunkedArray, of type `LOOKS`.
    """
    column = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) and column.num_chunks else column
    if isinstance(column, pa.ChunkedArray) or not len(column) or not len(column.keys):
        return {}
    first, last = column.offsets[0].as_py(), column.offsets[-1].as_py()
    roles = np.asarray(column.keys.to_pylist(), object)[first:last]
    row = np.repeat(np.arange(len(column)), np.diff(np.asarray(column.offsets)))
    ends = np.asarray(column.items.offsets)[first : last + 1].astype(np.int64)
    frames = column.items.values
    everything = LookedFrames(
        starts=ends - ends[0],
        **{field.name: _array(frames.field(field.name)[ends[0] : ends[-1]], field.type) for field in LOOK},
    )
    nothing = empty_looks(0, 1)
    found = {}
    for role in dict.fromkeys(roles.tolist()):
        entries = np.flatnonzero(roles == role)
        place = np.full(len(column), len(everything), np.int64)  # the last entry has no frames
        place[row[entries]] = entries
        found[role] = join_looks([everything, nothing]).take(place)
    return found


def _array(values: Any, kind: Any) -> NDArray[Any]:
    if pa.types.is_fixed_size_list(kind):
        return np.asarray(values.flatten()).reshape(-1, 3)
    if pa.types.is_fixed_size_binary(kind):
        data = np.frombuffer(values.buffers()[1] or b"", np.uint8)
        width = kind.byte_width
        flat = data[values.offset * width : (values.offset + len(values)) * width]
        return flat.reshape((-1, GREY, GREY) if width == GREY * GREY else (-1, COLOUR, COLOUR, 3))
    return np.asarray(values)
