"""Mixture shards: the Parquet schema, and writing a shard without copying images in Python.

Images are a `binary_view` column whose views point into the memory-mapped source shards, so shuffling is a permutation
of 16-byte views. In the file they are plain binary, PLAIN encoded and uncompressed (JPEG does not shrink further), so
that any reader opens them and a trainer can find the byte offset of each image.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from oxe_curate.errors import DataError
from oxe_curate.index.images import EncodedFrames
from oxe_curate.storage import Folder

_ROW_GROUP = 256
"""Frames of a camera per row group: rows if the window is 1, else rows times the window."""
_META = b"oxe_curate"
_WINDOW = 30  # bits: a source buffer over 2 GiB is split into overlapping windows that begin every GiB
_INLINE = 12


class FrameViews:
    """The frames of a shard as Arrow `binary_view` values over the same memory, computed once, selected per row group.

    The layout of a view (Arrow columnar format, "Variable-size Binary View"): int32 length, then up to 12 bytes
    inline, or 4 bytes of prefix, int32 buffer, int32 offset.

    Args:
        frames: n frames.
        used: bool (n,), which frames will be picked; the others are not read. None: all.
    """

    def __init__(self, frames: EncodedFrames, used: NDArray[np.bool_] | None = None) -> None:
        self._windows: list[Any] = []
        self._views = views = np.zeros((len(frames.length), 4), np.int32)
        views[:, 0] = frames.length
        views[:, 3] = frames.offset & ((1 << _WINDOW) - 1)
        raw = views.view(np.uint8).reshape(-1, 16)
        picked = np.ones(len(views), bool) if used is None else used
        for i, data in enumerate(frames.buffers):
            here = np.flatnonzero((frames.buffer == i) & picked)
            views[here, 2] = len(self._windows) + (frames.offset[here] >> _WINDOW)
            starts = range(0, max(len(data), 1), 1 << _WINDOW)
            self._windows += [pa.py_buffer(data[start : start + 2**31 - 1]) for start in starts]
            here = here[frames.length[here] > _INLINE]
            raw[here, 4:8] = np.frombuffer(data, np.uint8)[frames.offset[here, None] + np.arange(4)]
        for row in np.flatnonzero((frames.length <= _INLINE) & picked):
            data, offset, length = frames.buffers[frames.buffer[row]], frames.offset[row], frames.length[row]
            raw[row, 4:] = 0
            raw[row, 4 : 4 + length] = np.frombuffer(data[offset : offset + length], np.uint8)

    def pick(self, rows: NDArray[np.int64]) -> Any:
        """A `binary_view` array of the given frames; -1 gives an empty value."""
        picked = self._views[rows]
        picked[rows < 0] = 0
        return pa.Array.from_buffers(pa.binary_view(), len(picked), [None, pa.py_buffer(picked), *self._windows])


def schema(cameras: Sequence[str], window: int) -> Any:
    """The schema of a mixture shard, with images as plain binary and Hugging Face's feature description."""
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields = [
        ("sample_id", pa.string()),
        ("dataset", pa.string()),
        ("episode_id", pa.string()),
        ("step", pa.int32()),
        ("instruction", pa.string()),
        *((f"image_{role}", image if window == 1 else pa.list_(image)) for role in cameras),
        ("action", pa.list_(pa.list_(pa.float32(), 7))),
        ("bins", pa.list_(pa.list_(pa.uint8(), 7))),
        ("proprio", pa.list_(pa.float32())),
        ("action_mask", pa.list_(pa.bool_())),
    ]
    if window > 1:
        fields.append(("observation_mask", pa.list_(pa.bool_())))
    return pa.schema(fields)


def _hugging_face(fields: Any) -> str:
    """The `huggingface` metadata entry, with which `datasets` decodes images. All its versions read `Sequence`."""

    def feature(kind: Any, name: str) -> Any:
        if pa.types.is_struct(kind):
            return {"_type": "Image"}
        if pa.types.is_fixed_size_list(kind):
            return {"feature": feature(kind.value_type, name), "length": kind.list_size, "_type": "Sequence"}
        if pa.types.is_list(kind):
            return {"feature": feature(kind.value_type, name), "_type": "Sequence"}
        names = {"float": "float32"}
        return {"dtype": names.get(str(kind), str(kind)), "_type": "Value"}

    return json.dumps({"info": {"features": {f.name: feature(f.type, f.name) for f in fields}}})


