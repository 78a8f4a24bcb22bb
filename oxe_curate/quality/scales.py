"""How large a data set's numbers usually are, learned from a sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oxe_curate.arrays import Floats
from oxe_curate.quality.episodes import EpisodeBatch

_QUANTILES = (0.01, 0.99)


@dataclass(frozen=True, eq=False)
class Scales:
    """The usual size of actions, states and their changes.

    Attributes:
        low, high: float32 (6,), quantiles of the pose action.
        size: float32 (6,), their distance; the largest of the three axes, or 1, where they are equal.
        motion: float32 (6,), a large but usual absolute pose action; as `size` where an axis does not move.
        state_low, state_high: float32 (P,), quantiles of the proprio.
        state_step: float32 (P,), a large but usual change of the proprio in one step; 0 where it is constant.
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
        """Learn them from at least one episode."""
        pose = sample.actions[:6]
        low, high = (np.quantile(pose, q, axis=1).astype(np.float32) for q in _QUANTILES)
        motion = usual_size(pose)
        state_low, state_high = (_quantile(sample.states, q) for q in _QUANTILES)
        return cls(
            low, high, _filled(high - low), _filled(motion.astype(np.float32)), state_low, state_high,
            usual_size(full_turns_removed(sample.state_steps)).astype(np.float32), float(np.median(sample.lengths)),
        )  # fmt: skip


def usual_size(rows: NDArray[np.float32]) -> Floats:
    """Large but usual absolute values of each row: the 95 % quantile of those that are not zero; 0 if all are zero."""
    return np.array([float(np.quantile(x[x > 0], 0.95)) if (x > 0).any() else 0.0 for x in np.abs(rows)])


def full_turns_removed(change: NDArray[np.float32]) -> NDArray[np.float32]:
    """Changes of angles in radians without their jumps by a full turn; those of positions in metres stay."""
    turn = np.float32(2 * np.pi)
    near = np.abs(np.abs(change) - turn) < 1.0
    return np.where(near, change - np.sign(change) * turn, change)


def _quantile(rows: NDArray[np.float32], q: float) -> NDArray[np.float32]:
    return np.quantile(rows, q, axis=1).astype(np.float32) if len(rows) else np.empty(0, np.float32)


def _filled(size: NDArray[np.float32]) -> NDArray[np.float32]:
    """Axes that do not move get the size of those of their group that do, else of all, else 1."""
    out = size.copy()
    for part in (slice(0, 3), slice(3, 6)):
        fallback = size[part].max() or size.max() or 1.0
        out[part] = np.where(size[part] > 0, size[part], fallback)
    return out
