"""The assignment of episodes to output shards, by hashes of their ids: one pass over the small columns of the index."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import crc32c
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from oxe_curate.actions.bounds import Bounds
from oxe_curate.atomic import TEMPORARY
from oxe_curate.errors import ConfigError
from oxe_curate.index.layout import VALUE_TYPES
from oxe_curate.index.store import Index, split_of
from oxe_curate.mixture import sampling as samples
from oxe_curate.mixture.spec import IndexedDataset, Mixture, roles_to_read
from oxe_curate.storage import Folder
from oxe_curate.tokenize.fingerprints import mixture_fingerprint, shard_fingerprint
from oxe_curate.tokenize.planned import TokenizeJob, TokenizeTask, pack_part, plan_schema
from oxe_curate.tokenize.sources import ReferencedShard

DEFAULT_SHARD_BYTES = 256 << 20
"""Bytes of images per output shard."""

_REFERENCE_BYTES = 64
"""Of a frame's place and a row's other columns, in a mixture by reference."""
_PARTS = 128  # parts of the plan to put together at once
_AT_ONCE = 3  # output shards of a worker, if a source is in an object store
_PIECE = 1 << 16  # episodes whose ids are Python strings at a time
_READ = (
    "kept", "episode_id", "duplicate_of", "record_offset", "record_length", "record_crc", "num_steps", "source_steps",
    "instruction", "instructions", "instruction_index", "camera_spans", "values_crc",
)  # fmt: skip
_COPIED = ("episode_id", "record_offset", "record_length", "record_crc", "num_steps", "source_steps", "instruction")


@dataclass(frozen=True, eq=False)
class Plan:
    """The episodes of every output shard.

    Attributes:
        job: common to all tasks.
        tasks: one per output shard, not yet located in a file.
        sources: the source shard of each index file.
        copying: `mixture_fingerprint` of the mixture that copies its frames.
        episodes: the columns of `plan_schema`, except those of the files; ordered by output shard.
        files: the columns that are the same for all rows of an index file; `file` numbers its rows.
        limits: int64 (shards + 1,), where the episodes of each shard begin and the last ones end.
    """

    job: TokenizeJob
    tasks: list[TokenizeTask]
    sources: list[ReferencedShard]
    copying: str
    episodes: Any
    files: Any
    limits: NDArray[np.int64]

    def part(self, shard: int) -> Any:
        """The record batch of one output shard."""
        return next(self._parts(shard, shard + 1))

    def _parts(self, first: int, last: int) -> Iterator[Any]:
        """The record batches of some output shards, whose columns are put together at once."""
        limits = self.limits[first : last + 1].tolist()
        own = self.episodes.slice(limits[0], limits[-1] - limits[0])
        shared = self.files.take(own["file"])
        columns = dict(zip([*own.schema.names, *shared.schema.names], [*own.columns, *shared.columns], strict=True))
        schema = plan_schema(self.job.roles)
        batch = pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)
        for start, stop in itertools.pairwise(limits):
            yield batch.slice(start - limits[0], stop - start)

    def write(self, out: Folder, todo: Sequence[str]) -> tuple[TokenizeJob, list[TokenizeTask]]:
        """Write the parts of the output shards `todo` to a file in `out`; return the job and the located tasks."""
        name = f"{TEMPORARY}plan-{hashlib.sha256(''.join(t.fingerprint for t in self.tasks).encode()).hexdigest()[:16]}"
        chosen = set(todo)
        tasks: list[TokenizeTask] = []

        def save(sink: Any) -> None:
            start = 0
            parts = (part for i in range(0, len(self.tasks), _PARTS) for part in self._parts(i, i + _PARTS))
            for task, part in zip(self.tasks, parts, strict=True):
                if task.output in chosen:
                    data = pack_part(part)
                    sink.write(data)
                    tasks.append(replace(task, start=start, length=len(data), crc=crc32c.crc32c(data)))
                    start += len(data)

        out.publish(name, save)
        return replace(self.job, plan=name), tasks


def plan_shards(
    spec: Mixture,
    index: Index,
    sources: Sequence[IndexedDataset],
    bounds: dict[str, Bounds],
    out: Folder,
    shard_bytes: int,
    hashes: Mapping[str, str],
    check_records: bool | None = None,
) -> Plan:
    """Assign the episodes to output shards. Reads no numbers per step.

    `hashes` come from `index_hashes`; they are part of the tasks' fingerprints.
    """
    roles = roles_to_read(spec, sources)
    parts, costs, held, sizes = [], [], [], []
    files: list[dict[str, Any]] = []
    for number, source in enumerate(sources):
        found = _read(index, source, number, len(files), spec, roles)
        if found is not None:
            parts.append(found.episodes)
            files += found.files
            costs.append(found.cost)
            held.append(found.held)
            sizes.append(found.cost if spec.image.copy else found.stored * _REFERENCE_BYTES)
    if not parts:
        raise ConfigError(f"{index.folder}: no kept episode in the splits of the mixture")
    episodes, cost, validation = pa.concat_tables(parts), np.concatenate(costs), np.concatenate(held)
    del parts
    of_file = episodes["file"].to_numpy()
    edges = np.flatnonzero(np.diff(of_file, prepend=-1))
    decided = mixture_fingerprint(spec, sources, bounds, hashes)
    job = TokenizeJob(
        index=index.folder, mixture=spec, sources=tuple(sources), bounds=bounds, check_records=check_records,
        roots=tuple(index.source_of(source.dataset) for source in sources),
    )  # fmt: skip
    shard = np.zeros(len(episodes), np.int64)
    tasks: list[TokenizeTask] = []
    at_once = 1 if all(root.is_local for root in job.roots) else _AT_ONCE
    for split in (False, True):
        mine = np.flatnonzero(validation == split)
        if not len(mine):
            continue
        # added up file by file, in the same order in every release: the sum decides the number of shards
        total = sum(float(part.sum()) for part in _by_file(cost, validation == split, edges))
        count = max(1, -int(-total // shard_bytes))
        assign = functools.partial(samples.output_shards, spec.seed, shards=count)
        target = _in_pieces(episodes["episode_id"].take(pa.array(mine)), assign)
        shard[mine] = len(tasks) + target
        size = np.bincount(target, np.concatenate(sizes)[mine], minlength=count)
        for i in range(count):
            name = f"{'validation' if split else 'train'}-{i:05d}-of-{count:05d}.parquet"
            digest = shard_fingerprint(decided, name, shard_bytes)
            tasks.append(TokenizeTask(out, name, max(int(size[i]), 1), digest, at_once=at_once))
    order = np.argsort(shard, kind="stable")
    limits = np.searchsorted(shard[order], np.arange(len(tasks) + 1))
    columns, take = [], pa.array(order)
    names = episodes.column_names
    for name in names:  # one at a time, and dropped: the plan is in memory once
        columns.append(episodes[name].combine_chunks().take(take))
        episodes = episodes.drop_columns([name])
    shards = [
        ReferencedShard(sources[file["source"]].entry.name, job.roots[file["source"]], index.entry(file["path"]).shard)
        for file in files
    ]
    copying = mixture_fingerprint(replace(spec, image=replace(spec.image, copy=True)), sources, bounds, hashes)
    planned = pa.RecordBatch.from_arrays(columns, names)
    return Plan(job, tasks, shards, copying, planned, _files_batch(files, roles), limits)


def _by_file(
    cost: NDArray[np.float64], chosen: NDArray[np.bool_], edges: NDArray[np.int64]
) -> Iterator[NDArray[np.float64]]:
    for part, keep in zip(np.split(cost, edges[1:]), np.split(chosen, edges[1:]), strict=True):
        yield part[keep]


def _in_pieces(names: Any, function: Callable[[list[str]], NDArray[Any]]) -> NDArray[Any]:
    """Apply a function to a column of texts, some rows at a time."""
    pieces = [function(names.slice(at, _PIECE).to_pylist()) for at in range(0, len(names), _PIECE)]
    return np.concatenate(pieces)


@dataclass(frozen=True, eq=False)
class _Read:
    """A data set's kept episodes; `stored` and `cost`: expected frames, and bytes of them, of each."""

    episodes: Any
    files: list[dict[str, Any]]
    stored: NDArray[np.float64]
    cost: NDArray[np.float64]
    held: NDArray[np.bool_]


