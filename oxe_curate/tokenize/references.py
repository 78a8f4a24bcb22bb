"""Mixture shards by reference: a row has the place of each frame in the source instead of its bytes.

The columns are those of a copying shard except for the images; `source` is the row of the source shard in
sources.parquet. No frame is read: an index that locates every frame is enough.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from oxe_curate.index.episodes import Episode
from oxe_curate.index.images import EncodedFrames
from oxe_curate.index.records import Record, ShardReader, SourceRecords
from oxe_curate.index.table import FRAME
from oxe_curate.mixture import sampling
from oxe_curate.storage import Folder
from oxe_curate.tokenize import build, shards
from oxe_curate.tokenize.build import Built
from oxe_curate.tokenize.checksum import FileHashes
from oxe_curate.tokenize.planned import TokenizeJob, TokenizeTask

RECORDS_KEY = b"oxe_curate_records"
"""Key in a shard's metadata: where the record of each episode is, see `pack_records`."""
_META = b"oxe_curate"
_ROW_GROUP = 16384
"""Frames of a camera per row group: the footer takes about a kilobyte for each."""
_RECORD = np.dtype([("offset", "<i8"), ("length", "<i8"), ("crc", "<u4")])


def build_reference(job: TokenizeJob, task: TokenizeTask) -> Built:
    """Build and publish one shard by reference.

    Raises:
        DataError: a frame is outside its record; or, where frames must be located first, the source shard is not the
            one that was filtered. CorruptError: a record is damaged. StorageError: a file cannot be read or written.
    """
    records = _UnreadRecords(job.mixture.image.cameras, job.check_records)
    draws, first, pools = build.gather_frames(job, task, records)
    rows = build.shard_rows(job, draws, first, pools)
    lengths = [len(drawn.steps) for drawn in draws]
    source = np.repeat(np.array([drawn.shard for drawn in draws], np.int32), lengths)
    meta: dict[str, Any] = {"fingerprint": task.fingerprint, "counts": build.count_rows(draws)}
    if job.mixture.window > 1:
        meta["frames"] = shards.stored(rows)
    found = {drawn.episode.id: (*drawn.episode.record, drawn.episode.record_crc) for drawn in draws}
    order = sampling.order(build.row_keys(draws))
    check = records.check_unchanged
    return Built(len(order), _write(task.out, task.output, rows, source, order, meta, pack_records(found), check))


class _UnreadShard(ShardReader):
    """A shard that is only named."""

    def __init__(self, name: str) -> None:
        self.name = name


class _UnreadRecords:
    """Opens a record only to locate its frames, or, if `check`, to compare its data with its checksum."""

    def __init__(self, roles: Sequence[str], check: bool | None) -> None:
        self._roles, self._check = roles, bool(check)
        self._records = SourceRecords(self._check)

    def request(self, source: Folder, episode: Episode, ranges: Sequence[tuple[int, int]]) -> None:
        if self._is_read(episode):
            self._records.request(source, episode, () if source.is_local else ranges)

    def open(self, source: Folder, episode: Episode, ranges: Sequence[tuple[int, int]] = ()) -> Record:
        if self._is_read(episode):
            return self._records.open(source, episode, ranges)
        return Record(_UnreadShard(f"{source}/{episode.shard}"))

    def _is_read(self, episode: Episode) -> bool:
        return self._check or any(role not in episode.frames for role in self._roles)

    def check_unchanged(self) -> None:
        """Raise StorageError if a shard was written to since it was opened."""
        self._records.check_unchanged()


def reference_schema(cameras: Sequence[str], window: int) -> Any:
    """The schema of a shard by reference: that of a copying one, with `source` and the place of each frame."""
    place = FRAME if window == 1 else pa.list_(FRAME)
    fields = []
    for field in shards.schema(cameras, window):
        if field.name == f"image_{cameras[0]}":
            fields.append(pa.field("source", pa.int32()))
        fields.append(pa.field(field.name, place) if field.name.startswith("image_") else field)
    return pa.schema(fields)


def reference_table(rows: shards.ShardRows, source: NDArray[np.int32], permutation: NDArray[np.int64]) -> Any:
    """The rows `permutation`, in that order; `source` (n,): the number of each row's source shard."""
    window = rows.frame.shape[1]
    plain = reference_schema(list(rows.frames), window)
    numbers = shards.shard_table(replace(rows, frames={}), permutation)
    frame = rows.frame[permutation].ravel()
    columns = {
        **dict(zip(numbers.column_names, numbers.columns, strict=True)),
        "source": pa.array(source[permutation]),
        **{f"image_{role}": _places(found, frame, window) for role, found in rows.frames.items()},
    }
    return pa.table([columns[name] for name in plain.names], schema=plain)


def _places(found: EncodedFrames, frame: NDArray[np.int64], window: int) -> Any:
    places = [pa.array(found.offset[frame]), pa.array(found.length[frame].astype(np.int32))]
    column = pa.StructArray.from_arrays(places, fields=list(FRAME), mask=pa.array(frame < 0) if window > 1 else None)
    if window == 1:
        return column
    return pa.ListArray.from_arrays(pa.array(np.arange(0, len(frame) + 1, window, dtype=np.int32)), column)


def pack_records(records: Mapping[str, tuple[int, int, int]]) -> bytes:
    """The records of a shard's episodes (id -> offset, length, masked CRC32C) as text, without the ids.

    They are in the order of the ids, compressed; `unpack_records` reads them.
    """
    packed = np.array([records[name] for name in sorted(records)], _RECORD).tobytes()
    return base64.b64encode(len(packed).to_bytes(8, "little") + pa.compress(packed, codec="zstd", asbytes=True))


def unpack_records(data: bytes, episode_ids: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """Episode -> offset, length and masked CRC32C of its record. Raises ValueError if the data is of other episodes."""
    raw = base64.b64decode(data, validate=True)
    size = int.from_bytes(raw[:8], "little")
    if size != _RECORD.itemsize * len(episode_ids):
        raise ValueError(f"the records of {size // _RECORD.itemsize} episodes, expected {len(episode_ids)}")
    packed = np.frombuffer(pa.decompress(raw[8:], size, codec="zstd"), _RECORD)
    return dict(zip(sorted(episode_ids), packed.tolist(), strict=True))


def _write(
    out: Folder,
    path: str,
    rows: shards.ShardRows,
    source: NDArray[np.int32],
    permutation: NDArray[np.int64],
    meta: Mapping[str, Any],
    records: bytes,
    check: Callable[[], None],
) -> FileHashes:
    window = rows.frame.shape[1]
    plain = reference_schema(list(rows.frames), window)
    metadata = {_META: json.dumps(meta, sort_keys=True).encode(), RECORDS_KEY: records}
    group = -(-_ROW_GROUP // window)

    def row_groups() -> Iterator[tuple[Any, dict[str, Any]]]:
        starts = range(0, max(len(permutation), 1), group)
        return ((reference_table(rows, source, permutation[start : start + group]), {}) for start in starts)

    return shards.publish_parquet(
        out, path, plain, metadata, row_groups, check, compression="zstd",
        use_dictionary=["dataset", "episode_id", "instruction", "source", "bins.list.element.list.element"],
        column_encoding=dict.fromkeys(_FLOATS, "BYTE_STREAM_SPLIT"), write_statistics=["dataset", "step"],
    )  # fmt: skip


_FLOATS = ("action.list.element.list.element", "proprio.list.element")
