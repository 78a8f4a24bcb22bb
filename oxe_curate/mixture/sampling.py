"""The samples that a mixture draws and what each contains: pure functions of hashes, independent of sizes and order.

All workers decide alike because only (seed, episode id, step) matters. The hash of an episode is BLAKE2b-64 of
"seed:episode_id"; the hashes of its steps follow from it by SplitMix64 (Steele, Lea, Flood 2014), vectorised.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_COPIES, _ORDER, _SHARD = (np.uint64(n) for n in (1, 2, 3))  # each purpose has its own stream of hashes


def episode_hash(seed: int | None, episode_id: str) -> np.uint64:
    """64-bit hash of an episode for a seed; None: independent of the seed."""
    text = f"{'' if seed is None else seed}:{episode_id}"
    return np.uint64(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little"))


def splitmix64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's output function on uint64 (n,), wrapping."""
    with np.errstate(over="ignore"):
        z = values + _GAMMA
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(z ^ (z >> np.uint64(31)), np.uint64)


def _hash01(values: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) from the upper 53 bits of hashes."""
    return (splitmix64(values) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _step_hashes(episode: np.uint64, num_steps: int, purpose: np.uint64) -> NDArray[np.uint64]:
    """A hash per step of an episode for one purpose, uint64 (T,)."""
    with np.errstate(over="ignore"):
        base = splitmix64(np.array([episode + purpose], np.uint64))[0]
        return np.asarray(base + np.arange(num_steps, dtype=np.uint64) * _GAMMA, np.uint64)


def copies(weight: float, seed: int, episode_id: str, num_steps: int, validation: bool = False) -> NDArray[np.int64]:
    """How often each step of an episode is drawn: floor(w) + (hash01(seed, step) < frac(w)), int64 (T,).

    The sum is correct in expectation for any weight. A validation sample is drawn at most once, since copies carry no
    information there.
    """
    whole, part = divmod(weight, 1.0)
    if validation and whole:
        whole, part = 1.0, 0.0
    chance = _hash01(_step_hashes(episode_hash(seed, episode_id), num_steps, _COPIES)) < part
    return np.asarray(int(whole) + chance, np.int64)


def episode_hashes(seed: int | None, episode_ids: Sequence[str]) -> NDArray[np.uint64]:
    """`episode_hash` of many episodes, uint64 (n,)."""
    prefix, hashed = f"{'' if seed is None else seed}:", hashlib.blake2b
    digests = [hashed(f"{prefix}{name}".encode(), digest_size=8).digest() for name in episode_ids]
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


def held_out(episode_ids: Sequence[str], share: float) -> NDArray[np.bool_]:
    """Which episodes are for validation, bool (n,). Independent of the seed: every mixture holds out the same ones."""
    return np.asarray(_hash01(episode_hashes(None, episode_ids)) < share)


def output_shards(seed: int, episode_ids: Sequence[str], shards: int) -> NDArray[np.int64]:
    """The output shard of each episode, int64 (n,), below `shards`."""
    with np.errstate(over="ignore"):
        mixed = splitmix64(episode_hashes(seed, episode_ids) + _SHARD)
    return (mixed % np.uint64(shards)).astype(np.int64)


def order_keys(
    seed: int, episode_id: str, num_steps: int, steps: NDArray[np.int64], copies: NDArray[np.int64]
) -> NDArray[np.uint64]:
    """The key of each sample for `order`, uint64 (n,).

    Args:
        seed: of the mixture.
        episode_id: of the episode that the samples come from.
        num_steps: its length.
        steps: int64 (n,), the samples' steps.
        copies: int64 (n,), which copy of its step each sample is.
    """
    hashes = _step_hashes(episode_hash(seed, episode_id), num_steps, _ORDER)
    return splitmix64(hashes[steps]) + copies.astype(np.uint64)


def order(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """A permutation, int64 (n,), that depends only on the rows' keys, not on a random generator or on their order."""
    return np.argsort(splitmix64(keys), kind="stable").astype(np.int64)


