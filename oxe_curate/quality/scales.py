"""How large a data set's numbers usually are, learned from a sample, of which a fifth of the episodes may be wrong."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from oxe_curate.arrays import Floats
from oxe_curate.quality.episodes import EpisodeBatch
from oxe_curate.quality.segments import max_each, min_each

_WRONG = 0.2


@dataclass(frozen=True, eq=False)
class Scales:
    """The usual size of actions, states and their changes.

    Attributes:
        low, high: float32 (7,), the range of the action in four of five episodes.
        size: float32 (7,), its width; that of the largest of the three axes, or 1, where it is zero.
        motion: float32 (6,), the largest absolute pose action of a typical episode; as `size` where no axis moves.
        state_low, state_high: float32 (P,), the range of the proprio in four of five episodes.
        state_step: float32 (P,), the largest change of the proprio of a typical episode; 0 where it is constant.
        length: of a typical episode.
    """

    low: NDArray[np.float32]
    high: NDArray[np.float32]
    size: NDArray[np.float32]
    motion: NDArray[np.float32]
    state_low: NDArray[np.float32]
    state_high: NDArray[np.float32]
    state_step: NDArray[np.float32]
    length: float

    @classmethod
    def of(cls, sample: EpisodeBatch) -> Scales:
        """Learn them from at least one episode; several measures ask for those of one sample."""
        if sample not in _known:
            _known[sample] = cls._learn(sample)
        return _known[sample]

    @classmethod
    def _learn(cls, sample: EpisodeBatch) -> Scales:
        low, high = _usual_range(sample.actions, sample.starts)
        motion = usual_size(sample.actions[:6], sample.starts).astype(np.float32)
        step = usual_size(full_turns_removed(sample.state_steps), sample.starts).astype(np.float32)
        return cls(
            low, high, _filled(high - low), _filled(motion), *_usual_range(sample.states, sample.starts), step,
            float(np.median(sample.lengths)),
        )  # fmt: skip


_known: WeakKeyDictionary[EpisodeBatch, Scales] = WeakKeyDictionary()


def usual_size(rows: NDArray[np.float32], starts: NDArray[np.int64]) -> Floats:
    """The largest absolute value of each row (R, N) in a typical episode in which it is not zero; 0 if it always is."""
    if not len(rows):
        return np.empty(0)
    return np.array([float(np.median(x[x > 0])) if (x > 0).any() else 0.0 for x in max_each(np.abs(rows), starts)])


def full_turns_removed(change: NDArray[np.float32]) -> NDArray[np.float32]:
    """Changes of angles in radians without their jumps by a full turn; those of positions in metres stay."""
    turn = np.float32(2 * np.pi)
    near = np.abs(np.abs(change) - turn) < 1.0
    return np.where(near, change - np.sign(change) * turn, change)


def _usual_range(
    rows: NDArray[np.float32], starts: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    if not len(rows):
        return np.empty(0, np.float32), np.empty(0, np.float32)
    low = np.quantile(min_each(rows, starts), _WRONG, axis=1)
    return low.astype(np.float32), np.quantile(max_each(rows, starts), 1 - _WRONG, axis=1).astype(np.float32)


def _filled(size: NDArray[np.float32]) -> NDArray[np.float32]:
    """Axes that do not move get the size of those of their group that do, else of all, else 1."""
    out = size.copy()
    for part in (slice(0, 3), slice(3, 6), slice(6, len(size))):
        if not len(size[part]):
            continue
        fallback = size[part].max() or size.max() or 1.0
        out[part] = np.where(size[part] > 0, size[part], fallback)
    return out