@dataclass(frozen=True, slots=True)
class ShardRows:
    """A shard's rows before they are shuffled; every array has one entry per row.

    Attributes:
        codes: int32 (n,) codes into `texts`, of `dataset`, `episode_id` and `instruction`.
        sample_id: a string array.
        frame: int64 (n, window), which of `frames` each observation shows; -1 for padding.
        frames: by camera role.
        action: float32 (n, A, 7), normalised, A = window + chunk - 1. bins: uint8 (n, A, 7). action_mask: bool (n, A).
        observation_mask: bool (n, window).
        proprio: float32, the rows' values one after the other, since their number differs between data sets.
        proprio_width: int64 (n,), how many values each row has.
    """

    sample_id: Any
    texts: Mapping[str, Sequence[str]]
    codes: Mapping[str, NDArray[np.int32]]
    step: NDArray[np.int32]
    frame: NDArray[np.int64]
    frames: Mapping[str, EncodedFrames]
    action: NDArray[np.float32]
    bins: NDArray[np.uint8]
    action_mask: NDArray[np.bool_]
    observation_mask: NDArray[np.bool_]
    proprio: NDArray[np.float32]
    proprio_width: NDArray[np.int64]


def shard_table(rows: ShardRows, views: Mapping[str, FrameViews], permutation: NDArray[np.int64]) -> Any:
    """The rows `permutation`, in that order, as an Arrow table with images as views."""
    n, window = len(permutation), rows.frame.shape[1]
    actions = rows.action.shape[1]
    plain = schema(list(rows.frames), window)
    columns: list[Any] = [rows.sample_id.take(pa.array(permutation))]
    columns += [_decode(rows, "dataset", permutation), _decode(rows, "episode_id", permutation)]
    columns += [pa.array(rows.step[permutation]), _decode(rows, "instruction", permutation)]
    for role in rows.frames:
        frames = rows.frame[permutation].ravel()
        encoded, padding = views[role].pick(frames), None
        if window > 1:
            encoded = encoded.cast(pa.binary())  # copies: the writer cannot slice views inside a list
            padding = pa.array(frames < 0)
        image = pa.StructArray.from_arrays(
            [encoded, pa.nulls(n * window, pa.string())], ["bytes", "path"], mask=padding
        )
        columns.append(image if window == 1 else _fixed(image, window))
    columns.append(_fixed(_sevens(rows.action[permutation]), actions))
    columns.append(_fixed(_sevens(rows.bins[permutation]), actions))
    columns.append(_proprio(rows, permutation))
    columns.append(_fixed(pa.array(rows.action_mask[permutation].ravel()), actions))
    if window > 1:
        columns.append(_fixed(pa.array(rows.observation_mask[permutation].ravel()), window))
    return pa.table(columns, names=plain.names)


def stored(rows: ShardRows) -> dict[str, int]:
    """Number and bytes of all frames and of distinct frames in the rows, for the manifest."""
    frames = rows.frame[rows.frame >= 0]
    different = np.unique(frames)
    lengths = [f.length for f in rows.frames.values()]
    return {
        "stored": len(frames) * len(lengths),
        "distinct": len(different) * len(lengths),
        "bytes": sum(int(length[frames].sum()) for length in lengths),
        "distinct_bytes": sum(int(length[different].sum()) for length in lengths),
    }


def _decode(rows: ShardRows, name: str, permutation: NDArray[np.int64]) -> Any:
    codes = pa.array(rows.codes[name][permutation])
    return pa.array(rows.texts[name], pa.string()).take(codes)


def _sevens(array: NDArray[Any]) -> Any:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(array).ravel()), 7)


