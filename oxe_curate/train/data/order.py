"""The order of samples: a new permutation per epoch that is computed, not stored.

A run sees one endless sequence of samples: position p is place p % n of epoch p // n. The row at a place is a function
of (seed, epoch, place), so that one integer, the samples consumed, resumes a run exactly, on any number of workers and
GPUs. Random numbers for augmentation are a function of (seed, position).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from oxe_curate.mixture.sampling import splitmix64

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = 6
_BLOCK = 2048
_LEAST_BITS = 6  # a network over fewer bits reaches too few permutations
_ORDER, _AUGMENT = np.uint64(11), np.uint64(12)  # one hash stream per purpose


def shuffled(seed: int, epoch: int, n: int, places: ArrayLike) -> NDArray[np.int64]:
    """Values at some places of a pseudo-random permutation of range(n), in O(1) memory.

    A Feistel network over the smallest power of two that holds n (Luby and Rackoff 1988), keyed by SplitMix64 of
    (seed, epoch); a value above n - 1 is encrypted again until it is inside ("cycle walking", Black and Rogaway 2002),
    twice at most on average.

    Args:
        seed: of the run.
        epoch: number of the permutation.
        n: number of rows.
        places: integers in [0, n), any shape.

    Returns:
        int64, the shape of `places`.
    """
    places = np.asarray(places, np.int64)
    if places.size and not (places.min() >= 0 and places.max() < n):
        raise IndexError(f"places in [{places.min()}, {places.max()}] of a permutation of {n} rows")
    bits = max((n - 1).bit_length(), _LEAST_BITS)
    keys = _keys(seed, epoch)
    values = places.astype(np.uint64).ravel()
    outside = np.arange(len(values))
    while len(outside):
        values[outside] = _feistel(values[outside], keys, bits)
        outside = outside[values[outside] >= np.uint64(n)]
    return values.astype(np.int64).reshape(places.shape)


def rows_at(seed: int, n: int, positions: ArrayLike) -> NDArray[np.int64]:
    """Rows at positions of the endless sequence over n rows; int64, the shape of `positions`."""
    positions = np.asarray(positions, np.int64)
    epochs, places = np.divmod(positions, n)
    rows = np.empty(positions.shape, np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        rows[here] = shuffled(seed, int(epoch), n, places[here])
    return rows


def random_numbers(seed: int, positions: ArrayLike, k: int = 8) -> NDArray[np.float32]:
    """float32 (n, k) in [0, 1), a function of (seed, position), for positions (n,)."""
    positions = np.asarray(positions, np.int64).astype(np.uint64)
    with np.errstate(over="ignore"):
        key = splitmix64(np.array([seed], np.int64).astype(np.uint64) + _AUGMENT * _GAMMA)
        base = splitmix64(positions ^ key)
        bits = splitmix64(base[:, None] + np.arange(k, dtype=np.uint64) * _GAMMA)
    return (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def batch_positions(
    start: int, step: int, rank: int, world: int, batch_size: int, accumulation: int = 1
) -> NDArray[np.int64]:
    """Positions of one rank's micro-batch, int64 (batch_size,).

    The `world * accumulation * batch_size` samples of an optimizer step are consecutive, however they are divided: one
    process with the same global batch sees the same samples in the same steps.

    Args:
        start: samples consumed before `step` 0.
        step: number of the micro-batch since then; an optimizer step has `accumulation` of them.
        rank: of this process.
        world: number of processes.
        batch_size: samples in a micro-batch of one rank.
        accumulation: micro-batches of one rank in an optimizer step.
    """
    optimizer_step, part = divmod(step, accumulation)
    block = (optimizer_step * accumulation + part) * world + rank
    return start + block * batch_size + np.arange(batch_size, dtype=np.int64)


@dataclass(frozen=True)
class Shuffle:
    """The order with random access: a permutation of all rows in each epoch.

    Attributes:
        seed: of the run.
        n: number of rows.
    """

    seed: int
    n: int

    def rows(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """See `RowOrder`."""
        blocks, places = np.divmod(positions, _BLOCK)
        out = np.empty(len(positions), np.int64)
        for block in np.unique(blocks):
            here = blocks == block
            out[here] = self._block(int(block))[places[here]]
        return out

    @functools.lru_cache(maxsize=4)  # noqa: B019 (there is one order a run)
    def _block(self, block: int) -> NDArray[np.int64]:
        """Rows of a block of positions; computing many at once is ten times faster."""
        return rows_at(self.seed, self.n, block * _BLOCK + np.arange(_BLOCK, dtype=np.int64))

    def positions(
        self, start: int, step: int, rank: int, world: int, batch_size: int, accumulation: int
    ) -> NDArray[np.int64]:
        """See `RowOrder`."""
        return batch_positions(start, step, rank, world, batch_size, accumulation)


def _keys(seed: int, epoch: int) -> NDArray[np.uint64]:
    """uint64 (rounds,): one key per round."""
    with np.errstate(over="ignore"):
        base = splitmix64(np.array([seed], np.int64).astype(np.uint64) + _ORDER * _GAMMA)
        base = splitmix64(base ^ np.uint64(epoch))
        return splitmix64(base + np.arange(_ROUNDS, dtype=np.uint64) * _GAMMA)


def _feistel(values: NDArray[np.uint64], keys: NDArray[np.uint64], bits: int) -> NDArray[np.uint64]:
    """A bijection of [0, 2**bits); with odd `bits` the halves differ by a bit and swap their widths in each round."""
    low_bits = np.uint64(bits // 2)
    high_bits = np.uint64(bits - bits // 2)
    one = np.uint64(1)
    high, low = values >> low_bits, values & ((one << low_bits) - one)
    for key in keys:
        mask = (one << high_bits) - one
        high, low = low, (high ^ splitmix64(low ^ key)) & mask
        high_bits, low_bits = low_bits, high_bits
    return (high << low_bits) | low
