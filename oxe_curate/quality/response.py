"""What a data set's actions do to its state: a linear response over a few steps, learned from a sample.

The displacement of three state columns is a sum over the last steps' actions, `d[t] = sum_k a[t - k] H_k`. A controller
that follows late, another unit, another order or sign of the axes and a turned frame are all such a response. It is
fitted by least squares, twice again without the episodes that it explains worst, and is accepted only if it explains
episodes that it was not fitted to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oxe_curate.arrays import Floats
from oxe_curate.quality.episodes import EpisodeBatch
from oxe_curate.quality.scales import full_turns_removed, usual_size
from oxe_curate.quality.segments import delayed, sum_each, window_sums

POSITION, ROTATION = 0, 3
"""The first action dimension of each group of three axes."""
_DELAYS = range(-1, 7)
_WIDTHS = (1, 2, 4, 8)
_POOR = 0.5
"""Share of the displacement that stays unexplained, from 0 to 2, 1 by chance: a response above this is not used."""
_GOOD = 0.05
_CLIP = 5
"""Actions and displacements count up to this multiple of the largest of a typical episode."""


@dataclass(frozen=True, eq=False)
class Response:
    """How three action dimensions move three state columns.

    Attributes:
        action: the first action dimension, `POSITION` or `ROTATION`.
        state: the first state column.
        delays: steps after which an action has an effect.
        factors: float32 (3, 3 * len(delays)): state displacement per unit of action; the delays of an axis adjoin.
        width: steps over which displacements are compared: the fewer, the stricter; the more, the less noise matters.
        wraps: whether the state has angles that jump by a full turn.
        limits: float32 (6,): the largest action and displacement per step that count, each axis.
        share: what it leaves unexplained in a typical episode that it was not fitted to.
    """

    action: int
    state: int
    delays: tuple[int, ...]
    factors: NDArray[np.float32]
    width: int
    wraps: bool
    limits: NDArray[np.float32]
    share: float

    def compare(self, batch: EpisodeBatch) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """float32 (3, N) each: what the actions explain of the displacement over `width` steps, and what it was."""
        change = batch.state_steps[self.state : self.state + 3]
        change = full_turns_removed(change) if self.wraps else change
        change = np.clip(change, -self.limits[3:, None], self.limits[3:, None])
        action = np.clip(batch.actions[self.action : self.action + 3], -self.limits[:3, None], self.limits[:3, None])
        explained = self.factors @ _stacked(action, self.delays, batch)
        explained[:, batch.left == 0] = 0
        if self.width == 1:
            return explained, change
        return window_sums(explained, self.width, batch), window_sums(change, self.width, batch)


def learn_responses(sample: EpisodeBatch) -> list[Response]:
    """The responses of position and rotation that the sample shows; none if the state does not follow the actions."""
    found: list[Response] = []
    for first in (POSITION, ROTATION):
        taken = [r.state for r in found]
        response = _learn(sample, first, taken)
        if response is not None:
            found.append(response)
    return found


def _learn(sample: EpisodeBatch, first: int, taken: Sequence[int]) -> Response | None:
    width, moves = len(sample.states), usual_size(sample.actions[first : first + 3], sample.starts)
    axes = min(2, int((moves > 0).sum()))
    if len(sample) < 4 or width < 3 or axes < (2 if first == POSITION else 1):
        return None
    typical = int(np.median(sample.lengths))
    delays = tuple(k for k in _DELAYS if k <= max(typical // 5, 1))
    wraps = bool((np.abs(sample.state_steps) > np.pi).any())
    steps = full_turns_removed(sample.state_steps) if wraps else sample.state_steps
    usual = usual_size(steps, sample.starts)
    moving = usual > 1e-6 * np.abs(sample.states).max(axis=1, initial=0)
    free = [c for c in range(width - 2) if moving[c : c + 3].sum() >= axes and all(abs(c - t) >= 3 for t in taken)]
    if not free:
        return None
    limits = _CLIP * np.concatenate([moves, usual]).astype(np.float32)
    change = np.clip(steps, -limits[3:, None], limits[3:, None])
    x = _stacked(np.clip(sample.actions[first : first + 3], -limits[:3, None], limits[:3, None]), delays, sample)
    x[:, sample.left == 0] = 0
    best: Response | None = None
    for over in _WIDTHS:
        if over > 1 and (over > typical // 5 or (best is not None and best.share <= _GOOD)):
            break
        moments = _Moments.of(window_sums(x, over, sample), window_sums(change, over, sample), sample)
        for c in sorted(free, key=lambda c: -int(moving[c : c + 3].sum())):
            part = slice(c, c + 3)
            factors, share = _fit(moments, c)
            # a wider window must earn its place, since it hides shuffled steps; so must columns that do not move
            if share <= (_POOR if best is None else min(0.7 * best.share, best.share - 0.005)):
                both = np.concatenate([limits[:3], limits[3:][part]])
                best = Response(first, c, delays, factors.T.astype(np.float32), over, wraps, both, share)
    return best


def _fit(moments: _Moments, column: int) -> tuple[Floats, float]:
    """The factors for three columns, and what is left unexplained of episodes that they were not fitted to.

    That is infinite if nothing moves.
    """
    moved, weight = moments.of_columns(column)
    keep = np.ones(len(moved), bool)
    for _ in range(4):
        share = moments.unexplained(moments.solve(weight * keep, column), moved, column)
        known = np.isfinite(share)
        if known.sum() < 4:
            return np.empty((0, 3)), float("inf")
        middle = float(np.median(share[known]))
        spread = 1.4826 * float(np.median(np.abs(share[known] - middle)))
        keep = known & (share <= max(middle + 3 * spread, 1e-3))
    half = np.arange(len(moved)) % 2 == 0
    both = np.concatenate([
        moments.unexplained(moments.solve(weight * (keep & fitted), column), moved, column)[keep & ~fitted]
        for fitted in (half, ~half)
    ])  # fmt: skip
    rest = float(np.nanmedian(both)) if np.isfinite(both).any() else float("inf")
    return moments.solve(weight * keep, column), rest


@dataclass(frozen=True, eq=False)
class _Moments:
    """Products of rows x (K, N) and y (P, N), summed over each of n episodes, so that each step of a fit is a product.

    Attributes:
        x: (n, K, K + P), of x with x and y.
        yy: (n, P), of each row of y with itself.
    """

    x: Floats
    yy: Floats

    @classmethod
    def of(cls, x: NDArray[np.float32], y: NDArray[np.float32], sample: EpisodeBatch) -> _Moments:
        rows = np.concatenate([x, y], dtype=np.float64)
        found = np.empty((len(sample), len(x), len(rows)))
        for number in range(len(sample)):
            part = rows[:, sample.steps_of(number)]
            np.matmul(part[: len(x)], part.T, out=found[number])
        square = rows[len(x) :] * rows[len(x) :]
        return cls(found, sum_each(square, sample.starts).T)

    def of_columns(self, column: int) -> tuple[Floats, Floats]:
        """(n,) each: power of the displacement in three columns, and the weight by which episodes count the same."""
        moved = self.yy[:, column : column + 3].sum(axis=1)
        power = np.sqrt(np.trace(self.x, axis1=1, axis2=2) * moved)
        return moved, np.divide(1.0, power, out=np.zeros_like(power), where=power > 0)

    def solve(self, weight: Floats, column: int) -> Floats:
        """(K, 3): weighted least squares for three columns of y, with a little ridge."""
        size = self.x.shape[1]
        both = (weight @ self.x.reshape(len(weight), -1)).reshape(size, -1)
        left, right = both[:, :size], both[:, size + column : size + column + 3]
        ridge = 1e-6 * max(float(np.trace(left)), 1e-12) * np.eye(size)
        return np.asarray(np.linalg.solve(left + ridge, right), np.float64)

    def unexplained(self, factors: Floats, moved: Floats, column: int) -> Floats:
        """Per episode: the residual's power over that of displacement and explanation, 0 to 2; NaN if both are 0."""
        size = self.x.shape[1]
        terms = np.zeros((2, *self.x.shape[1:]))
        terms[0, :, :size] = factors @ factors.T
        terms[1, :, size + column : size + column + 3] = factors
        explained, both = (self.x.reshape(len(moved), -1) @ terms.reshape(2, -1).T).T
        power = moved + explained
        out: Floats = np.divide(power - 2 * both, power, out=np.full(len(power), np.nan), where=power > 0)
        return out


def _stacked(action: NDArray[np.float32], delays: Sequence[int], batch: EpisodeBatch) -> NDArray[np.float32]:
    """(3 * len(delays), N): the actions of earlier steps, one block of three rows per delay."""
    return np.concatenate([delayed(action, k, batch) for k in delays])
