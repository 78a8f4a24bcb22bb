"""The order of samples from an object store: row groups in turn, their rows mixed in a bounded buffer.

It is a pure function of (seed, epoch) and the sizes of the row groups, so that a run resumes at any sample, as on a
local disk. The row groups of an epoch are shuffled into a line; the line is cut into equal lanes; each lane is drawn
pool by pool, with the rows of a pool shuffled; and samples are taken from the lanes in turn. A process takes its share
of a step from its own lanes, so that it reads hardly more than it uses.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oxe_curate.mixture.sampling import splitmix64
from oxe_curate.train.data.order import shuffled

_LANES = 64
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_GROUPS, _POOLS = 21, 22  # purposes of hashes


def lanes(global_batch: int, groups: int) -> int:
    """Number of lanes: the largest divisor of the global batch that is at most 64 and a quarter of the row groups."""
    most = max(1, min(_LANES, groups // 4, global_batch))
    return next(n for n in range(most, 0, -1) if global_batch % n == 0)


@dataclass(frozen=True, eq=False)
class StreamOrder:
    """The order of samples from an object store: a `RowOrder`.

    Attributes:
        seed: of the run.
        sizes: int64 (g,), rows of each row group, in shard order.
        lanes: number of lanes. The order depends on it, and through `lanes()` on the global batch, but not on how the
            batch is divided.
        pool: rows of a lane that are mixed.
    """

    seed: int
    sizes: NDArray[np.int64]
    lanes: int
    pool: int

    @functools.cached_property
    def n(self) -> int:
        """Rows in an epoch."""
        return int(self.sizes.sum())

    def rows(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """See `RowOrder`."""
        out = np.empty(len(positions), np.int64)
        for number, position in enumerate(positions.tolist()):
            epoch, i = divmod(position, self.n)
            if i >= self.n // self.lanes * self.lanes:  # the remainder of the lanes is the end of the line
                out[number] = self._line(epoch, np.array([i]))[0]
                continue
            place, lane = divmod(i, self.lanes)
            # the pools of the lanes end at different times, so that reading is spread evenly
            t, within = divmod(place + self.pool - self._first(lane), self.pool)
            if t == 0:
                within = place
            out[number] = self._pool(epoch, lane, t)[within]
        return out

    def positions(
        self, start: int, step: int, rank: int, world: int, batch_size: int, accumulation: int
    ) -> NDArray[np.int64]:
        """See `RowOrder`; the samples of an optimizer step are sorted by lane before they are divided."""
        optimizer_step, part = divmod(step, accumulation)
        total = world * batch_size * accumulation
        step_positions = start + optimizer_step * total + np.arange(total, dtype=np.int64)
        lane = step_positions % self.n % self.lanes
        mine = step_positions[np.argsort(lane, kind="stable")].reshape(world, accumulation, batch_size)
        return np.asarray(mine[rank, part])

    def _first(self, lane: int) -> int:
        """Number of rows in the first pool of a lane."""
        return -(-self.pool * (lane + 1) // self.lanes)

    @functools.lru_cache(maxsize=4 * _LANES)  # noqa: B019 (there is one order a run)
    def _pool(self, epoch: int, lane: int, t: int) -> NDArray[np.int64]:
        """The rows of the t-th pool of a lane, in the order in which they are drawn."""
        length = self.n // self.lanes
        stop = min(self._first(lane) + t * self.pool, length)
        start = max(0, self._first(lane) + (t - 1) * self.pool)
        rows = self._line(epoch, lane * length + np.arange(start, stop, dtype=np.int64))
        with np.errstate(over="ignore"):
            key = np.array([self.seed, _POOLS, epoch, lane, t], np.uint64)
            mixed = functools.reduce(lambda a, b: splitmix64(np.atleast_1d(a ^ b)), key)
            keys = splitmix64(mixed + np.arange(len(rows), dtype=np.uint64) * _GAMMA)
        return rows[np.argsort(keys, kind="stable")]

    def _line(self, epoch: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows at places in the epoch's line of row groups."""
        groups, starts, first = self._groups(epoch)
        at = np.searchsorted(starts, places, side="right") - 1
        return np.asarray(first[groups[at]] + places - starts[at])

    @functools.lru_cache(maxsize=3)  # noqa: B019
    def _groups(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """The epoch's order of row groups, their starts in the line, and the first row of each group."""
        groups = shuffled(self.seed + (_GROUPS << 32), epoch, len(self.sizes), np.arange(len(self.sizes)))
        drawn = self.sizes[groups]
        return groups, np.cumsum(drawn) - drawn, np.cumsum(self.sizes) - self.sizes
