"""Statistics of a data set's variety: from all of its texts and lengths, and a fixed sample of frames and actions.

The sample is the episodes whose ids have the smallest hashes: the same in every run and for any order of shards. A
frame is one byte range of its shard.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from oxe_curate.actions.bounds import Bounds
from oxe_curate.episode import EpisodeId
from oxe_curate.errors import ConfigError, DataError
from oxe_curate.index import images, query
from oxe_curate.index.episodes import Episode
from oxe_curate.index.frame_pool import FramePool
from oxe_curate.index.records import SourceRecords
from oxe_curate.index.store import Index
from oxe_curate.mixture import variety
from oxe_curate.mixture.sampling import episode_hashes

if TYPE_CHECKING:
    import polars as pl

SAMPLE = 256
"""Episodes whose first frame and actions are read."""
_ROLES = ("primary", "secondary", "extra")


@dataclass(frozen=True)
class Survey:
    """The variety of a data set.

    Attributes:
        episodes, steps: kept ones, in the given splits.
        median_steps: median length of an episode.
        tasks: number of distinct instructions.
        effective_tasks: exp(entropy) of their frequencies, by episode.
        sampled: episodes whose frames and actions were read.
        effective_scenes: Vendi score of their first frames, at most `sampled`.
        coverage: how evenly pose actions cover their range, 0 to 1.
        duplicates: share of sampled episodes that are near-duplicates of another, 0 to 1.
    """

    episodes: int
    steps: int
    median_steps: float
    tasks: int
    effective_tasks: float
    sampled: int
    effective_scenes: float
    coverage: float
    duplicates: float


def survey(
    index: Index,
    dataset: str,
    splits: Sequence[str] = ("train",),
    sample: int = SAMPLE,
) -> Survey:
    """Survey a data set of the index.

    Args:
        index: the opened index; its source must be readable.
        dataset: name in the index.
        splits: of the data set.
        sample: number of episodes to read.

    Raises:
        ConfigError: no episode of these splits is kept.
        DataError: a frame cannot be decoded. StorageError: a shard cannot be read.
    """
    steps, texts, episodes = sample_episodes(index, dataset, splits, sample)
    actions = normalised(episodes)
    frames = []
    for episode in episodes:
        (first,) = thumbnails(index, episode, np.zeros(1, np.int64))
        frames.append(variety.embed(first))
    embedded = np.stack(frames)
    return Survey(
        episodes=len(steps),
        steps=int(steps.sum()),
        median_steps=float(np.median(steps)),
        tasks=len(texts),
        effective_tasks=variety.effective_number(list(texts.values())),
        sampled=len(episodes),
        effective_scenes=variety.effective_scenes(embedded),
        coverage=variety.action_coverage(np.concatenate(actions)),
        duplicates=variety.near_duplicates(
            [variety.task(e.instruction) for e in episodes],
            embedded,
            np.stack([variety.action_signature(a) for a in actions]),
        ),
    )


def sample_episodes(
    index: Index, dataset: str, splits: Sequence[str], sample: int
) -> tuple[NDArray[np.int64], Counter[str], list[Episode]]:
    """The kept episodes of some splits.

    Returns:
        int64 (episodes,), their lengths; task -> number of episodes; and the sampled episodes, in the order of the
        index.

    Raises:
        ConfigError: no episode is kept.
    """
    import polars as pl

    kept = query.scan_index(index, dataset, splits).filter("kept")
    lengths = query.collect(kept.select(pl.col("num_steps").cast(pl.Int64)))["num_steps"].to_numpy()
    if not len(lengths):
        raise ConfigError(f"{index.folder}: {dataset} has no kept episode in {', '.join(splits)}")
    texts: Counter[str] = Counter()
    # in order of appearance, so that sums over the tasks are reproducible
    counted = kept.group_by("instruction", maintain_order=True).agg(pl.len())
    for text, count in query.collect(counted).rows():
        texts[variety.task(text)] += count
    hashed = pl.col("episode_id").map_batches(_hashes, return_dtype=pl.UInt64, is_elementwise=True)
    chosen = kept.select("file", "row", hashed.alias("hash")).bottom_k(sample, by=["hash", "file", "row"])
    episodes = []
    for (path,), rows in query.collect(chosen).sort("file", "row").group_by("file", maintain_order=True):
        episodes += Episode.read(index.folder, str(path), rows["row"].to_list())
    return lengths, texts, episodes


def _hashes(ids: pl.Series) -> pl.Series:
    import polars as pl

    return pl.Series(episode_hashes(None, ids.to_list()))


def normalised(episodes: Sequence[Episode]) -> list[NDArray[np.float32]]:
    """Each episode's actions, float32 (T, 7), scaled so that the 1st and 99th percentiles of all become -1 and +1."""
    bounds = Bounds.fit([np.concatenate([e.action for e in episodes])])
    return [bounds.normalize(e.action) for e in episodes]


def thumbnails(index: Index, episode: Episode, steps: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
    """Small images of some steps of an episode, uint8 (32, 32, 3) each, from its first third-person camera.

    Raises:
        DataError: it has no third-person camera, or a frame cannot be decoded.
    """
    role = next((role for role in _ROLES if role in episode.spans), None)
    if role is None:
        raise DataError(f"{episode.id}: no third-person camera; run filter with the default criteria")
    pool = FramePool(role)
    source = index.source_of(EpisodeId.parse(episode.id).dataset)
    record = SourceRecords(check=False).open(source, episode)
    start = pool.add(record, episode, steps, swap=False)
    frames = pool.frames()
    found = []
    for i in (start + steps).tolist():
        try:
            found.append(variety.thumbnail(images.decode(frames.read(i))))
        except ValueError as error:
            raise DataError(f"{episode.id}: cannot decode a frame of its {role} camera: {error}") from None
    return found
