"""Build one output shard: draw its samples, gather their frames by byte range, bin, shuffle, write.

Plain functions that Beam only distributes. Images are read one row group at a time, so memory stays close to the
numbers of one shard.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from oxe_curate.actions.bins import ActionBins
from oxe_curate.actions.bounds import Bounds
from oxe_curate.actions.dimensions import NUM_DIMENSIONS
from oxe_curate.errors import DataError
from oxe_curate.index.episodes import Episode
from oxe_curate.index.frame_pool import FramePool
from oxe_curate.index.records import SourceRecords
from oxe_curate.index.source_shards import Looks, read_looks
from oxe_curate.mixture import sampling
from oxe_curate.mixture.spec import IndexedDataset
from oxe_curate.storage import Folder
from oxe_curate.tokenize import shards
from oxe_curate.tokenize.checksum import FileHashes
from oxe_curate.tokenize.gather import RecordSource, Wanted, gather
from oxe_curate.tokenize.planned import TokenizeJob, TokenizeTask, planned_episodes, read_part


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
        shard: number of its source shard in the plan's `sources`.
        steps: int64 (n,), the current step of each sample, ascending.
        copies: int64 (n,), which copy of its step each sample is, from 0.
        keys: uint64 (n,); `sampling.order` of a shard's keys is the order of its rows.
        shown: role of the mixture -> role of the camera in the index whose frames `episode` has in its place.
    """

    source: IndexedDataset
    root: Folder
    path: str
    row: int
    shard: int
    episode: Episode
    steps: NDArray[np.int64]
    copies: NDArray[np.int64]
    keys: NDArray[np.uint64]
    shown: Mapping[str, str]

    def instructions(self) -> tuple[list[str], NDArray[np.int64]]:
        """Distinct instructions, and int64 (n,) which of them each sample has: its step's own, else the episode's."""
        episode = self.episode
        if episode.instruction_index is None:
            return [episode.instruction], np.zeros(len(self.steps), np.int64)
        # -1 marks a step without an instruction of its own: it selects the last text
        return [*episode.instructions, episode.instruction], episode.instruction_index[self.steps].astype(np.int64)


def sample_ids(episodes: Any, steps: NDArray[np.int64], copies: NDArray[np.int64]) -> Any:
    """The id of each sample, a string array: episode, step, and the copy if it is not the first.

    >>> sample_ids(pa.array(["a/1", "a/1"]), np.array([7, 7]), np.array([0, 1])).to_pylist()
    ['a/1/00007', 'a/1/00007#1']
    """
    names = pc.binary_join_element_wise(episodes, pc.utf8_lpad(pc.cast(pa.array(steps), pa.string()), 5, "0"), "/")
    again = np.flatnonzero(copies)
    if not len(again):
        return names
    numbers = pc.cast(pa.array(copies[again]), pa.string())
    copied = pc.binary_join_element_wise(names.take(pa.array(again)), numbers, "#")
    return pc.replace_with_mask(names, pa.array(copies > 0), copied)


def draw_episodes(job: TokenizeJob, part: Any, validation: bool) -> Iterator[EpisodeDraw]:
    """Draw the samples of a part of the plan, episode by episode, in the order of the index. Reads no frame."""
    mixture = job.mixture
    weights = np.array([source.entry.weight for source in job.sources])[part["source"].to_numpy()]
    lengths = part["num_steps"].to_numpy().astype(np.int64)
    drawn = sampling.draw(
        weights, mixture.seed, part["episode_id"].to_pylist(), lengths, stride=mixture.stride, validation=validation
    )
    some = np.flatnonzero(np.diff(drawn.limits))
    cameras: tuple[str, ...] = mixture.image.cameras
    for i, planned in zip(some.tolist(), planned_episodes(job, part.take(pa.array(some))), strict=True):
        source, episode = job.sources[planned.source], planned.episode
        available = {*episode.frames, *episode.spans}
        shown = {role: source.shown(role, episode.id, available, mixture.seed) for role in cameras}
        if source.views:
            frames = {role: episode.frames[other] for role, other in shown.items() if other in episode.frames}
            spans = {role: episode.spans[other] for role, other in shown.items() if other in episode.spans}
            episode = replace(episode, frames=frames, spans=spans)
        own = slice(drawn.limits[i], drawn.limits[i + 1])
        yield EpisodeDraw(
            source, job.roots[planned.source], planned.path, planned.row, planned.shard, episode, drawn.steps[own],
            drawn.copies[own], drawn.keys[own], shown,
        )  # fmt: skip


def build_shard(job: TokenizeJob, task: TokenizeTask) -> Built:
    """Build and publish one shard that holds its frames.

    Raises:
        DataError: a source shard is not the one that was filtered, or a frame is no image. CorruptError: a record is
            damaged. StorageError: a file cannot be read or written. Each names the source shard and the episode.
    """
    far = any(not root.is_local for root in job.roots)
    records = SourceRecords(job.check_records, _looks(job.index) if far else None)
    draws, first, pools = gather_frames(job, task, records)
    folder = task.out.path() if task.out.is_local else None
    rows = shard_rows(job, draws, first, pools)
    recoded = {role: pool.recoded(job.mixture.image, rows.frame, folder) for role, pool in pools.items()}
    rows = replace(rows, frames=recoded)
    meta: dict[str, Any] = {"fingerprint": task.fingerprint, "counts": count_rows(draws)}
    if job.mixture.window > 1:
        meta["frames"] = shards.stored(rows)
    order = sampling.order(row_keys(draws))
    hashes = shards.write_shard_file(task.out, task.output, rows, order, meta, records.check_unchanged)
    return Built(len(order), hashes)


