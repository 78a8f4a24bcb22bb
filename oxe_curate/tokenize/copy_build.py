"""Build one output shard of `materialize`: the rows of a shard by reference, with the frames that they refer to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from oxe_curate.actions.dimensions import NUM_DIMENSIONS
from oxe_curate.errors import DataError
from oxe_curate.index.episodes import Episode
from oxe_curate.index.frame_pool import FramePool
from oxe_curate.index.records import SourceRecords
from oxe_curate.mixture import sampling
from oxe_curate.mixture.spec import ImageSpec
from oxe_curate.storage import Folder
from oxe_curate.tokenize import shards
from oxe_curate.tokenize.build import Built
from oxe_curate.tokenize.checksum import hash_file, read_tail
from oxe_curate.tokenize.gather import Wanted, gather
from oxe_curate.tokenize.references import RECORDS_KEY, unpack_records
from oxe_curate.tokenize.sources import MixtureSources


@dataclass(frozen=True)
class MaterializeJob:
    """What all tasks have in common.

    Attributes:
        mixture: the folder of the mixture by reference.
        sources: its source shards.
        swap: data set -> camera roles whose frames are stored as BGR.
        window, actions: observations and actions per row.
    """

    mixture: Folder
    sources: MixtureSources
    swap: Mapping[str, tuple[str, ...]]
    image: ImageSpec
    window: int
    actions: int
    check_records: bool | None = None


@dataclass(frozen=True)
class MaterializeTask:
    """One output shard.

    Attributes:
        output: file name in both folders.
        size: expected bytes of images.
        fingerprint: of the copying shard.
        footer_sha256: of the shard by reference.
    """

    out: Folder
    output: str
    size: int
    fingerprint: str
    footer_sha256: str

    @property
    def name(self) -> str:
        """The output file, for messages."""
        return f"{self.out}/{self.output}"


def materialize_shard(job: MaterializeJob, task: MaterializeTask) -> Built:
    """Write one shard with its frames.

    Raises:
        DataError: the shard by reference is damaged; a source shard is not the one that was filtered, or a frame is no
            image. CorruptError: a record is damaged. StorageError: a file cannot be read or written.
    """
    if task.output.startswith("text-"):
        return _copy_texts(job, task)
    table, records, meta = _read(job, task)
    source_records = SourceRecords(job.check_records)
    _, first, pools = gather(_episodes(job, table, records), job.image.cameras, source_records)
    folder = task.out.path() if task.out.is_local else None
    rows = _rows(job, table, first, pools)
    rows = replace(rows, frames={role: pool.recoded(job.image, rows.frame, folder) for role, pool in pools.items()})
    made: dict[str, Any] = {"fingerprint": task.fingerprint, "counts": meta["counts"]}
    if job.window > 1:
        made["frames"] = shards.stored(rows)
    order = np.arange(len(table))
    hashes = shards.write_shard_file(task.out, task.output, rows, order, made, source_records.check_unchanged)
    return Built(len(table), hashes)


def _copy_texts(job: MaterializeJob, task: MaterializeTask) -> Built:
    """Copy a shard of image-text rows."""
    hashes = hash_file(job.mixture, task.output)
    if hashes.footer_sha256 != task.footer_sha256:
        raise DataError(_changed(job, task))
    task.out.publish_bytes(task.output, job.mixture.read_bytes(task.output))
    rows = shards.read_shard_meta(job.mixture, task.output)["rows"]
    return Built(rows, replace(hashes, identity=task.out.identity(task.output) if task.out.is_local else ""))


def _changed(job: MaterializeJob, task: MaterializeTask, reason: str = "it is not the file in the manifest") -> str:
    return f"{job.mixture}/{task.output}: damaged ({reason}). Run tokenize again, which rebuilds such shards"


def _read(job: MaterializeJob, task: MaterializeTask) -> tuple[Any, dict[str, tuple[int, int, int]], dict[str, Any]]:
    """A shard by reference: its rows, the record of each episode, and its metadata."""
    meta = shards.read_shard_meta(job.mixture, task.output)
    data = job.mixture.read_bytes(task.output)
    tail = read_tail(job.mixture, task.output, len(data))
    if hashlib.sha256(tail).hexdigest() != task.footer_sha256:
        raise DataError(_changed(job, task))
    try:
        opened = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        table = opened.read(use_threads=False).combine_chunks()
        episodes = table["episode_id"].unique().to_pylist()
        return table, unpack_records(opened.metadata.metadata[RECORDS_KEY], episodes), meta
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError) as error:
        raise DataError(_changed(job, task, str(error)[:200])) from None


def _episodes(job: MaterializeJob, table: Any, records: Mapping[str, tuple[int, int, int]]) -> Iterator[Wanted[None]]:
    """The episodes of a shard, in the order of their first rows; only the frames that the rows show are located."""
    encoded = table["episode_id"].combine_chunks().dictionary_encode()
    ids, codes = encoded.dictionary.to_pylist(), np.asarray(encoded.indices)
    steps, source = (np.asarray(table[name]).astype(np.int64) for name in ("step", "source"))
    seen, mask = sampling.windows(steps, job.window)
    places = {role: _places(table[f"image_{role}"], job.window) for role in job.image.cameras}
    order, ends = np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes, minlength=len(ids)))
    for name, rows in zip(ids, np.split(order, ends)[: len(ids)], strict=True):
        shard = job.sources[source[rows[0]]]
        length, shown = int(steps[rows].max()) + 1, mask[rows]
        frames: dict[str, NDArray[np.int64]] = {}
        for role, place in places.items():
            frames[role] = np.zeros((length, 2), np.int64)
            frames[role][seen[rows][shown]] = place[rows][shown]
        offset, size, crc = records[name]
        episode = Episode(
            id=name, shard=shard.shard.path, record=(offset, size), record_crc=crc, num_steps=length,
            source_steps=length, instruction="", instructions=(), instruction_index=None,
            frame_index=np.arange(length, dtype=np.int32), action=_NOTHING, proprio=_NOTHING, frames=frames, spans={},
        )  # fmt: skip
        yield Wanted(None, shard.root, episode, np.unique(seen[rows][shown]), job.swap.get(shard.dataset, ()))


_NOTHING = np.empty((0, 0), np.float32)


def _places(column: Any, window: int) -> NDArray[np.int64]:
    """int64 (n, window, 2), offset and length of each frame; any where there is none."""
    frames = column.combine_chunks()
    frames = frames if window == 1 else frames.flatten()
    parts = [np.asarray(frames.field(name).fill_null(0)).astype(np.int64) for name in ("offset", "length")]
    return np.stack(parts, axis=1).reshape(-1, window, 2)


def _rows(
    job: MaterializeJob, table: Any, first: NDArray[np.int64], pools: Mapping[str, FramePool]
) -> shards.ShardRows:
    """The rows of a shard by reference, with the frames that they show; episode i's begin at `first[i]`."""
    columns = {name: table[name].combine_chunks() for name in table.column_names}
    texts, codes = {}, {}
    for name in ("dataset", "episode_id", "instruction"):
        encoded = columns[name].dictionary_encode()
        texts[name], codes[name] = encoded.dictionary.to_pylist(), np.asarray(encoded.indices)
    steps = np.asarray(columns["step"])
    seen, mask = sampling.windows(steps.astype(np.int64), job.window)
    count = len(table)
    shape = count, job.actions, NUM_DIMENSIONS
    numbers = {name: np.asarray(columns[name].flatten().flatten()).reshape(shape) for name in ("action", "bins")}
    return shards.ShardRows(
        sample_id=columns["sample_id"],
        texts=texts,
        codes=codes,
        step=steps,
        frame=np.where(mask, seen + first[codes["episode_id"]][:, None], -1),
        frames={role: pool.frames() for role, pool in pools.items()},
        action=numbers["action"],
        bins=numbers["bins"],
        action_mask=np.asarray(columns["action_mask"].flatten()).reshape(count, job.actions),
        observation_mask=mask,
        proprio=np.asarray(columns["proprio"].flatten()),
        proprio_width=np.asarray(columns["proprio"].value_lengths()).astype(np.int64),
    )
