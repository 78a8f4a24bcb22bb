"""Copies of episodes: exact ones by the hash of their actions, near ones by the hashes of a few images.

Pure functions over arrays in order of precedence: of two copies, the first is the original.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from oxe_curate.errors import ConfigError
from oxe_curate.index.index_json import DatasetEntry

_LENGTH_TOLERANCE = 0.05
"""Near copies may differ in length by this share, or by 2 steps: loaders trim ends."""
_INFORMATIVE = 8
"""Bits that must be set in an episode's image hashes: images of one colour all look alike."""
_PAIRS = 1 << 22  # pairs compared at a time, to limit memory


def precedence(split: str, dataset: str, version: str, shard: int) -> tuple[bool, str, str, str, int]:
    """Sort key of a source shard: train splits first, then by data set, version, split and number."""
    return (split != "train", dataset, version, split, shard)


def exact_copies(hashes: NDArray[np.uint64], valid: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Find episodes with equal hashes.

    Args:
        hashes: (n,), in order of precedence.
        valid: (n,), False for episodes to ignore.

    Returns:
        int64 (n,): the position of each episode's original, -1 for originals and ignored episodes.
    """
    copies = np.full(len(hashes), -1, np.int64)
    rows = np.flatnonzero(valid)
    order = rows[np.argsort(hashes[rows], kind="stable")]  # equal hashes stay in order of precedence
    if len(order):
        starts = np.flatnonzero(np.concatenate(([True], hashes[order][1:] != hashes[order][:-1])))
        first = np.repeat(order[starts], np.diff(np.append(starts, len(order))))
        copies[order] = np.where(first == order, -1, first)
    return copies


def near_copies(
    hashes: NDArray[np.uint64], num_steps: NDArray[np.int64], valid: NDArray[np.bool_], bits: int
) -> NDArray[np.int64]:
    """Find episodes whose images look alike: every hash differs by at most `bits` of 64, and the lengths agree.

    By the pigeonhole principle two such episodes agree in one of `k * bits + 1` parts of their k * 64 bits, so only
    episodes with an equal part are compared. An episode is compared only with originals: similarity is not transitive.

    Args:
        hashes: (n, k), in order of precedence.
        num_steps: (n,) lengths.
        valid: (n,), False for episodes to ignore.
        bits: the largest number of differing bits in a pair of hashes.

    Returns:
        int64 (n,): the position of the first original that each episode is a near copy of, or -1.
    """
    count, frames = hashes.shape
    copies = np.full(count, -1, np.int64)
    informative = np.bitwise_count(hashes).sum(axis=1) >= _INFORMATIVE
    rows = np.flatnonzero(valid & informative)
    if not len(rows):
        return copies
    parts = frames * bits + 1
    # bit i goes to part i modulo parts, so a part has bits of every frame and region, not of one static corner
    unpacked = np.unpackbits(hashes[rows].astype(">u8").view(np.uint8).reshape(len(rows), -1), axis=1)
    found: list[NDArray[np.int64]] = []
    for part in range(parts):
        keys = np.packbits(unpacked[:, part::parts], axis=1)
        for a, b in _pairs(keys, num_steps[rows]):
            i, j = np.minimum(rows[a], rows[b]), np.maximum(rows[a], rows[b])
            alike = (np.bitwise_count(hashes[i] ^ hashes[j]) <= bits).all(axis=1)
            found.append(np.stack([j[alike], i[alike]], axis=1))
    for later, earlier in np.unique(np.concatenate(found), axis=0).tolist() if found else []:
        # sorted by the later one, so `earlier` is already decided
        if copies[later] < 0 and copies[earlier] < 0:
            copies[later] = earlier
    return copies


def _pairs(keys: NDArray[np.uint8], num_steps: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], ...]]:
    """Yield index arrays (a, b) of all row pairs with equal keys (n, bytes) and similar lengths, in bounded blocks."""
    packed = np.ascontiguousarray(keys).view(f"V{keys.shape[1]}")[:, 0]
    _, group = np.unique(packed, return_inverse=True)
    order = np.lexsort((num_steps, group))
    steps = num_steps[order]
    longest = np.maximum(steps + 2, np.floor(steps / (1 - _LENGTH_TOLERANCE)).astype(np.int64))
    place = group[order] * (int(longest.max()) + 1)
    # sorted by group and length, an episode's partners follow it directly
    following = np.searchsorted(place + steps, place + longest, side="right") - np.arange(len(order)) - 1
    total = np.cumsum(following)
    start = 0
    while start < len(order):
        done = total[start] - following[start]
        stop = max(start + 1, int(np.searchsorted(total, done + _PAIRS, side="right")))
        counts = following[start:stop]
        first = np.repeat(np.arange(start, stop), counts)
        step = np.arange(len(first)) - np.repeat(np.cumsum(counts) - counts, counts)
        yield order[first], order[first + 1 + step]
        start = stop


def check_leaks(datasets: Mapping[str, DatasetEntry], drawn: Mapping[str, tuple[str, ...]], allowed: bool) -> None:
    """Refuse to draw from a held-out split that has copies of training episodes.

    Args:
        datasets: the entries of index.json.
        drawn: data set -> splits to draw from.
        allowed: the criterion `allow_leak`.

    Raises:
        ConfigError: names the data set, the split and how many episodes are copies.
    """
    for name, splits in drawn.items():
        for split in splits:
            copies = datasets[name].summary.leaks.get(split, 0)
            if copies and not allowed:
                raise ConfigError(
                    f"{name}: {copies} episodes of its split {split!r} are copies of episodes of a train split, so "
                    "that it is not held out. Leave the split out of the mixture, filter with the criterion "
                    "`duplicate: true`, or, if you mean to draw them, with `allow_leak: true`."
                )