@functools.lru_cache(maxsize=1)
def _looks(index: Folder) -> Looks:
    return read_looks(index)


def count_rows(draws: Sequence[EpisodeDraw]) -> dict[str, int]:
    """Rows of each data set."""
    counts: dict[str, int] = {}
    for drawn in draws:
        name = drawn.source.entry.name
        counts[name] = counts.get(name, 0) + len(drawn.steps)
    return counts


def row_keys(draws: Sequence[EpisodeDraw]) -> NDArray[np.uint64]:
    """The key of each row, uint64 (n,), in the order of the draws."""
    return np.concatenate([drawn.keys for drawn in draws] or [np.empty(0, np.uint64)])


def gather_frames(
    job: TokenizeJob, task: TokenizeTask, records: RecordSource
) -> tuple[list[EpisodeDraw], NDArray[np.int64], dict[str, FramePool]]:
    """Draw a task's episodes and find the frames that they need.

    Returns:
        The draws in the order of the index; int64 (draws,), the number of each one's first frame; and the frames by
        camera role.
    """
    image, window = job.mixture.image, job.mixture.window

    def wanted() -> Iterator[Wanted[EpisodeDraw]]:
        for drawn in draw_episodes(job, read_part(job, task), task.validation):
            seen, seen_mask = sampling.windows(drawn.steps, window)
            shown = np.zeros(drawn.episode.num_steps, bool)
            shown[seen[seen_mask]] = True
            yield Wanted(drawn, drawn.root, drawn.episode, np.flatnonzero(shown), drawn.source.bgr)

    return gather(wanted(), image.cameras, records, headers=not image.copy)


def shard_rows(
    job: TokenizeJob, draws: Sequence[EpisodeDraw], first: NDArray[np.int64], pools: Mapping[str, FramePool]
) -> shards.ShardRows:
    """The rows of some draws, in their order, with frames as in the source; see `gather_frames`."""
    mixture, episodes = job.mixture, [drawn.episode for drawn in draws]
    steps = _joined([drawn.steps for drawn in draws], np.int64)
    of = np.repeat(np.arange(len(draws)), [len(drawn.steps) for drawn in draws])
    lengths = np.array([episode.num_steps for episode in episodes], np.int64)
    seen, seen_mask = sampling.windows(steps, mixture.window)
    ahead, ahead_mask = sampling.chunks(steps, mixture.chunk, lengths[of], mixture.window)
    ahead += (np.cumsum(lengths) - lengths)[of][:, None]
    action = _normalized(job.bounds, draws)
    names: dict[str, int] = {}
    texts: dict[str, int] = {}
    dataset = np.array([names.setdefault(drawn.source.entry.name, len(names)) for drawn in draws], np.int32)
    said = []
    for drawn in draws:
        values, chosen = drawn.instructions()
        said.append(np.array([texts.setdefault(value, len(texts)) for value in values], np.int32)[chosen])
    copies = _joined([drawn.copies for drawn in draws], np.int64)
    ids = [episode.id for episode in episodes]
    proprio = [episode.proprio[drawn.steps].ravel() for episode, drawn in zip(episodes, draws, strict=True)]
    return shards.ShardRows(
        sample_id=sample_ids(pa.array(ids, pa.string()).take(pa.array(of)), steps, copies),
        texts={"dataset": list(names), "episode_id": ids, "instruction": list(texts)},
        codes={"dataset": dataset[of], "episode_id": of.astype(np.int32), "instruction": _joined(said, np.int32)},
        step=steps.astype(np.int32),
        frame=np.where(seen_mask, seen + first[of][:, None], -1),
        frames={role: pool.frames() for role, pool in pools.items()},
        action=action[ahead],
        bins=ActionBins(mixture.bins).encode(action)[ahead],
        action_mask=ahead_mask,
        observation_mask=seen_mask,
        proprio=_joined(proprio, np.float32),
        proprio_width=np.array([episode.proprio.shape[1] for episode in episodes], np.int64)[of],
    )


def _joined(parts: Sequence[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate(parts) if parts else np.empty(0, dtype)


def _normalized(bounds: Mapping[str, Bounds], draws: Sequence[EpisodeDraw]) -> NDArray[np.float32]:
    """The normalised actions of all steps of the episodes, one after the other: float32 (steps, 7)."""
    found = []
    for name, run in groupby(draws, lambda drawn: drawn.source.entry.name):
        group = list(run)
        try:
            found.append(bounds[name].normalize(np.concatenate([drawn.episode.action for drawn in group])))
        except DataError:
            for drawn in group:  # to name the episode
                try:
                    bounds[name].normalize(drawn.episode.action)
                except DataError as error:
                    raise DataError(f"{drawn.episode.id}: {error}") from None
            raise
    return np.concatenate(found) if found else np.empty((0, NUM_DIMENSIONS), np.float32)
