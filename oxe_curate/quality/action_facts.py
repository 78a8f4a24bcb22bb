"""A data set's standardised actions in a few numbers: ranges, turns, smoothness, and how the state follows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oxe_curate.arrays import Floats
from oxe_curate.quality.follows import TURNS, Follows, aperture, follow, opens_high

DIMENSIONS = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
LEVELS = (0, .001, .005, .01, .02, .05, .1, .25, .5, .75, .9, .95, .98, .99, .995, .999, 1)  # fmt: skip
"""Probabilities of the quantiles in `ActionFacts`."""
_NEAR = 0.1
"""A jump differs from a full turn by the motion of the step: up to 36 degrees."""
_DISTINCT = 6
_COMPARED = 100_000
"""Steps that are compared with proprio."""


@dataclass(frozen=True, kw_only=True)
class ActionFacts:
    """Facts of (N, 7) standardised actions of many episodes; every tuple has one entry per dimension.

    Attributes:
        not_finite: steps with a value that is not finite; they are left out of everything else.
        quantiles: at `LEVELS`; the first and the last are the smallest and the largest value.
        zeros: share of values that are zero.
        distinct: number of distinct values, up to 6.
        roughness: standard deviation of the change per step within episodes, over that of the values.
        turns: share of values near a full turn, and of steps between which an angle crosses -180 degrees; the larger
            of the two, for roll, pitch and yaw.
        turns_between: the share of crossings only.
        turned: share of episodes with either.
        turn: the full turn that was met, 2 pi or 360; 0 if none.
        same: pairs of dimensions that vary and are equal at every step.
        net, path: median over the episodes of the distance between the ends, and along the way, when xyz is summed up.
        still: share of steps whose xyz and rpy are zero to 1e-6.
        speed, turning: median length of xyz, and of rpy, over the steps where it is not zero; 0 if it always is.
        pulses: share of the gripper's runs of the rarer end that are at most two steps long; None with fewer than 10.
        xyz, rpy: how proprio follows; None without three, or six, columns of proprio that vary.
        aperture: correlation of the gripper's command with the last column of proprio, up to 8 steps later; None
            if that column is constant or missing.
        opens_high: log odds that a high value of that column is open: fingers stop at objects when they close, but
            always open to the same width (1.5), and most episodes begin open (1).
    """

    episodes: int
    steps: int
    not_finite: int
    quantiles: tuple[tuple[float, ...], ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    zeros: tuple[float, ...]
    distinct: tuple[int, ...]
    roughness: tuple[float, ...]
    turns: tuple[float, ...]
    turns_between: tuple[float, ...]
    turned: float
    turn: float
    same: tuple[tuple[int, int], ...]
    net: float
    path: float
    still: float
    speed: float
    turning: float
    pulses: float | None = None
    xyz: Follows | None = None
    rpy: Follows | None = None
    aperture: float | None = None
    opens_high: float = 0.0

    def low(self, d: int) -> float:
        """The smallest value of a dimension."""
        return self.quantiles[d][0]

    def high(self, d: int) -> float:
        """The largest value of a dimension."""
        return self.quantiles[d][-1]

    def at(self, d: int, level: float) -> float:
        """The quantile of a dimension at one of `LEVELS`."""
        return self.quantiles[d][LEVELS.index(level)]

    def varies(self, d: int) -> bool:
        """Whether a dimension is not constant, beyond rounding in float32."""
        low, high = self.low(d), self.high(d)
        return high - low > 1e-6 * max(abs(low), abs(high)) + 1e-9

    def outside(self, d: int, low: float, high: float) -> float:
        """Share of values below `low` or above `high`, interpolated between the quantiles."""
        return _below(self.quantiles[d], low) + _below([-q for q in reversed(self.quantiles[d])], -high)


def _below(quantiles: Sequence[float], value: float) -> float:
    i = int(np.searchsorted(quantiles, value, side="left"))
    if i in (0, len(quantiles)):
        return 0.0 if i == 0 else 1.0
    before, after = quantiles[i - 1], quantiles[i]
    part = (value - before) / (after - before)
    return float(LEVELS[i - 1] + part * (LEVELS[i] - LEVELS[i - 1]))


def measure_actions(
    action: NDArray[np.float32], starts: NDArray[np.int64], proprio: NDArray[np.float32] | None = None
) -> ActionFacts:
    """Measure the actions of many episodes.

    Args:
        action: float32 (N, 7), the episodes one after the other.
        starts: int64 (episodes + 1,), where each begins and the last one ends.
        proprio: float32 (N, P), or None. Its first three columns are taken as xyz and the next three as roll-pitch-yaw
            only if they follow the actions; its last column as the gripper.
    """
    x = action.astype(np.float64)
    good = np.isfinite(x).all(axis=1)
    episode = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    bad = int((~good).sum())
    if bad:
        x, episode = x[good], episode[good]
        proprio = proprio[good] if proprio is not None else None
    if not len(x):
        return _nothing(len(starts) - 1, bad)
    within = episode[1:] == episode[:-1]
    change = np.diff(x, axis=0)[within]
    std = x.std(axis=0)
    rough = change.std(axis=0) / np.maximum(std, 1e-12) if len(change) else np.ones(7)
    turns, between, turned, turn = _turns(x, change, episode, within)
    quantiles = np.quantile(x, LEVELS, axis=0).T
    spread = [bool(q[-1] - q[0] > 1e-6 * np.abs(q).max() + 1e-9) for q in quantiles]
    net, path = _distances(x[:, :3], episode)
    steps, turning = np.linalg.norm(x[:, :3], axis=1), np.linalg.norm(x[:, 3:6], axis=1)
    return ActionFacts(
        episodes=len(starts) - 1, steps=len(x), not_finite=bad,
        quantiles=tuple(_rounded(q) for q in quantiles), mean=_rounded(x.mean(axis=0)), std=_rounded(std),
        zeros=_rounded((x == 0).mean(axis=0)), distinct=tuple(_distinct(column) for column in x.T),
        roughness=_rounded(rough), turns=turns, turns_between=between, turned=turned, turn=turn,
        same=tuple(
            (i, j) for i in range(7) for j in range(i + 1, 7)
            if spread[i] and spread[j] and np.array_equal(x[:, i], x[:, j])
        ),
        net=net, path=path, still=float((np.abs(x[:, :6]).max(axis=1) < 1e-6).mean()),
        speed=_median(steps), turning=_median(turning), pulses=_pulses(x[:, 6], episode),
        **_followed(x, proprio, episode),
    )  # fmt: skip


def _nothing(episodes: int, bad: int) -> ActionFacts:
    none, seven = (0.0,) * 7, tuple((0.0,) * len(LEVELS) for _ in range(7))
    return ActionFacts(
        episodes=episodes, steps=0, not_finite=bad, quantiles=seven, mean=none, std=none, zeros=none,
        distinct=(0,) * 7, roughness=none, turns=none[:3], turns_between=none[:3], turned=0.0, turn=0.0, same=(),
        net=0.0, path=0.0, still=0.0, speed=0.0, turning=0.0,
    )  # fmt: skip


def _rounded(values: Any) -> tuple[float, ...]:
    return tuple(float(f"{v:.7g}") for v in values)


def _median(lengths: Floats) -> float:
    moving = lengths[lengths > 1e-9]
    return float(f"{np.median(moving):.7g}") if len(moving) else 0.0


def _distinct(column: Floats) -> int:
    head = np.unique(column[:4096])
    return min(len(head) if len(head) >= _DISTINCT else len(np.unique(column)), _DISTINCT)


def _turns(
    x: Floats, change: Floats, episode: NDArray[np.int64], within: NDArray[np.bool_]
) -> tuple[tuple[float, ...], tuple[float, ...], float, float]:
    """Values and changes of roll, pitch and yaw that are near a full turn; in degrees if values exceed 20."""
    rotation = x[:, 3:6]
    turn = TURNS[int(np.abs(rotation).max() > 20)]

    def near(values: Floats) -> NDArray[np.bool_]:
        return np.abs(np.abs(values) - turn) < _NEAR * turn

    values, later = near(rotation), np.flatnonzero(within)
    # differences of wrapped angles are small or near a turn; values in between are of another unit
    size = np.abs(rotation)
    values &= values.sum(axis=0) > ((size > 0.55 * turn) & (size < (1 - _NEAR) * turn)).sum(axis=0)
    # an angle that crosses -180 degrees: both values are near a half turn, with opposite signs
    before, after = rotation[later], rotation[later + 1]
    half = np.minimum(np.abs(before), np.abs(after)) > 0.35 * turn
    changes = near(change[:, 3:6]) & half & (before * after < 0) & ~(values[later] | values[later + 1])
    shares = values.mean(axis=0)
    between = changes.mean(axis=0) if len(changes) else np.zeros(3)
    hit = np.zeros(len(x), bool)
    hit[values.any(axis=1)] = True
    hit[later[changes.any(axis=1)]] = True
    turned = len(np.unique(episode[hit])) / max(len(np.unique(episode)), 1)
    found = float(turn) if hit.any() else 0.0
    return _rounded(np.maximum(shares, between)), _rounded(between), round(turned, 6), found


def _distances(xyz: Floats, episode: NDArray[np.int64]) -> tuple[float, float]:
    edges = np.flatnonzero(np.diff(episode, prepend=-1))
    nets = np.linalg.norm(np.add.reduceat(xyz, edges, axis=0), axis=1)
    paths = np.add.reduceat(np.linalg.norm(xyz, axis=1), edges)
    return float(f"{np.median(nets):.7g}"), float(f"{np.median(paths):.7g}")


def _pulses(gripper: Floats, episode: NDArray[np.int64]) -> float | None:
    """Share of the runs of the rarer end that last one or two steps, within episodes."""
    low, high = gripper.min(), gripper.max()
    upper = gripper > (low + high) / 2
    rare = upper if upper.mean() < 0.5 else ~upper
    edges = np.flatnonzero((np.diff(rare.astype(np.int8), prepend=-1) != 0) | (np.diff(episode, prepend=-1) != 0))
    lengths = np.diff(edges, append=len(rare))[rare[edges]]
    return round(float((lengths <= 2).mean()), 6) if len(lengths) >= 10 and high > low else None


def _followed(x: Floats, proprio: NDArray[np.float32] | None, episode: NDArray[np.int64]) -> dict[str, Any]:
    """The facts that need proprio; every n-th episode is enough for a correlation."""
    if proprio is None or not np.isfinite(proprio).all():
        return {}
    if len(x) > _COMPARED:
        part = episode % -(-len(x) // _COMPARED) == 0
        x, proprio, episode = x[part], proprio[part], episode[part]
    state, rows = np.ascontiguousarray(proprio.T, np.float64), np.ascontiguousarray(x.T)
    return {
        "xyz": follow(rows[:3], state[:3], episode) if len(state) >= 3 else None,
        "rpy": follow(rows[3:6], state[3:6], episode, angles=True) if len(state) >= 6 else None,
        "aperture": aperture(x[:, 6], proprio, episode),
        "opens_high": opens_high(proprio, episode),
    }
