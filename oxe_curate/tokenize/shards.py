"""Mixture shards: the Parquet schema, and writing a shard.

Images are read from the source shards one row group at a time, so memory does not grow with the shard. In the file they
are plain binary, PLAIN encoded and uncompressed (JPEG does not shrink further), so that any reader opens them and a
trainer can find the byte offset of each image.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from oxe_curate.errors import DataError
from oxe_curate.index.images import EncodedFrames
from oxe_curate.storage import Folder
from oxe_curate.tokenize.checksum import CHECKSUM_KEY, PLACEHOLDER, ChecksumSink, FileHashes, read_tail
from oxe_curate.tokenize.image_pages import ImagePage, ImagePages

_ROW_GROUP = 256
"""Frames of a camera per row group: rows if the window is 1, else rows times the window."""
_META = b"oxe_curate"
_GROUP_BYTES = 128 << 20
"""Bytes of images per row group; one with larger images has fewer rows."""


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


def shard_table(rows: ShardRows, permutation: NDArray[np.int64]) -> Any:
    """The rows `permutation`, in that order, as an Arrow table with empty images."""
    window, actions = rows.frame.shape[1], rows.action.shape[1]
    plain = schema(list(rows.frames), window)
    columns: list[Any] = [rows.sample_id.take(pa.array(permutation))]
    columns += [_decode(rows, "dataset", permutation), _decode(rows, "episode_id", permutation)]
    columns += [pa.array(rows.step[permutation]), _decode(rows, "instruction", permutation)]
    image = _blank_images(rows.frame[permutation])
    columns += [image] * len(rows.frames)
    columns.append(_fixed(_sevens(rows.action[permutation]), actions))
    columns.append(_fixed(_sevens(rows.bins[permutation]), actions))
    columns.append(_proprio(rows, permutation))
    columns.append(_fixed(pa.array(rows.action_mask[permutation].ravel()), actions))
    if window > 1:
        columns.append(_fixed(pa.array(rows.observation_mask[permutation].ravel()), window))
    return pa.table(columns, schema=plain)


def _blank_images(frame: NDArray[np.int64]) -> Any:
    """Hugging Face's `Image` structs with empty bytes, null where `frame`, int64 (n, window), is padding."""
    count, window = frame.size, frame.shape[1]
    nothing = pa.Array.from_buffers(pa.binary(), count, [None, pa.py_buffer(bytes(4 * (count + 1))), pa.py_buffer(b"")])
    padding = pa.array(frame.ravel() < 0) if window > 1 else None
    image = pa.StructArray.from_arrays([nothing, pa.nulls(count, pa.string())], ["bytes", "path"], mask=padding)
    return image if window == 1 else _fixed(image, window)


