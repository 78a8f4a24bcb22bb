"""materialize: a mixture by reference -> the mixture that tokenize would have written with copies of the frames.

Shard by shard: every column but the images is taken as it is, and the frames are read from the source.
"""

from __future__ import annotations

import functools
import hashlib
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from oxe_curate.actions.dimensions import NUM_DIMENSIONS
from oxe_curate.beam import runner
from oxe_curate.errors import ConfigError, DataError
from oxe_curate.index.episodes import Episode
from oxe_curate.index.frame_pool import FramePool, ranges_needed
from oxe_curate.index.records import SourceRecords
from oxe_curate.mixture import sampling
from oxe_curate.mixture.spec import ImageSpec, mixture_yaml
from oxe_curate.outputs import claim_output, hold_output
from oxe_curate.storage import Folder
from oxe_curate.tokenize import shards
from oxe_curate.tokenize.build import AHEAD, Built
from oxe_curate.tokenize.checksum import hash_file, read_tail
from oxe_curate.tokenize.fingerprints import TOKENIZE_FORMAT, plan_id, shard_fingerprint
from oxe_curate.tokenize.folder import MixtureFolder
from oxe_curate.tokenize.manifest import (
    MANIFEST,
    REFERENCE_KEYS,
    RESOLVED,
    STATISTICS,
    TOKENS,
    describe_outputs,
    publish_manifest,
)
from oxe_curate.tokenize.pipeline import TokenizeResult, bytes_per_worker
from oxe_curate.tokenize.references import RECORDS_KEY, unpack_records
from oxe_curate.tokenize.resume import resume
from oxe_curate.tokenize.sources import MixtureSources


@dataclass(frozen=True)
class MaterializeOptions:
    """Options of `run_materialize`; each is that of `TokenizeOptions`.

    Attributes:
        source: root of all data sets, if they have moved since tokenize.
    """

    source: str | None = None
    check_records: bool | None = None
    verify: bool = False
    overwrite: bool = False
    workers: int | None = None
    beam_args: tuple[str, ...] = ()
    progress: bool = True


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


def run_materialize(mixture: str | Path, out: str | Path, options: MaterializeOptions | None = None) -> TokenizeResult:
    """Write a mixture with copies of its frames, equal byte for byte to what tokenize writes with `copy: true`.

    Shards that an interrupted run finished are kept if they are undamaged.

    Args:
        mixture: a folder that tokenize wrote with `image: {copy: false}`.
        out: output folder.
        options: None for the defaults.

    Raises:
        ConfigError: the mixture is no mixture by reference; `out` contains another mixture.
        DataError: the mixture is damaged; a source shard is missing or has changed. CorruptError: a record of it is
            damaged. StorageError: something cannot be read or written.
    """
    start = time.monotonic()
    options = options or MaterializeOptions()
    claim_output(out, "mixture", {"mixture": mixture})
    opened = MixtureFolder.open(str(mixture), options.source)
    if opened.copies:
        raise ConfigError(f"{opened.folder}: has copies of its frames already; expected a mixture by reference")
    for root in dict.fromkeys(row.root.uri for row in opened.sources):
        claim_output(out, "mixture", {"mixture": mixture, "source": root})
    with hold_output(out, "mixture"):
        return _materialize(opened, Folder.of(out), options, start)


def _materialize(opened: MixtureFolder, folder: Folder, options: MaterializeOptions, start: float) -> TokenizeResult:
    folder.check_writable()
    folder.sweep()
    planned = _plan(opened, folder)
    found = resume(folder, planned, opened.tokens, options.overwrite, options.verify)
    todo, kept = set(found.todo), len(planned) - len(found.todo)
    if found.complete:
        return TokenizeResult(found.manifest, 0, kept, time.monotonic() - start, opened.tokens)
    if todo:
        spec = opened.mixture
        sources = opened.sources.compare(options.progress)
        folder.remove(MANIFEST)
        image = replace(spec.image, copy=True)
        actions = spec.window + spec.chunk - 1
        job = MaterializeJob(opened.folder, sources, opened.swapped, image, spec.window, actions, options.check_records)
        runner.run_tasks(
            [task for task in planned if task.output in todo], functools.partial(materialize_shard, job),
            title="materialize", workers=options.workers, bytes_per_worker=bytes_per_worker(job.image),
            beam_args=options.beam_args, progress=options.progress,
        )  # fmt: skip
    manifest = _finish(opened, planned, folder, found.found.hashes, options.verify)
    seconds = time.monotonic() - start
    return TokenizeResult(manifest, len(todo), kept, seconds, opened.tokens, tuple(found.found.damaged))


def _plan(opened: MixtureFolder, out: Folder) -> list[MaterializeTask]:
    """A task for each shard, in the order of the manifest."""
    entries = {name: entry for name, entry in opened.manifest["outputs"].items() if "rows" in entry}
    shard_bytes, copying = opened.manifest["shard_bytes"], opened.manifest["copying"]
    mean = sum(entry["rows"] for entry in entries.values()) / max(len(entries), 1) or 1
    tasks = []
    for name, entry in entries.items():
        if name.startswith("text-"):  # the same files in both mixtures
            fingerprint = shards.read_shard_meta(opened.folder, name)["fingerprint"]
        else:
            fingerprint = shard_fingerprint(copying, name, shard_bytes)
        size = max(int(shard_bytes * entry["rows"] / mean), 1)
        tasks.append(MaterializeTask(out, name, size, fingerprint, entry["footer_sha256"]))
    return tasks


