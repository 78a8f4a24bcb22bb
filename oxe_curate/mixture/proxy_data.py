"""Input of the proxy model: small frames, words and action classes of a fixed sample of steps."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oxe_curate.actions.bins import ActionBins
from oxe_curate.index.store import Index
from oxe_curate.mixture import variety
from oxe_curate.mixture.sampling import held_out
from oxe_curate.mixture.survey import normalised, sample_episodes, thumbnails

_STEPS = 8
"""Steps per episode, evenly spaced: neighbouring steps are redundant."""
WORDS = 256
_BINS_PER_CLASS = 8
CLASSES = 256 // _BINS_PER_CLASS
"""Eight neighbouring action bins form one class: a model this small does not resolve 1/256 of the range."""
_HELD_OUT = 0.2


@dataclass(frozen=True, eq=False)
class Examples:
    """Steps of one data set.

    Attributes:
        frames: uint8 (n, 32, 32, 3).
        words: float32 (n, 256), unit length or zero.
        classes: int64 (n, 7).
        held: bool (n,), whether the step belongs to a held-out episode.
    """

    frames: NDArray[np.uint8]
    words: NDArray[np.float32]
    classes: NDArray[np.int64]
    held: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.frames)


def bag_of_words(text: str) -> NDArray[np.float32]:
    """Count a text's words in 256 hashed buckets, float32 (256,), scaled to unit length."""
    counts = np.zeros(WORDS, np.float32)
    for word in variety.task(text).split():
        counts[hashlib.blake2b(word.encode(), digest_size=1).digest()[0]] += 1
    norm = float(np.linalg.norm(counts))
    return counts / np.float32(norm or 1)


def read_examples(index: Index, dataset: str, splits: Sequence[str], sample: int) -> Examples:
    """Read the steps of `survey.sample_episodes`. Raises ConfigError or DataError as `survey` does."""
    _, _, episodes = sample_episodes(index, dataset, splits, sample)
    held = held_out([e.id for e in episodes], _HELD_OUT)
    if held.all() or not held.any():  # very few episodes: hold out every fifth
        held = np.arange(len(episodes)) % 5 == 4
    bins = ActionBins("openvla")
    frames: list[NDArray[np.uint8]] = []
    words, classes, counts = [], [], []
    for episode, actions in zip(episodes, normalised(episodes), strict=True):
        steps = np.unique(np.linspace(0, episode.num_steps - 1, _STEPS).round().astype(np.int64))
        frames += thumbnails(index, episode, steps)
        words.append(np.repeat(bag_of_words(episode.instruction)[None], len(steps), axis=0))
        classes.append(bins.encode(actions[steps]).astype(np.int64) // _BINS_PER_CLASS)
        counts.append(len(steps))
    return Examples(np.stack(frames), np.concatenate(words), np.concatenate(classes), np.repeat(held, counts))
