"""Build one output shard: draw its samples, gather their frames by byte range, bin, shuffle, write.

Plain functions that Beam only distributes. Images are read one row group at a time, so memory stays close to the
numbers of one shard.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from oxe_curate.actions.bins import ActionBins
from oxe_curate.actions.dimensions import NUM_DIMENSIONS
from oxe_curate.index.episodes import Episode
from oxe_curate.index.frame_pool import FramePool, ranges_needed
from oxe_curate.index.records import SourceRecords
from oxe_curate.mixture import sampling
from oxe_curate.mixture.spec import IndexedDataset
from oxe_curate.storage import Folder
from oxe_curate.tokenize import shards
from oxe_curate.tokenize.checksum import FileHashes
from oxe_curate.tokenize.planned import TokenizeJob, TokenizeTask, planned_episodes, read_part

_AHEAD = 32  # episodes, whose parts an object store sends meanwhile
_TEXTS = ("dataset", "episode_id", "instruction")


@dataclass
class Built:
    """Result of a task.

    Attributes:
        result: hashes of the shard, as it was written.
    """

    steps_seen: int
    result: FileHashes


@dataclass(frozen=True, eq=False)
class EpisodeDraw:
    """The samples that a shard draws from one episode, at least one.

    Attributes:
        root: where the shards of its data set are.
        path, row: the index file and the episode's row in it.
        steps: int64 (n,), the current step of each sample, ascending.
        copies: int64 (n,), which copy of its step each sample is, from 0.
        keys: uint64 (n,); `sampling.order` of a shard's keys is the order of its rows.
        shown: role of the mixture -> role of the camera in the index whose frames `episode` has in its place.
    """

    source: IndexedDataset
    root: Folder
    path: str
    row: int
    episode: Episode
    steps: NDArray[np.int64]
    copies: NDArray[np.int64]
    keys: NDArray[np.uint64]
    shown: Mapping[str, str]

    def sample_ids(self) -> list[str]:
        """The id of each sample: episode, step, and the copy if it is not the first."""
        return [
            f"{self.episode.id}/{step:05d}" + (f"#{copy}" if copy else "")
            for step, copy in zip(self.steps.tolist(), self.copies.tolist(), strict=True)
        ]

    def instructions(self) -> tuple[list[str], NDArray[np.int64]]:
        """Distinct instructions, and int64 (n,) which of them each sample has: its step's own, else the episode's."""
        episode = self.episode
        if episode.instruction_index is None:
            return [episode.instruction], np.zeros(len(self.steps), np.int64)
        # -1 marks a step without an instruction of its own: it selects the last text
        return [*episode.instructions, episode.instruction], episode.instruction_index[self.steps].astype(np.int64)


def draw_episodes(job: TokenizeJob, part: Any, validation: bool) -> Iterator[EpisodeDraw]:
    """Draw the samples of a part of the plan, episode by episode, in the order of the index. Reads no frame."""
    mixture = job.mixture
    for planned in planned_episodes(job, part):
        source, episode = job.sources[planned.source], planned.episode
        steps, copies = sampling.draw(
            source.entry.weight, mixture.seed, episode.id, episode.num_steps,
            stride=mixture.stride, validation=validation,
        )  # fmt: skip
        if len(steps):
            keys = sampling.order_keys(mixture.seed, episode.id, episode.num_steps, steps, copies)
            root = job.roots[planned.source]
            available = {*episode.frames, *episode.spans}
            cameras: tuple[str, ...] = mixture.image.cameras
            shown = {role: source.shown(role, episode.id, available, mixture.seed) for role in cameras}
            if source.views:
                frames = {role: episode.frames[other] for role, other in shown.items() if other in episode.frames}
                spans = {role: episode.spans[other] for role, other in shown.items() if other in episode.spans}
                episode = replace(episode, frames=frames, spans=spans)
            yield EpisodeDraw(source, root, planned.path, planned.row, episode, steps, copies, keys, shown)


def build_shard(job: TokenizeJob, task: TokenizeTask) -> Built:
    """Build and publish one shard.

    Raises:
        DataError: a source shard is not the one that was filtered, or a frame is no image. CorruptError: a record is
            damaged. StorageError: a file cannot be read or written. Each names the source shard and the episode.
    """
    records = SourceRecords(job.check_records)
    rows, keys, counts = _gather_rows(job, task, records)
    meta: dict[str, Any] = {"fingerprint": task.fingerprint, "counts": counts}
    if job.mixture.window > 1:
        meta["frames"] = shards.stored(rows)
    check = records.check_unchanged
    hashes = shards.write_shard_file(task.out, task.output, rows, sampling.order(keys), meta, check)
    return Built(len(keys), hashes)


@dataclass
class _Draft:
    """Columns under construction, one item per episode."""

    sample_id: list[str] = field(default_factory=list)
    codes: dict[str, list[NDArray[np.int32]]] = field(default_factory=lambda: {name: [] for name in _TEXTS})
    texts: dict[str, dict[str, int]] = field(default_factory=lambda: {name: {} for name in _TEXTS})
    arrays: dict[str, list[NDArray[Any]]] = field(default_factory=dict)

    def add_text(self, column: str, values: list[str], chosen: NDArray[np.int64]) -> None:
        known = self.texts[column]
        codes = np.array([known.setdefault(value, len(known)) for value in values], np.int32)
        self.codes[column].append(codes[chosen])

    def add(self, column: str, value: NDArray[Any]) -> None:
        self.arrays.setdefault(column, []).append(value)

    def joined(self, column: str, dtype: Any, *shape: int) -> NDArray[Any]:
        return np.concatenate(self.arrays[column]) if column in self.arrays else np.empty((0, *shape), dtype)


def _requested(
    job: TokenizeJob, draws: Iterator[EpisodeDraw], records: SourceRecords
) -> Iterator[tuple[EpisodeDraw, NDArray[np.int64], list[tuple[int, int]]]]:
    """Yield each draw, the steps whose frames it needs, and the parts of the shard to read; some are read ahead."""
    waiting: deque[tuple[EpisodeDraw, NDArray[np.int64], list[tuple[int, int]]]] = deque()
    for drawn in draws:
        seen, seen_mask = sampling.windows(drawn.steps, job.mixture.window)
        needed = np.unique(seen[seen_mask])
        ranges = [part for role in job.mixture.image.cameras for part in ranges_needed(drawn.episode, role, needed)]
        records.request(drawn.root, drawn.episode, ranges)
        waiting.append((drawn, needed, ranges))
        if len(waiting) > _AHEAD:
            yield waiting.popleft()
    yield from waiting


def _gather_rows(
    job: TokenizeJob, task: TokenizeTask, records: SourceRecords
) -> tuple[shards.ShardRows, NDArray[np.uint64], dict[str, int]]:
    """Return the task's rows in the order of the index, the key of each row, and the rows per data set."""
    mixture = job.mixture
    bins = ActionBins(mixture.bins)
    draft = _Draft()
    pool = {role: FramePool(role) for role in mixture.image.cameras}
    counts: dict[str, int] = {}
    for drawn, needed, ranges in _requested(job, draw_episodes(job, read_part(job, task), task.validation), records):
        name, episode, steps = drawn.source.entry.name, drawn.episode, drawn.steps
        counts[name] = counts.get(name, 0) + len(steps)
        draft.add("key", drawn.keys)
        draft.sample_id += drawn.sample_ids()
        same = np.zeros(len(steps), np.int64)
        draft.add_text("dataset", [name], same)
        draft.add_text("episode_id", [episode.id], same)
        draft.add_text("instruction", *drawn.instructions())
        seen, seen_mask = sampling.windows(steps, mixture.window)
        ahead, ahead_mask = sampling.chunks(steps, mixture.chunk, episode.num_steps, mixture.window)
        record = records.open(drawn.root, episode, ranges)
        for role, frames in pool.items():
            base = frames.add(record, episode, needed, swap=role in drawn.source.bgr)
        draft.add("frame", np.where(seen_mask, seen + base, -1))
        draft.add("observation_mask", seen_mask)
        normalized = job.bounds[name].normalize(episode.action)
        draft.add("action", normalized[ahead])
        draft.add("bins", bins.encode(normalized)[ahead])
        draft.add("action_mask", ahead_mask)
        draft.add("step", steps.astype(np.int32))
        draft.add("proprio", episode.proprio[steps].ravel())
        draft.add("proprio_width", np.full(len(steps), episode.proprio.shape[1]))
    window = mixture.window
    folder = task.out.path() if task.out.is_local else None
    chunk = window + mixture.chunk - 1
    shown = draft.joined("frame", np.int64, window)
    rows = shards.ShardRows(
        sample_id=pa.array(draft.sample_id, pa.string()),
        texts={name: list(known) for name, known in draft.texts.items()},
        codes={name: np.concatenate(codes) if codes else np.empty(0, np.int32) for name, codes in draft.codes.items()},
        step=draft.joined("step", np.int32),
        frame=shown,
        frames={role: frames.recoded(mixture.image, shown, folder) for role, frames in pool.items()},
        action=draft.joined("action", np.float32, chunk, NUM_DIMENSIONS),
        bins=draft.joined("bins", np.uint8, chunk, NUM_DIMENSIONS),
        action_mask=draft.joined("action_mask", np.bool_, chunk),
        observation_mask=draft.joined("observation_mask", np.bool_, window),
        proprio=draft.joined("proprio", np.float32),
        proprio_width=draft.joined("proprio_width", np.int64),
    )
    return rows, draft.joined("key", np.uint64), counts