def _finish(
    opened: MixtureFolder, tasks: Sequence[MaterializeTask], out: Folder, known: Mapping[str, Any], verify: bool
) -> dict[str, Any]:
    """Write the other files, and the manifest last."""
    spec, recorded = opened.mixture, opened.manifest
    out.publish_bytes(RESOLVED, mixture_yaml(replace(spec, image=replace(spec.image, copy=True))).encode())
    for name in (STATISTICS, TOKENS):
        out.publish_bytes(name, opened.folder.read_bytes(name))
    small = (STATISTICS, RESOLVED, TOKENS)
    rows, frames, outputs = describe_outputs(out, tasks, small, known, verify, "text" in recorded["rows"])
    manifest = {key: value for key, value in recorded.items() if key not in REFERENCE_KEYS}
    manifest |= {"format": TOKENIZE_FORMAT, "plan": plan_id(tasks), "rows": rows, "outputs": outputs}
    if frames:
        manifest["frames"] = frames
    if opened.moved is not None:
        manifest["inputs"] = _moved(recorded["inputs"], opened.moved, opened.names)
    publish_manifest(out, manifest)
    return manifest


def _moved(inputs: Mapping[str, Any], root: Folder, names: Sequence[str]) -> dict[str, Any]:
    """The manifest's inputs with the root of --source, as tokenize writes them with that option."""
    moved = {} if root.uri == inputs["source"] else dict.fromkeys(names, root.uri)
    found: dict[str, Any] = {}
    for key, value in inputs.items():
        if key != "sources":
            found[key] = value
        if key == "source" and moved:
            found["sources"] = moved
    return found


def materialize_shard(job: MaterializeJob, task: MaterializeTask) -> Built:
    """Write one shard with its frames.

    Raises:
        DataError: the shard by reference is damaged; a source shard is not the one that was filtered, or a frame is no
            image. CorruptError: a record is damaged. StorageError: a file cannot be read or written.
    """
    if task.output.startswith("text-"):
        return _copy_texts(job, task)
    table, records, meta = _read(job, task)
    draws = _episodes(job, table, records)
    source_records = SourceRecords(job.check_records)
    pools: dict[str, FramePool] = {role: FramePool(role) for role in job.image.cameras}
    first = np.zeros(len(draws), np.int64)
    for number, (drawn, ranges) in enumerate(_requested(job, draws, source_records)):
        record = source_records.open(drawn.root, drawn.episode, ranges)
        swapped = job.swap.get(drawn.dataset, ())
        for role, pool in pools.items():
            first[number] = pool.add(record, drawn.episode, drawn.needed, swap=role in swapped)
    folder = task.out.path() if task.out.is_local else None
    rows = _rows(job, table, first, pools)
    rows = replace(rows, frames={role: pool.recoded(job.image, rows.frame, folder) for role, pool in pools.items()})
    made: dict[str, Any] = {"fingerprint": task.fingerprint, "counts": meta["counts"]}
    if job.window > 1:
        made["frames"] = shards.stored(rows)
    order = np.arange(len(table))
    shards.write_shard_file(task.out, task.output, rows, order, made, source_records.check_unchanged)
    return Built(steps_seen=len(table))


def _copy_texts(job: MaterializeJob, task: MaterializeTask) -> Built:
    """Copy a shard of image-text rows."""
    if hash_file(job.mixture, task.output).footer_sha256 != task.footer_sha256:
        raise DataError(_changed(job, task))
    task.out.publish_bytes(task.output, job.mixture.read_bytes(task.output))
    return Built(steps_seen=shards.read_shard_meta(job.mixture, task.output)["rows"])


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


@dataclass(frozen=True, eq=False)
class _Referenced:
    """An episode of a shard: `needed` (n,), the steps whose frames its rows show."""

    dataset: str
    root: Folder
    episode: Episode
    needed: NDArray[np.int64]


def _episodes(job: MaterializeJob, table: Any, records: Mapping[str, tuple[int, int, int]]) -> list[_Referenced]:
    """The episodes of a shard, in the order of their first rows; only the frames that the rows show are located."""
    encoded = table["episode_id"].combine_chunks().dictionary_encode()
    ids, codes = encoded.dictionary.to_pylist(), np.asarray(encoded.indices)
    steps, source = (np.asarray(table[name]).astype(np.int64) for name in ("step", "source"))
    seen, mask = sampling.windows(steps, job.window)
    places = {role: _places(table[f"image_{role}"], job.window) for role in job.image.cameras}
    order, ends = np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes, minlength=len(ids)))
    found = []
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
        found.append(_Referenced(shard.dataset, shard.root, episode, np.unique(seen[rows][shown])))
    return found


_NOTHING = np.empty((0, 0), np.float32)


def _places(column: Any, window: int) -> NDArray[np.int64]:
    """int64 (n, window, 2), offset and length of each frame; any where there is none."""
    frames = column.combine_chunks()
    frames = frames if window == 1 else frames.flatten()
    parts = [np.asarray(frames.field(name).fill_null(0)).astype(np.int64) for name in ("offset", "length")]
    return np.stack(parts, axis=1).reshape(-1, window, 2)


def _requested(
    job: MaterializeJob, draws: Sequence[_Referenced], records: SourceRecords
) -> Iterator[tuple[_Referenced, list[tuple[int, int]]]]:
    """Yield each episode and the parts of its shard to read; some are read ahead."""
    waiting: deque[tuple[_Referenced, list[tuple[int, int]]]] = deque()
    for drawn in draws:
        ranges = [part for role in job.image.cameras for part in ranges_needed(drawn.episode, role, drawn.needed)]
        records.request(drawn.root, drawn.episode, ranges)
        waiting.append((drawn, ranges))
        if len(waiting) > AHEAD:
            yield waiting.popleft()
    yield from waiting


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