def _read(
    index: Index, source: IndexedDataset, number: int, first_file: int, spec: Mixture, roles: tuple[str, ...]
) -> _Read | None:
    paths = [path for path in index.files(source.dataset) if split_of(path) in source.entry.splits]
    if not paths:
        return None
    tables = [index.table(path, _READ) for path in paths]
    sizes = [len(table) for table in tables]
    table = pa.concat_tables(tables).combine_chunks()
    starts = np.cumsum([0, *sizes])
    file = np.repeat(np.arange(len(paths)), sizes)
    row = np.arange(len(table)) - starts[file]
    valued = np.asarray(table["values_crc"].is_valid())
    steps = np.where(valued, table["num_steps"].to_numpy(), 0).astype(np.int64)
    spans = _Spans(table["camera_spans"].combine_chunks())
    exact = index.datasets[source.dataset].frames == "exact"
    cameras = spans.counts if exact else np.zeros(len(table), np.int64)
    columns = {
        "steps_before": _before(steps, starts, file),
        "frames_before": _before(steps * cameras, starts, file),
        "cameras": cameras,
        "row": row,
        "file": first_file + file,
    }
    for role in roles:
        columns |= dict(zip((f"{role}_offset", f"{role}_length", f"{role}_place"), spans.of(role), strict=True))
    keep = np.asarray(table["kept"])
    kept = pa.array(np.flatnonzero(keep))
    if not len(kept):
        return None
    table = table.take(kept)
    columns = {name: values[keep] for name, values in columns.items()}
    has_index = table["instruction_index"].is_valid()
    width = _proprio_width(index, paths)
    schema = plan_schema(roles)
    built: dict[str, Any] = {
        "source": np.full(len(table), number),
        **columns,
        **{name: table[name] for name in (*_COPIED, "instruction_index", "values_crc")},
        # only where steps differ: the others have the episode's instruction
        "instructions": pc.if_else(has_index, table["instructions"], pa.scalar(None, pa.list_(pa.string()))),
        "proprio_width": np.full(len(table), width),
    }
    types = {field.name: field.type for field in schema}
    episodes = pa.table(
        {
            name: pa.array(values, types[name]) if isinstance(values, np.ndarray) else values
            for name, values in built.items()
        }
    )
    # a duplicate is assigned like its original: never one to train and the other to validation
    original = pc.coalesce(table["duplicate_of"], table["episode_id"])
    held = np.zeros(len(table), bool)
    if spec.validation:
        held = _in_pieces(original, lambda ids: samples.held_out(ids, spec.validation))
    images = sum(np.maximum(columns[f"{role}_length"], 0) for role in spec.image.cameras)
    frames = samples.stored_frames(table["num_steps"].to_numpy(), spec.window, spec.stride)
    stored = np.asarray(frames * source.entry.weight, np.float64)
    cost = _expected_bytes(table, np.asarray(images), spec, stored)
    files = [{**_file(index, path), "source": number} for path in paths]
    return _Read(episodes, files, stored, cost, held)