def _image_page(found: EncodedFrames, frame: NDArray[np.int64]) -> ImagePage:
    """The frames that some rows show, int64 (n, window), -1 for padding. Raises DataError if one is damaged."""
    shown = frame.ravel()
    if found.stored_length[shown[shown >= 0]].sum() >= 1 << 31:
        raise DataError(f"{found.where(int(shown.max())) if found.where else 'image'}: a row's images exceed 2 GiB")
    return ImagePage(found.gather(shown), int((shown >= 0).sum()), len(shown))


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
    out: Folder,
    path: str,
    rows: ShardRows,
    permutation: NDArray[np.int64],
    meta: Mapping[str, Any],
    check: Callable[[], None],
) -> FileHashes:
    """Publish a shard, its rows in the order of `permutation`; `check` is called after the last image was read."""
    window = rows.frame.shape[1]
    leaf = "bytes" if window == 1 else "list.element.bytes"

    def pages(chosen: NDArray[np.int64]) -> dict[str, ImagePage]:
        shown = rows.frame[chosen]
        return {f"image_{role}.{leaf}": _image_page(found, shown) for role, found in rows.frames.items()}

    sizes = sum(np.where(rows.frame >= 0, f.stored_length[rows.frame], 0).sum(axis=1) for f in rows.frames.values())
    return _write(
        out, path, schema(list(rows.frames), window), meta, lambda chosen: shard_table(rows, chosen), permutation,
        np.asarray(sizes), -(-_ROW_GROUP // window), check, pages,
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
) -> FileHashes:
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

    def table(chosen: NDArray[np.int64]) -> Any:
        picked = rows.take(pa.array(chosen))
        image = _blank_images(frame[chosen, None])
        columns = [image if name == "image" else picked[name] for name in _TEXT_SCHEMA.names]
        return pa.table(columns, schema=_TEXT_SCHEMA)

    return _write(
        out, path, _TEXT_SCHEMA, meta, table, permutation, frames.length[frame], _ROW_GROUP,
        pages=lambda chosen: {"image.bytes": _image_page(frames, frame[chosen, None])},
        dictionary=("dataset", "question"), statistics=("dataset",),
    )  # fmt: skip


def _write(
    out: Folder,
    path: str,
    plain: Any,
    meta: Mapping[str, Any],
    table: Callable[[NDArray[np.int64]], Any],
    permutation: NDArray[np.int64],
    sizes: NDArray[np.int64],
    group: int,
    check: Callable[[], None] = lambda: None,
    pages: Callable[[NDArray[np.int64]], Mapping[str, ImagePage]] = lambda _: {},
    *,
    dictionary: Sequence[str],
    statistics: Sequence[str],
) -> FileHashes:
    """Write `table(rows)` for some rows of the permutation at a time; readers see the schema `plain`.

    In the table, the columns of `pages(rows)` are empty: leaf column -> the images to write in their place.
    A row group has at most `group` rows, and fewer if the bytes of their images, `sizes`, exceed `_GROUP_BYTES`.
    """
    metadata = {b"huggingface": _hugging_face(plain).encode(), _META: json.dumps(meta, sort_keys=True).encode()}
    arrow = plain.with_metadata(metadata).serialize().to_pybytes()  # Arrow's reader takes the metadata from here
    metadata[b"ARROW:schema"] = base64.b64encode(arrow)
    leaves = _leaves(plain)
    compression = {leaf: "none" if leaf.startswith("image") and leaf.endswith(".bytes") else "zstd" for leaf in leaves}

    def row_groups() -> Iterator[tuple[Any, Mapping[str, ImagePage]]]:
        return ((table(chosen), pages(chosen)) for chosen in _groups(permutation, sizes, group))

    return publish_parquet(
        out, path, plain, metadata, row_groups, check, store_schema=False, compression=compression,
        use_dictionary=list(dictionary), write_statistics=list(statistics),
    )  # fmt: skip


def publish_parquet(
    out: Folder,
    path: str,
    plain: Any,
    metadata: Mapping[bytes, bytes],
    row_groups: Callable[[], Iterator[tuple[Any, Mapping[str, ImagePage]]]],
    check: Callable[[], None],
    **options: Any,
) -> FileHashes:
    """Publish a Parquet file with checksums of its pages and of itself (see `ChecksumSink`).

    Args:
        out: the mixture's folder.
        path: of the file in `out`.
        plain: the schema.
        metadata: of the file.
        row_groups: yields the table of each row group, and by leaf column the images to write in place of empty ones.
        check: called after the last row group; what it raises ends the writing.
        options: of `pyarrow.parquet.ParquetWriter`.
    """
    hashes: list[FileHashes] = []

    def save(sink: Any) -> None:
        summed = ChecksumSink(sink)
        target = ImagePages(summed, _leaves(plain))
        with pq.ParquetWriter(target, plain, write_page_checksum=True, **options) as writer:
            for table, pages in row_groups():
                writer.write_table(table)
                target.end_row_group(len(table), pages)
            check()
            writer.add_key_value_metadata({**metadata, CHECKSUM_KEY: PLACEHOLDER})
            summed.begin_footer()
        target.finish()
        hashes.append(summed.finish())

    out.publish(path, save)
    return replace(hashes[-1], identity=out.identity(path) if out.is_local else "")


def _groups(permutation: NDArray[np.int64], sizes: NDArray[np.int64], group: int) -> Iterator[NDArray[np.int64]]:
    """The rows of each row group, at least one group."""
    ends = np.cumsum(sizes[permutation])
    start = 0
    while True:
        before = ends[start - 1] if start else 0
        fitting = int(np.searchsorted(ends, before + _GROUP_BYTES, side="right"))
        stop = min(start + group, max(fitting, start + 1), len(permutation))
        yield permutation[start:stop]
        start = stop
        if start >= len(permutation):
            return


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
    tail = read_tail(out, path, out.size(path))
    try:
        footer = pq.read_metadata(pa.BufferReader(tail))
        return {**json.loads((footer.metadata or {})[_META]), "rows": footer.num_rows}
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, RecursionError, MemoryError) as error:
        raise DataError(f"{out}/{path}: not a mixture shard ({str(error)[:200]})") from None
