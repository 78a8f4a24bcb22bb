"""One output shard: draw the samples of its episodes, gather their frames by byte range, bin, shuffle, write.

Plain functions: Beam only distributes them. Memory stays near one shard's images, which are views of mapped files.
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from oxe_curate.errors import DataError
from oxe_curate.filter.index import Index
from oxe_curate.filter.scan import locate
from oxe_curate.rlds.remote import RemoteShard
from oxe_curate.storage import Folder
from oxe_curate.tokenize import images, samples, shards
from oxe_curate.tokenize.bins import ActionBins
from oxe_curate.tokenize.bounds import Bounds
from oxe_curate.tokenize.mixture import Mixture, Source
from oxe_curate.tokenize.shards import Frames

_PLAIN = ("episode_id", "shard", "num_steps", "source_steps", "instruction", "instructions", "camera_spans")
_COLUMNS = (*_PLAIN, "instruction_index", "frame_index", "action", "proprio", "cameras")
_CACHE_BYTES = 64 << 20
_GAP = 64 << 10  # bytes: frames closer than this are read in one go


@dataclass(frozen=True)
class TokenizeTask:
    """All that a worker needs to make one output shard.

    Attributes:
        output: file name, "train-00003-of-00024.parquet".
        episodes: (number of the source in `sources`, index file, row numbers in it), in the index's order.
        size: expected bytes of images, a cost for balancing.
        fingerprint: hash of everything that decides the contents.
    """

    index: Folder
    source: Folder
    out: Folder
    output: str
    validation: bool
    mixture: Mixture
    sources: tuple[Source, ...]
    bounds: dict[str, Bounds]
    episodes: tuple[tuple[int, str, tuple[int, ...]], ...]
    size: int
    fingerprint: str

    @property
    def name(self) -> str:
        """The output, for messages."""
        return f"{self.out}/{self.output}"


@dataclass
class Built:
    """What a task did."""

    steps_seen: int = 0


def run(task: TokenizeTask) -> Built:
    """Build and publish one shard. Raises DataError or StorageError, naming the source shard and the episode."""
    rows, keys, counts = gather(task)
    meta = {"fingerprint": task.fingerprint, "counts": counts}
    shards.write(task.out, task.output, rows, samples.order(keys), meta)
    return Built(steps_seen=len(keys))


@dataclass
class _Draft:
    """Columns as they grow, an item per episode."""

    sample_id: list[str] = field(default_factory=list)
    codes: dict[str, list[NDArray[np.int32]]] = field(default_factory=dict)
    texts: dict[str, dict[str, int]] = field(default_factory=dict)
    arrays: dict[str, list[NDArray[Any]]] = field(default_factory=dict)

    def text(self, column: str, value: str, count: int) -> None:
        known = self.texts.setdefault(column, {})
        code = known.setdefault(value, len(known))
        self.codes.setdefault(column, []).append(np.full(count, code, np.int32))

    def add(self, column: str, value: NDArray[Any]) -> None:
        self.arrays.setdefault(column, []).append(value)

    def joined(self, column: str, empty: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate(self.arrays[column]) if column in self.arrays else empty


def gather(task: TokenizeTask) -> tuple[shards.Rows, NDArray[np.uint64], dict[str, int]]:
    """Draw the samples of the task's episodes.

    Returns:
        the rows in the index's order, a hash per row that decides the shuffled order, and the rows per data set.
    """
    mixture = task.mixture
    bins = ActionBins(mixture.bins)
    draft = _Draft()
    pool = {role: FramePool(task.source, role) for role in mixture.image.cameras}
    counts = {source.entry.name: 0 for source in task.sources}
    for number, path, row_numbers in task.episodes:
        source = task.sources[number]
        name = source.entry.name
        for episode in Episode.read(task.index, path, row_numbers):
            drawn = samples.copies(
                source.entry.weight, mixture.seed, episode.id, episode.num_steps, validation=task.validation
            )
            steps = np.repeat(np.arange(episode.num_steps), drawn)
            if len(steps) == 0:
                continue
            counts[name] += len(steps)
            copy = np.arange(len(steps)) - np.repeat(np.cumsum(drawn) - drawn, drawn)
            hashes = samples.step_hashes(
                samples.episode_hash(mixture.seed, episode.id), episode.num_steps, samples.ORDER
            )
            draft.add("key", samples.splitmix64(hashes[steps]) + copy.astype(np.uint64))
            draft.sample_id += [
                f"{episode.id}/{s:05d}#{c}" if c else f"{episode.id}/{s:05d}"
                for s, c in zip(steps.tolist(), copy.tolist(), strict=True)
            ]
            draft.text("dataset", name, len(steps))
            draft.text("episode_id", episode.id, len(steps))
            _add_instructions(draft, episode, steps)
            seen, seen_mask = samples.windows(steps, mixture.window)
            ahead, ahead_mask = samples.chunks(steps, mixture.chunk, episode.num_steps)
            for role, frames in pool.items():
                base = frames.add(episode, np.unique(seen), swap=role in source.bgr)
            draft.add("frame", seen + base)
            draft.add("observation_mask", seen_mask)
            normalized = task.bounds[name].normalize(episode.action)
            draft.add("action", normalized[ahead])
            draft.add("bins", bins.encode(normalized)[ahead])
            draft.add("action_mask", ahead_mask)
            draft.add("step", steps.astype(np.int32))
            draft.add("proprio", episode.proprio[steps].ravel())
            draft.add("proprio_width", np.full(len(steps), episode.proprio.shape[1]))
    chunk, window = mixture.chunk, mixture.window
    rows = shards.Rows(
        sample_id=pa.array(draft.sample_id, pa.string()),
        texts={name: list(known) for name, known in draft.texts.items()} or {name: [] for name in _TEXTS},
        codes={
            name: np.concatenate(draft.codes[name]) if name in draft.codes else np.empty(0, np.int32) for name in _TEXTS
        },
        step=draft.joined("step", np.empty(0, np.int32)),
        frame=draft.joined("frame", np.empty((0, window), np.int64)),
        frames={role: frames.finish(mixture.image) for role, frames in pool.items()},
        action=draft.joined("action", np.empty((0, chunk, 7), np.float32)),
        bins=draft.joined("bins", np.empty((0, chunk, 7), np.uint8)),
        action_mask=draft.joined("action_mask", np.empty((0, chunk), np.bool_)),
        observation_mask=draft.joined("observation_mask", np.empty((0, window), np.bool_)),
        proprio=draft.joined("proprio", np.empty(0, np.float32)),
        proprio_width=draft.joined("proprio_width", np.empty(0, np.int64)),
    )
    return rows, draft.joined("key", np.empty(0, np.uint64)), {n: c for n, c in counts.items() if c}


_TEXTS = ("dataset", "episode_id", "instruction")


def _add_instructions(draft: _Draft, episode: Episode, steps: NDArray[np.int64]) -> None:
    """Each step's own text; a step without one takes the episode's."""
    if episode.instruction_index is None:
        draft.text("instruction", episode.instruction, len(steps))
        return
    known = draft.texts.setdefault("instruction", {})
    texts = [*episode.instructions, episode.instruction]  # the last one answers to -1
    codes = np.array([known.setdefault(text, len(known)) for text in texts], np.int32)
    draft.codes.setdefault("instruction", []).append(codes[episode.instruction_index[steps]])


@dataclass(frozen=True, slots=True)
class Episode:
    """An index row as arrays."""

    id: str
    shard: str
    num_steps: int
    source_steps: int
    instruction: str
    instructions: tuple[str, ...]
    instruction_index: NDArray[np.int32] | None
    frame_index: NDArray[np.int32]
    action: NDArray[np.float32]
    proprio: NDArray[np.float32]
    frames: dict[str, NDArray[np.int64]]
    spans: dict[str, tuple[int, int]]

    @classmethod
    def read(cls, index: Folder, path: str, rows: Sequence[int]) -> list[Episode]:
        """The episodes of some rows of an index file."""
        file = _cache.get(index.uri, path)
        return [file.episode(row) for row in rows]


class _List:
    """A list column as numpy: the values of row i are `values[offsets[i]:offsets[i + 1]]`."""

    def __init__(self, column: Any, values: NDArray[Any] | None = None) -> None:
        self.valid = np.asarray(column.is_valid())
        self.offsets = np.asarray(column.offsets)
        self.values = np.asarray(column.values) if values is None else values

    def __getitem__(self, row: int) -> NDArray[Any]:
        return self.values[self.offsets[row] : self.offsets[row + 1]]


class _IndexFile:
    """An index file, its columns unpacked once: a row is then a few slices."""

    def __init__(self, table: Any) -> None:
        columns = {name: table[name].combine_chunks() for name in table.column_names}
        columns = {n: c.chunk(0) if isinstance(c, pa.ChunkedArray) else c for n, c in columns.items()}
        self._plain = {name: columns[name].to_pylist() for name in _PLAIN}
        self._frame_index = _List(columns["frame_index"])
        self._instruction_index = _List(columns["instruction_index"])
        actions = columns["action"].values
        self._action = _List(columns["action"], np.asarray(actions.flatten()).reshape(-1, 7))
        self._proprio = _List(columns["proprio"], np.asarray(columns["proprio"].values.offsets))
        self._proprio_values = np.asarray(columns["proprio"].values.values)
        cameras = columns["cameras"]
        self._cameras = np.asarray(cameras.offsets)
        self._roles = cameras.keys.to_pylist()
        frames = cameras.items.values
        places = [np.asarray(frames.field(name)).astype(np.int64) for name in ("offset", "length")]
        self._frames = _List(cameras.items, np.stack(places, axis=1))
        self.nbytes = table.nbytes

    def episode(self, row: int) -> Episode:
        plain = {name: values[row] for name, values in self._plain.items()}
        has_index = self._instruction_index.valid[row]
        start, stop = self._cameras[row], self._cameras[row + 1]
        return Episode(
            id=plain["episode_id"],
            shard=plain["shard"],
            num_steps=plain["num_steps"],
            source_steps=plain["source_steps"],
            instruction=plain["instruction"],
            instructions=tuple(plain["instructions"]),
            instruction_index=self._instruction_index[row] if has_index else None,
            frame_index=self._frame_index[row],
            action=self._action[row],
            proprio=self._proprio_rows(row),
            frames={self._roles[i]: self._frames[i] for i in range(start, stop)},
            spans={role: (span["offset"], span["length"]) for role, span in plain["camera_spans"]},
        )

    def _proprio_rows(self, row: int) -> NDArray[np.float32]:
        """float32 (T', P); every step of an episode has the same P."""
        first, last = self._proprio.offsets[row], self._proprio.offsets[row + 1]
        values = self._proprio_values[self._proprio.values[first] : self._proprio.values[last]]
        return values.reshape(last - first, -1) if last > first else np.empty((0, 0), np.float32)


class _FileCache:
    """Index files that were read last, bounded by bytes: several output shards draw from each."""

    def __init__(self) -> None:
        self._files: OrderedDict[tuple[str, str], _IndexFile] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()  # shards may be built in threads

    def get(self, uri: str, path: str) -> _IndexFile:
        key = (uri, path)
        with self._lock:
            if key in self._files:
                self._files.move_to_end(key)
                return self._files[key]
            file = self._files[key] = _IndexFile(_open_index(uri).table(path, _COLUMNS))
            self._bytes += file.nbytes
            while self._bytes > _CACHE_BYTES and len(self._files) > 1:
                self._bytes -= self._files.popitem(last=False)[1].nbytes
            return file


_cache = _FileCache()


@functools.lru_cache(maxsize=4)
def _open_index(uri: str) -> Index:
    return Index.open(Folder(uri))


class FramePool:
    """The frames of one camera role that a shard's rows refer to."""

    def __init__(self, source: Folder, role: str) -> None:
        self._source = source
        self._role = role
        self._shards: dict[str, int] = {}
        self._buffers: list[memoryview] = []
        self._remote: dict[int, RemoteShard] = {}
        self._parts: list[tuple[int, NDArray[np.int64]]] = []
        self._needed: list[NDArray[np.bool_]] = []
        self._swap: list[bool] = []
        self._names: list[str] = []
        self._count = 0

    def add(self, episode: Episode, needed: NDArray[np.int64], swap: bool) -> int:
        """Add an episode's frames, of which the steps `needed` will be read; return the number of its step 0."""
        number = self._open(episode.shard)
        frames = episode.frames.get(self._role)
        span = episode.spans.get(self._role, (0, 0))
        if sum(span) > len(self._buffers[number]):
            raise DataError(
                f"{self._source}/{episode.shard}: the file ends before the {self._role} frames that the index tells of "
                f"{episode.id}. It has changed since it was filtered: run filter again."
            )
        if frames is None:
            frames = self._locate(episode, number, sparse=len(needed) * 2 < episode.num_steps)
        if len(frames) != episode.num_steps or not frames[needed, 1].all():
            raise DataError(f"{episode.id}: a step has no frame of the {self._role} camera. Leave the camera out.")
        self._read_ahead(number, frames[needed])
        base = self._count
        self._parts.append((number, frames))
        self._needed.append(np.bincount(needed, minlength=len(frames)) > 0)
        self._swap.append(swap)
        self._names.append(episode.id)
        self._count += len(frames)
        return base

    def finish(self, spec: Any) -> Frames:
        """All frames that were added; decoded and encoded again where the mixture asks for it."""
        buffer = np.repeat([n for n, _ in self._parts], [len(f) for _, f in self._parts]).astype(np.int64)
        flat = np.concatenate([f for _, f in self._parts]) if self._parts else np.empty((0, 2), np.int64)
        frames = Frames(self._buffers, buffer, flat[:, 0], flat[:, 1])
        if spec.size is None and not any(self._swap):
            return frames
        lengths = [len(f) for _, f in self._parts]
        episode = np.repeat(np.arange(len(lengths)), lengths)
        needed, swap = np.concatenate(self._needed), np.asarray(self._swap)[episode]
        return images.recode(frames, needed, swap, spec.size, spec.quality, lambda i: self._names[episode[i]])

    def _open(self, path: str) -> int:
        if path not in self._shards:
            number = self._shards[path] = len(self._buffers)
            if self._source.is_local:
                self._buffers.append(self._source.map(path))
            else:
                self._remote[number] = RemoteShard(self._source, path)
                self._buffers.append(self._remote[number].buffer)
        return self._shards[path]

    def _locate(self, episode: Episode, number: int, sparse: bool) -> NDArray[np.int64]:
        span = episode.spans.get(self._role)
        if span is None:
            raise DataError(f"{episode.id}: it has no {self._role} camera. Leave the camera or the data set out.")
        if number in self._remote or not sparse:
            self._fetch(number, *span)
        return locate(self._buffers[number], span, episode.source_steps, self._role)[episode.frame_index]

    def _read_ahead(self, number: int, frames: NDArray[np.int64]) -> None:
        """Ask for the frames in as few pieces as their gaps allow."""
        starts, ends = frames[:, 0], frames[:, 0] + frames[:, 1]
        cuts = np.flatnonzero(starts[1:] - ends[:-1] > _GAP)
        for first, last in zip(np.append(0, cuts + 1), np.append(cuts, len(frames) - 1), strict=True):
            self._fetch(number, int(starts[first]), int(ends[last] - starts[first]))

    def _fetch(self, number: int, offset: int, length: int) -> None:
        if number in self._remote:
            self._remote[number].ensure(offset, length)
        else:
            Folder.advise(self._buffers[number], offset, length)
