"""How the state follows the actions: by displacement, by value, and the gripper's opening."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oxe_curate.arrays import Floats

TURNS = (2 * np.pi, 360.0)
"""A full turn, in radians and in degrees."""
_WINDOW = 5
_LAGS = range(4)


@dataclass(frozen=True, kw_only=True)
class Follows:
    """How well the columns of proprio at the same place follow three action columns.

    Attributes:
        moves: correlation of each column's displacement over a few steps with the sum of its actions, (3,); 0 where
            one of them is constant.
        gains: displacement of the state for one unit of the action, (3,).
        levels: correlation of each column's value with the action's value, (3,).
        level_gain: change of the state's value for one unit of the action's value.
        level_error: mean distance of value and action, as a share of the action's standard deviation.
        crossed: for each action column, the proprio column (0 to 2) whose displacement it explains best.
        crossed_moves, crossed_gains: that correlation and its gain, with their signs.
    """

    moves: tuple[float, ...]
    gains: tuple[float, ...]
    levels: tuple[float, ...]
    level_gain: float
    level_error: float
    crossed: tuple[int, ...]
    crossed_moves: tuple[float, ...]
    crossed_gains: tuple[float, ...]

    @property
    def gain(self) -> float:
        """The gain of the columns that vary, without the signs: their median."""
        used = [abs(g) for g, r in zip(self.gains, self.moves, strict=True) if r]
        return float(np.median(used)) if used else 0.0


def follow(action: Floats, state: Floats, episode: NDArray[np.int64], *, angles: bool = False) -> Follows | None:
    """How three columns of proprio follow three columns of the action; None if they do not vary or are too few.

    Args:
        action: float64 (3, N), one row per column.
        state: likewise.
        episode: int64 (N,), the episode of each step.
        angles: whether the columns are angles, which may jump by a full turn.
    """
    if angles:
        state = _unwrapped(state, episode)
    if np.ptp(state, axis=1).max(initial=0.0) < 1e-6 or np.ptp(action, axis=1).max(initial=0.0) < 1e-9:
        return None
    sums = np.zeros((3, action.shape[1] + 1))
    np.cumsum(action, axis=1, out=sums[:, 1:])
    best: tuple[float, Floats, Floats] | None = None
    for lag in _LAGS:
        count = action.shape[1] - _WINDOW - lag
        if count < 20:
            break
        start = np.flatnonzero(episode[:count] == episode[_WINDOW + lag : _WINDOW + lag + count])
        if len(start) < 20:
            break
        a = (sums[:, _WINDOW : _WINDOW + count] - sums[:, :count]).take(start, axis=1)
        s = (state[:, lag + _WINDOW : lag + _WINDOW + count] - state[:, lag : lag + count]).take(start, axis=1)
        score = float(np.abs(np.diag(_correlation(a, s))).sum())
        if best is None or score > best[0] + 1e-6:
            best = (score, a, s)
    if best is None:
        return None
    _, a, s = best
    r = _correlation(a, s)
    power = (a * a).sum(axis=1)[:, None]
    gains = np.divide(a @ s.T, power, out=np.zeros((3, 3)), where=power > 0)
    crossed = np.abs(r).argmax(axis=1)
    same = np.flatnonzero(episode[1:] == episode[:-1])
    values, reached = action.take(same, axis=1), state.take(same + 1, axis=1)
    levels = np.diag(_correlation(values, reached))
    centred, moved = (rows - rows.mean(axis=1, keepdims=True) for rows in (values, reached))
    level_power = float((centred * centred).sum())
    error = np.abs(values - reached).mean(axis=1).sum() / max(float(values.std(axis=1).sum()), 1e-12)
    return Follows(
        moves=_rounded(np.diag(r)), gains=_rounded(np.diag(gains)), levels=_rounded(levels),
        level_gain=float(f"{(centred * moved).sum() / level_power if level_power else 0.0:.5g}"),
        level_error=float(f"{error:.5g}"),
        crossed=tuple(int(c) for c in crossed), crossed_moves=_rounded(r[np.arange(3), crossed]),
        crossed_gains=_rounded(gains[np.arange(3), crossed]),
    )  # fmt: skip


def _unwrapped(state: Floats, episode: NDArray[np.int64]) -> Floats:
    """Angles without jumps of a full turn within episodes, (3, N)."""
    turn = TURNS[int(np.abs(state).max() > 7)]
    jump = np.diff(state, axis=1)
    jump[:, episode[1:] != episode[:-1]] = 0.0
    turns = np.round(jump / turn) * turn
    turns[np.abs(jump) < turn / 2] = 0.0
    out = state.copy()
    out[:, 1:] -= np.cumsum(turns, axis=1)
    return out


def _correlation(x: Floats, y: Floats) -> Floats:
    """Pearson's r of each row of x with each of y; 0 where one is constant."""
    dx, dy = (rows - rows.mean(axis=1, keepdims=True) for rows in (x, y))
    sx, sy = (np.sqrt(np.einsum("an,an->a", rows, rows)) for rows in (dx, dy))
    norms = np.outer(sx, sy)
    vary = [spread > 1e-6 * np.abs(rows).max(axis=1) + 1e-9 for spread, rows in ((sx, x), (sy, y))]
    out: Floats = np.divide(dx @ dy.T, norms, out=np.zeros_like(norms), where=np.outer(*vary) & (norms > 0))
    return out


