"""Look at a data set through its index: all of its texts and lengths, and a fixed sample of frames and actions.

The sample is the episodes whose ids have the smallest hashes: the same ones in every run, and whatever the order of
shards. A frame is one range of bytes in its shard.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oxe_curate.errors import ConfigError, DataError
from oxe_curate.filter.index import Index
from oxe_curate.mixtures import variety
from oxe_curate.tokenize import images
from oxe_curate.tokenize.bounds import Bounds
from oxe_curate.tokenize.build import Episode, FramePool
from oxe_curate.tokenize.mixture import ImageSpec
from oxe_curate.tokenize.samples import episode_hashes

SAMPLE = 256
"""Episodes whose first frame and actions are looked at."""
_ROLES = ("primary", "secondary", "extra")


@dataclass(frozen=True)
class Survey:
    """How varied a data set is.

    Attributes:
        episodes, steps: kept ones, in the splits that were asked for.
        median_steps: of an episode.
        tasks: different instructions. effective_tasks: exp(entropy) of how often each is told, by episode.
        sampled: episodes whose frames and actions were looked at.
        effective_scenes: Vendi score of their first frames, at most `sampled`.
        coverage: how evenly pose actions fill their range, 0 to 1.
        duplicates: share of sampled episodes that nearly repeat another, 0 to 1.
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
    seen: Callable[[], None] = lambda: None,
) -> Survey:
    """Survey a data set of the index.

    Args:
        index: what filter wrote; its source must be readable.
        dataset: name in the index.
        splits: of the data set.
        sample: episodes to look at.
        seen: called after each of them, for a progress bar.

    Raises:
        ConfigError: no episode of these splits is kept.
        DataError: a frame cannot be decoded. StorageError: a shard cannot be read.
    """
    lengths: list[NDArray[np.int64]] = []
    texts: Counter[str] = Counter()
    rows: list[tuple[np.uint64, str, int]] = []  # hash, index file, row
    for path in index.files(dataset):
        if path.rsplit("/", 1)[-1].split("-")[0] not in splits:
            continue
        table = index.table(path, ["episode_id", "kept", "num_steps", "instruction"])
        kept = np.flatnonzero(np.asarray(table["kept"]))
        table = table.take(kept)
        lengths.append(np.asarray(table["num_steps"], np.int64))
        texts.update(variety.task(text) for text in table["instruction"].to_pylist())
        hashes = episode_hashes(None, table["episode_id"].to_pylist())
        rows += zip(hashes, [path] * len(kept), kept.tolist(), strict=True)
        rows = sorted(rows)[:sample]
    steps = np.concatenate(lengths) if lengths else np.empty(0, np.int64)
    if len(steps) == 0:
        raise ConfigError(f"{index.folder}: {dataset} keeps no episode in {', '.join(splits)}: nothing to survey")
    episodes = _episodes(index, rows)
    actions = _normalised(episodes)
    frames = _first_frames(index, episodes, seen)
    return Survey(
        episodes=len(steps),
        steps=int(steps.sum()),
        median_steps=float(np.median(steps)),
        tasks=len(texts),
        effective_tasks=variety.effective_number(list(texts.values())),
        sampled=len(episodes),
        effective_scenes=variety.effective_scenes(frames),
        coverage=variety.action_coverage(np.concatenate(actions)),
        duplicates=variety.near_duplicates(
            [variety.task(e.instruction) for e in episodes],
            frames,
            np.stack([variety.action_signature(a) for a in actions]),
        ),
    )


def _episodes(index: Index, rows: Sequence[tuple[np.uint64, str, int]]) -> list[Episode]:
    """The sampled episodes, file by file."""
    by_file: dict[str, list[int]] = {}
    for _, path, row in sorted(rows, key=lambda item: item[1:]):
        by_file.setdefault(path, []).append(row)
    found = [e for path, numbers in by_file.items() for e in Episode.read(index.folder, path, numbers)]
    return [episode for episode in found if episode.num_steps > 0]


def _normalised(episodes: Sequence[Episode]) -> list[NDArray[np.float32]]:
    """Actions between their 1st and 99th percentiles of the sample; outliers are cut off."""
    bounds = Bounds.fit([np.concatenate([e.action for e in episodes])])
    return [np.clip(bounds.normalize(e.action), -1, 1) for e in episodes]


def _first_frames(index: Index, episodes: Sequence[Episode], seen: Callable[[], None]) -> NDArray[np.float64]:
    """Embeddings of the episodes' first frames, float64 (n, 54)."""
    found = []
    for episode in episodes:
        role = next((role for role in _ROLES if role in episode.spans), None)
        if role is None:
            raise DataError(f"{episode.id}: it has no third-person camera. Filter it by the default criteria.")
        pool = FramePool(index.source, role)
        first = pool.add(episode, np.zeros(1, np.int64), swap=False)
        frames = pool.finish(ImageSpec())
        start, length = int(frames.offset[first]), int(frames.length[first])
        try:
            image = images.decode(frames.buffers[frames.buffer[first]][start : start + length])
        except ValueError as error:
            raise DataError(f"{episode.id}: its first frame cannot be decoded ({error})") from None
        found.append(variety.colour_layout(image))
        seen()
    return np.stack(found)
