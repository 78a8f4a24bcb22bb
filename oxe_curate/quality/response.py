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
from oxe_curate.quality.scales import usual_size
from oxe_curate.quality.segments import delayed, window_sums

POSITION, ROTATION = 0, 3
"""The first action dimension of each group of three axes."""
_DELAYS = range(-1, 7)
_WIDTHS = (1, 2, 4, 8)
_POOR = 0.5
"""Share of the displacement that stays unexplained, from 0 to 2, 1 by chance: a response above this is not used."""
_GOOD = 0.05


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
        action, change = _inputs(batch, self.action, self.state, self.wraps, self.limits)
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
    width = sample.proprio.shape[1]
    lengths = sample.lengths
    count = len(sample)
    scale = usual_size(sample.actions[first : first + 3])
    if count < 4 or width < 3 or (scale > 0).sum() < (2 if first == POSITION else 1):
        return None
    typical = int(np.median(lengths))
    delays = tuple(k for k in _DELAYS if k <= max(typical // 5, 1))
    moving = usual_size(sample.state_steps) > 1e-6 * np.abs(sample.states).max(axis=1, initial=0)
    best: Response | None = None
    axes = min(2, int((scale > 0).sum()))
    free = [c for c in range(width - 2) if moving[c : c + 3].sum() >= axes and all(abs(c - t) >= 3 for t in taken)]
    starts = sorted(free, key=lambda c: -int(moving[c : c + 3].sum()))
    for steps in _WIDTHS:
        if steps > 1 and (steps > typical // 5 or (best is not None and best.share <= _GOOD)):
            break
        for c in starts:
            response = _fit(sample, first, c, delays, steps)
            # a wider window must earn its place, since it hides shuffled steps; so must columns that do not move
            enough = _POOR if best is None else min(0.7 * best.share, best.share - 0.005)
            if response and response.share <= enough:
                best = response
    return best


def _fit(sample: EpisodeBatch, first: int, column: int, delays: tuple[int, ...], width: int) -> Response | None:
    state = sample.states[column : column + 3]
    wraps = bool(np.abs(state).max(initial=0) <= 2 * np.pi + 0.01)
    step = sample.state_steps[column : column + 3]
    wraps = wraps and bool((np.abs(step) > np.pi).any())
    usual = usual_size(sample.actions[first : first + 3]), usual_size(_unwrapped(step) if wraps else step)
    limits = (5 * np.concatenate(usual)).astype(np.float32)
    action, change = _inputs(sample, first, column, wraps, limits)
    x = _stacked(action, delays, sample)
    x[:, sample.left == 0] = 0
    x, y = (window_sums(v, width, sample) for v in (x, change))
    moments = [_moments(x[:, part], y[:, part]) for part in map(sample.steps_of, range(len(sample)))]
    xx, xy, yy = (np.array(m) for m in zip(*moments, strict=True))
    keep = np.ones(len(sample), bool)
    for _ in range(3):
        share = _unexplained(_solve(xx[keep], xy[keep]), xx, xy, yy)
        known = np.isfinite(share)
        if known.sum() < 4:
            return None
        middle = float(np.median(share[known & keep]))
        spread = 1.4826 * float(np.median(np.abs(share[known & keep] - middle)))
        keep = known & (share <= max(middle + 4 * spread, 1e-3))
    half = np.arange(len(sample)) % 2 == 0
    other = [
        _unexplained(_solve(xx[keep & part], xy[keep & part]), xx[keep & ~part], xy[keep & ~part], yy[keep & ~part])
        for part in (half, ~half)
    ]
    share = np.concatenate(other)
    if not np.isfinite(share).any():
        return None
    factors = _solve(xx[keep], xy[keep]).T.astype(np.float32)
    return Response(first, column, delays, factors, width, wraps, limits, float(np.nanmedian(share)))


def _moments(x: NDArray[np.float32], y: NDArray[np.float32]) -> tuple[Floats, Floats, Floats]:
    a: Floats = x.astype(np.float64)
    b: Floats = y.astype(np.float64)
    return np.asarray(a @ a.T), np.asarray(a @ b.T), np.asarray((b * b).sum(axis=1))


def _solve(xx: Floats, xy: Floats) -> Floats:
    """(K, 3): least squares over the episodes, each of which counts the same, with a little ridge."""
    power = np.trace(xx, axis1=1, axis2=2)
    weight = np.divide(1.0, power, out=np.zeros_like(power), where=power > 0)
    left: Floats = np.einsum("n,nkl->kl", weight, xx)
    ridge = 1e-6 * max(float(np.trace(left)), 1e-12) * np.eye(len(left))
    out: Floats = np.linalg.solve(left + ridge, np.einsum("n,nka->ka", weight, xy))
    return out


def _unexplained(factors: Floats, xx: Floats, xy: Floats, yy: Floats) -> Floats:
    """Per episode: the residual's power over that of displacement and explanation, 0 to 2; NaN if both are 0."""
    explained = np.einsum("ka,nkl,la->n", factors, xx, factors)
    both = np.einsum("ka,nka->n", factors, xy)
    power = yy.sum(axis=1) + explained
    out: Floats = np.divide(power - 2 * both, power, out=np.full(len(power), np.nan), where=power > 0)
    return out


def _inputs(
    batch: EpisodeBatch, first: int, column: int, wraps: bool, limits: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    change = batch.state_steps[column : column + 3]
    change = _unwrapped(change) if wraps else change
    return (
        np.clip(batch.actions[first : first + 3], -limits[:3, None], limits[:3, None]),
        np.clip(change, -limits[3:, None], limits[3:, None]),
    )


def _unwrapped(change: NDArray[np.float32]) -> NDArray[np.float32]:
    turn = np.float32(2 * np.pi)
    return np.asarray(change - turn * np.round(change / turn), np.float32)


def _stacked(action: NDArray[np.float32], delays: Sequence[int], batch: EpisodeBatch) -> NDArray[np.float32]:
    """(3 * len(delays), N): the actions of earlier steps, one block of three rows per delay."""
    return np.concatenate([delayed(action, k, batch) for k in delays])
