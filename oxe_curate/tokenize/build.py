"""One output shard: draw the samples of its episodes, gather their frames by byte range, bin, shuffle, write.

Plain functions: Beam only distributes them. Memory stays near one shard's images, which are views of mapped files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from oxe_curate.actions.bins import ActionBins
from oxe_curate.actions.bounds import Bounds
from oxe_curate.index.episodes import Episode
from oxe_curate.index.frame_pool import FramePool
from oxe_curate.mixture import sampling as samples
from oxe_curate.mixture.spec import IndexedDataset, Mixture
from oxe_curate.storage import Folder
from oxe_curate.tokenize import shards


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
    sources: tuple[IndexedDataset, ...]
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


def build_shard(task: TokenizeTask) -> Built:
    """Build and publish one shard. Raises DataError or StorageError, naming the source shard and the episode."""
    rows, keys, counts = gather_rows(task)
    meta: dict[str, Any] = {"fingerprint": task.fingerprint, "counts": counts}
    if task.mixture.window > 1:
        meta["frames"] = shards.stored(rows)
    shards.write_shard_file(task.out, task.output, rows, samples.order(keys), meta)
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


def gather_rows(task: TokenizeTask) -> tuple[shards.ShardRows, NDArray[np.uint64], dict[str, int]]:
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
            steps, copy = samples.draw(
                source.entry.weight, mixture.seed, episode.id, episode.num_steps,
                stride=mixture.stride, validation=task.validation,
            )  # fmt: skip
            if len(steps) == 0:
                continue
            counts[name] += len(steps)
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
            ahead, ahead_mask = samples.chunks(steps, mixture.chunk, episode.num_steps, mixture.window)
            for role, frames in pool.items():
                base = frames.add(episode, np.unique(seen[seen_mask]), swap=role in source.bgr)
            draft.add("frame", np.where(seen_mask, seen + base, -1))
            draft.add("observation_mask", seen_mask)
            normalized = task.bounds[name].normalize(episode.action)
            draft.add("action", normalized[ahead])
            draft.add("bins", bins.encode(normalized)[ahead])
            draft.add("action_mask", ahead_mask)
            draft.add("step", steps.astype(np.int32))
            draft.add("proprio", episode.proprio[steps].ravel())
            draft.add("proprio_width", np.full(len(steps), episode.proprio.shape[1]))
    window = mixture.window
    chunk = window + mixture.chunk - 1
    rows = shards.ShardRows(
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