def aperture(gripper: Floats, proprio: NDArray[np.float32] | None, episode: NDArray[np.int64]) -> float | None:
    """The strongest correlation of the command with the last column of proprio, up to 8 steps later."""
    if proprio is None or not proprio.shape[1] or np.ptp(gripper) < 1e-6:
        return None
    last = proprio[:, -1].astype(np.float64)
    if not np.isfinite(last).all() or np.ptp(last) < 1e-6:
        return None
    command, found = np.ascontiguousarray(gripper), 0.0
    for lag in range(9):
        count = len(gripper) - lag
        if count < 20:
            break
        same = np.flatnonzero(episode[:count] == episode[lag:])
        if len(same) >= 20:
            r = float(_correlation(command[None, same], last[None, same + lag])[0, 0])
            found = r if abs(r) > abs(found) else found
    return round(found, 5)


def opens_high(proprio: NDArray[np.float32] | None, episode: NDArray[np.int64]) -> float:
    """The log odds of `ActionFacts.opens_high`."""
    if proprio is None or not proprio.shape[1]:
        return 0.0
    x = proprio[:, -1].astype(np.float64)
    low, high = np.quantile(x, [0.01, 0.99]) if np.isfinite(x).all() else (0.0, 0.0)
    if high - low < 1e-6:
        return 0.0
    first = np.diff(episode, prepend=-1) != 0
    began = float((x[first] > (low + high) / 2).mean())
    odds = 1.0 if began >= 0.75 else -1.0 if began <= 0.25 else 0.0
    moving = np.abs(np.diff(x, prepend=x[0])) >= 0.01 * (high - low)
    edges = np.flatnonzero(first | moving)
    lengths = np.diff(edges, append=len(x))
    rests = (np.add.reduceat(x, edges) / lengths)[lengths >= 3]
    top, bottom = rests[rests > (low + high) / 2], rests[rests <= (low + high) / 2]
    if min(len(top), len(bottom)) >= 3:
        above, below = (float(np.quantile(r, 0.9) - np.quantile(r, 0.1)) / (high - low) for r in (top, bottom))
        if max(above, below) > 0.02 and max(above, below) > 3 * min(above, below):
            odds += 1.5 if below > above else -1.5
    return odds


def _rounded(values: Any) -> tuple[float, ...]:
    return tuple(float(f"{v:.7g}") for v in values)