def window_ends(num_steps: int, stride: int) -> NDArray[np.int64]:
    """Steps of an episode at which samples are drawn, ascending: int64 (ceil(T / stride),).

    T-1, T-1-s, T-1-2s, ...: the last step always ends a window, and the first window ends before step `stride`, so that
    every step is in a window if the stride is at most the window.

    >>> window_ends(8, 3).tolist()
    [1, 4, 7]
    """
    return np.arange((num_steps - 1) % stride, num_steps, stride, dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Draws:
    """The samples of some episodes, episode by episode.

    Attributes:
        limits: int64 (episodes + 1,), where the samples of each episode begin and the last ones end.
        steps: int64 (n,), the current step of each sample, ascending in an episode.
        copies: int64 (n,), which copy of its step each sample is, from 0.
        keys: uint64 (n,), the keys for `order`.
    """

    limits: NDArray[np.int64]
    steps: NDArray[np.int64]
    copies: NDArray[np.int64]
    keys: NDArray[np.uint64]


def draw(
    weights: NDArray[np.float64], seed: int, episode_ids: Sequence[str], num_steps: NDArray[np.int64], *,
    stride: int = 1, validation: bool = False,
) -> Draws:  # fmt: skip
    """The samples of some episodes, see `copies`, `window_ends` and `order_keys`.

    Args:
        weights: float64 (e,), expected copies of each step.
        seed: of the mixture.
        episode_ids: e names.
        num_steps: int64 (e,), lengths of the episodes.
        stride: steps between samples.
        validation: whether the episodes are held out.
    """
    whole, part = np.divmod(weights, 1.0)
    if validation:
        part = np.where(whole > 0, 0.0, part)
        whole = np.minimum(whole, 1.0)
    hashes = episode_hashes(seed, episode_ids)
    with np.errstate(over="ignore"):
        copies_base, order_base = splitmix64(hashes + _COPIES), splitmix64(hashes + _ORDER)
    ends = -(-num_steps // stride)
    episode = np.repeat(np.arange(len(ends)), ends)
    step = np.arange(len(episode)) - np.repeat(np.cumsum(ends) - ends, ends)
    step = step * stride + ((num_steps - 1) % stride)[episode]
    with np.errstate(over="ignore"):
        offset = step.astype(np.uint64) * _GAMMA
        chance = _hash01(copies_base[episode] + offset) < part[episode]
    times = whole.astype(np.int64)[episode] + chance
    limits = np.concatenate(([0], np.cumsum(np.bincount(episode, times, len(ends)).astype(np.int64))))
    copy = np.arange(limits[-1]) - np.repeat(np.cumsum(times) - times, times)
    with np.errstate(over="ignore"):
        keys = splitmix64(np.repeat(order_base[episode] + offset, times)) + copy.astype(np.uint64)
    return Draws(limits, np.repeat(step, times), copy, keys)


def stored_frames(num_steps: NDArray[np.int64], window: int, stride: int) -> NDArray[np.int64]:
    """Number of frames in the windows of episodes of `num_steps` (n,), without padding: int64 (n,).

    >>> stored_frames(np.array([5]), window=3, stride=2).tolist()  # 0 | 0 1 2 | 2 3 4
    [7]
    """
    steps = np.asarray(num_steps, np.int64)
    count = -(-steps // stride)
    whole = np.clip((steps - window) // stride + 1, 0, count)  # windows that do not extend beyond the start
    # of those that do, the k-th window from the end has T - k s frames
    rest = (count - whole) * steps - stride * (count * (count - 1) - whole * (whole - 1)) // 2
    return np.asarray(whole * window + rest, np.int64)


def windows(steps: NDArray[np.int64], window: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Observations of samples whose current step is `steps` (n,).

    Returns:
        int64 (n, window) step indices, oldest first, the first step repeated before the start of the episode, and
        bool (n, window), False for that padding.
    """
    back = steps[:, None] + np.arange(1 - window, 1)
    return np.maximum(back, 0), back >= 0


def chunks(
    steps: NDArray[np.int64], chunk: int, num_steps: int | NDArray[np.int64], window: int = 1
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Actions of samples whose current step is `steps` (n,): `chunk` of them from each step of the window.

    Entry i belongs to step `steps - (window - 1) + i`. `num_steps` is that of the episode, or of each sample's (n,).

    Returns:
        int64 (n, window + chunk - 1) step indices, the first or last step repeated outside the episode, and a bool
        array of the same shape, False for that padding.
    """
    ahead = steps[:, None] + np.arange(1 - window, chunk)
    length = np.reshape(num_steps, (-1, 1))
    return np.clip(ahead, 0, length - 1), (ahead >= 0) & (ahead < length)
