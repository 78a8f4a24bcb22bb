"""Copies of episodes: found by the hash of their actions, or nearly by the hashes of a few pictures.

Pure functions over arrays in order of precedence: of two copies, the one that stands first is the original.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from oxe_curate.errors import ConfigError
from oxe_curate.index.index_json import DatasetEntry

LENGTH_TOLERANCE = 0.05
"""Near copies may differ in length by this share (and by 2 steps at least): loaders trim ends."""
INFORMATIVE = 8
"""Bits that must be set in an episode's picture hashes: plain pictures are all alike."""
_PAIRS = 1 << 22  # pairs compared at a time, which bounds memory


def precedence(split: str, dataset: str, version: str, shard: int) -> tuple[bool, str, str, str, int]:
    """Sort key of a source shard: train splits come first, then data set, version, split and number."""
    return (split != "train", dataset, version, split, shard)


def exact_copies(hashes: NDArray[np.uint64], valid: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Find episodes with equal hashes.

    Args:
        hashes: (n,), in order of precedence.
        valid: (n,), False where an episode takes no part.

    Returns:
        int64 (n,): the position of the episode that each one is a copy of, -1 for originals and non-participants.
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
    """Find episodes whose pictures look alike: every hash differs by at most `bits` of 64, and the lengths agree.

    By the pigeonhole principle two such episodes agree in one of `k * bits + 1` parts of their k * 64 bits, so that
    only episodes with an equal part are compared. An episode is compared with originals alone: similarity is not
    handed on from copy to copy.

    Args:
        hashes: (n, k), in order of precedence.
        num_steps: (n,) lengths.
        valid: (n,), False where an episode takes no part.
        bits: largest number of differing bits of a pair of hashes.

    Returns:
        int64 (n,): the position of the first original that each one is a near copy of, or -1.
    """
    count, frames = hashes.shape
    copies = np.full(count, -1, np.int64)
    told = np.bitwise_count(hashes).sum(axis=1) >= INFORMATIVE
    rows = np.flatnonzero(valid & told)
    if not len(rows):
        return copies
    parts = frames * bits + 1
    # bit i goes to part i modulo parts: a part then holds bits of every frame and place, not one still corner
    unpacked = np.unpackbits(hashes[rows].astype(">u8").view(np.uint8).reshape(len(rows), -1), axis=1)
    found: list[NDArray[np.int64]] = []
    for part in range(parts):
        keys = np.packbits(unpacked[:, part::parts], axis=1)
        for a, b in _pairs(keys, num_steps[rows]):
            i, j = np.minimum(rows[a], rows[b]), np.maximum(rows[a], rows[b])
            alike = (np.bitwise_count(hashes[i] ^ hashes[j]) <= bits).all(axis=1)
            found.append(np.stack([j[alike], i[alike]], axis=1))
    for later, earlier in np.unique(np.concatenate(found), axis=0).tolist() if found else []:
        # sorted by the later one: whether `earlier` is an original is settled by now
        if copies[later] < 0 and copies[earlier] < 0:
            copies[later] = earlier
    return copies


def _pairs(keys: NDArray[np.uint8], num_steps: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], ...]]:
    """Yield index arrays (a, b) of all pairs of rows with equal keys (n, bytes) and like lengths, in bounded pieces."""
    packed = np.ascontiguousarray(keys).view(f"V{keys.shape[1]}")[:, 0]
    _, group = np.unique(packed, return_inverse=True)
    order = np.lexsort((num_steps, group))
    steps = num_steps[order]
    longest = np.maximum(steps + 2, np.floor(steps / (1 - LENGTH_TOLERANCE)).astype(np.int64))
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
    """Refuse to draw from a split that was meant to be held out and holds copies of training episodes.

    Args:
        datasets: the entries of index.json.
        drawn: data set -> splits that are drawn from.
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