def _before(counts: NDArray[np.int64], starts: NDArray[np.int64], file: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sum of the counts of earlier rows of the same file, int64 (n,)."""
    sums = np.concatenate(([0], np.cumsum(counts)))
    return np.asarray(sums[:-1] - sums[starts[file]])


class _Spans:
    """The column `camera_spans` as arrays."""

    def __init__(self, column: Any) -> None:
        column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
        offsets = np.asarray(column.offsets).astype(np.int64)
        first, last = int(offsets[0]), int(offsets[-1])
        self._offsets = offsets - first
        self._keys = column.keys.slice(first, last - first)
        items = column.items.slice(first, last - first)
        self._places = [np.asarray(pc.struct_field(items, name)) for name in ("offset", "length")]
        self.counts = np.diff(offsets)

    def of(self, role: str) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Offset, length and place in the row's list of cameras, int64 (n,) each; place -1 and length 0 if missing."""
        hits = np.flatnonzero(np.asarray(pc.equal(self._keys, role)))
        rows = np.searchsorted(self._offsets, hits, side="right") - 1
        found = [np.zeros(len(self.counts), np.int64), np.zeros(len(self.counts), np.int64)]
        place = np.full(len(self.counts), -1, np.int64)
        for column, values in zip(found, self._places, strict=True):
            column[rows] = values[hits]
        place[rows] = hits - self._offsets[rows]
        return found[0], found[1], place


def _proprio_width(index: Index, paths: Sequence[str]) -> int:
    """Values of proprio per step, the same for all episodes of a data set; a row with another width is noticed."""
    for path in paths:
        proprio = index.table(path, ["proprio"])["proprio"].combine_chunks()
        rows = proprio.flatten()
        if len(rows):
            return int(pc.list_value_length(rows)[0].as_py() or 0)
    return 0


def _file(index: Index, path: str) -> dict[str, Any]:
    entry = index.entry(path)
    at = {f"at_{name}": entry.values_at.get(name, -1) for name in VALUE_TYPES}
    return {"path": path, "shard": entry.shard.path, "rows": entry.rows, **at}


def _files_batch(files: Sequence[Mapping[str, Any]], cameras: tuple[str, ...]) -> Any:
    schema = plan_schema(cameras)
    names = ["path", "shard", "rows", *(f"at_{name}" for name in VALUE_TYPES)]
    columns = [pa.array([file[name] for file in files], schema.field(name).type) for name in names]
    return pa.RecordBatch.from_arrays(columns, names)


def _expected_bytes(
    episodes: Any, images: NDArray[np.int64], spec: Mixture, stored: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Expected bytes of images of each episode, float64 (episodes,); `images`: bytes of the mixture's cameras."""
    if spec.image.size is not None:  # a JPEG of quality 95 without subsampling takes at most about a byte per pixel
        frame = spec.image.size**2 * len(spec.image.cameras)
        return np.asarray(stored * frame)
    source_steps = np.maximum(episodes["source_steps"].to_numpy(), 1)
    return np.asarray(images.astype(np.float64) / source_steps * stored)