def _fixed(values: Any, size: int) -> Any:
    """Split values into lists of `size`."""
    offsets = np.arange(0, len(values) + 1, size, dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def _proprio(rows: ShardRows, permutation: NDArray[np.int64]) -> Any:
    starts = np.concatenate(([0], np.cumsum(rows.proprio_width)))
    offsets = pa.array(starts.astype(np.int32))
    return pa.ListArray.from_arrays(offsets, pa.array(rows.proprio)).take(pa.array(permutation))


def write_shard_file(
    out: Folder, path: str, rows: ShardRows, permutation: NDArray[np.int64], meta: Mapping[str, Any]
) -> None:
    """Publish a shard, its rows in the order of `permutation`.

    The ARROW:schema entry declares plain binary: with `binary_view`, a reader would fail on operations that Arrow does
    not support for it (as Hugging Face streaming does).
    """
    window = rows.frame.shape[1]
    plain = schema(list(rows.frames), window)
    views = {}
    for role, frames in rows.frames.items():
        used = np.zeros(len(frames.length), bool)
        used[rows.frame[rows.frame >= 0]] = True
        views[role] = FrameViews(frames, used)
    _write(
        out, path, plain, meta, lambda chosen: shard_table(rows, views, chosen), permutation, -(-_ROW_GROUP // window),
        dictionary=("dataset", "episode_id", "instruction"), statistics=("dataset", "step"),
    )  # fmt: skip


_TEXT_SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("dataset", pa.string()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("question", pa.string()),
        ("answer", pa.string()),
    ]
)
"""Schema of a text shard."""


def write_texts(
    out: Folder,
    path: str,
    rows: Any,
    frames: EncodedFrames,
    frame: NDArray[np.int64],
    permutation: NDArray[np.int64],
    meta: Mapping[str, Any],
) -> None:
    """Publish a shard of image-text rows, in the order of `permutation`.

    Args:
        out: the mixture's folder.
        path: of the shard in `out`.
        rows: a table of n rows with the columns of `_TEXT_SCHEMA` except the image.
        frames: the images.
        frame: int64 (n,), the image of each row.
        permutation: int64 (n,).
        meta: metadata of the shard.
    """
    views = FrameViews(frames)

    def table(chosen: NDArray[np.int64]) -> Any:
        picked = rows.take(pa.array(chosen))
        image = pa.StructArray.from_arrays(
            [views.pick(frame[chosen]), pa.nulls(len(chosen), pa.string())], ["bytes", "path"]
        )
        columns = [image if name == "image" else picked[name] for name in _TEXT_SCHEMA.names]
        return pa.table(columns, names=_TEXT_SCHEMA.names)

    _write(
        out, path, _TEXT_SCHEMA, meta, table, permutation, _ROW_GROUP,
        dictionary=("dataset", "question"), statistics=("dataset",),
    )  # fmt: skip


def _write(
    out: Folder,
    path: str,
    plain: Any,
    meta: Mapping[str, Any],
    table: Callable[[NDArray[np.int64]], Any],
    permutation: NDArray[np.int64],
    group: int,
    *,
    dictionary: Sequence[str],
    statistics: Sequence[str],
) -> None:
    """Write `table(rows)` for `group` rows of the permutation at a time; readers see the schema `plain`."""
    metadata = {b"huggingface": _hugging_face(plain).encode(), _META: json.dumps(meta, sort_keys=True).encode()}
    arrow = plain.with_metadata(metadata).serialize().to_pybytes()  # Arrow's reader takes the metadata from here
    metadata[b"ARROW:schema"] = base64.b64encode(arrow)
    leaves = _leaves(plain)
    compression = {leaf: "none" if leaf.startswith("image") and leaf.endswith(".bytes") else "zstd" for leaf in leaves}

    def save(sink: Any) -> None:
        first = table(permutation[:group])
        with pq.ParquetWriter(
            sink,
            first.schema,
            store_schema=False,
            compression=compression,
            use_dictionary=list(dictionary),
            write_statistics=list(statistics),
        ) as writer:
            writer.write_table(first)
            # one table per row group: the writer cannot slice views inside a struct
            for start in range(group, len(permutation), group):
                writer.write_table(table(permutation[start : start + group]))
            writer.add_key_value_metadata(metadata)

    out.publish(path, save)


def _leaves(plain: Any) -> list[str]:
    """Dotted paths of the Parquet leaf columns."""

    def walk(kind: Any, path: str) -> list[str]:
        if pa.types.is_struct(kind):
            return [leaf for field in kind for leaf in walk(field.type, f"{path}.{field.name}")]
        if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
            return walk(kind.value_type, f"{path}.list.element")
        return [path]

    return [leaf for field in plain for leaf in walk(field.type, field.name)]


def read_shard_meta(out: Folder, path: str) -> dict[str, Any]:
    """The metadata of a shard, from its footer. Raises DataError if it is not a mixture shard."""
    try:
        with out.open(path) as file:
            footer = pq.read_metadata(file)
        return {**json.loads(footer.metadata[_META]), "rows": footer.num_rows}
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{out}/{path}: not a mixture shard ({error})") from None
