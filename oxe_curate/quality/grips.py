"""Does the gripper open and close as the actions command it?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oxe_curate.arrays import Floats
from oxe_curate.quality.episodes import EpisodeBatch
from oxe_curate.quality.limits import robust_limit
from oxe_curate.quality.measure import Judgement, Part
from oxe_curate.quality.segments import delayed, sum_each
from oxe_curate.quality.verdict import Test, judged, worst

_LAGS = range(9)
_SHIFTS = tuple(range(-8, 9))
_SURE = 0.6
"""Correlation of a state column with the command, from which on it is the gripper's opening."""


@dataclass(frozen=True)
class Opening:
    """The state column that follows the gripper's command: `offset + factor * command`, `lag` steps later."""

    column: int
    lag: int
    offset: float
    factor: float


def learn_opening(sample: EpisodeBatch, taken: Sequence[int] = ()) -> Opening | None:
    """The column that correlates best with the command, at the best lag; None if none does.

    Episodes in which it has the other sign are left out, since their commands may be inverted.

    Args:
        sample: some episodes.
        taken: columns to leave out, those of the pose.
    """
    command = np.clip(sample.actions[6], -2, 3)
    if len(sample) < 4 or np.ptp(command) < 0.1:
        return None
    columns = [c for c, row in enumerate(sample.states) if c not in taken and np.ptp(row) > 1e-6 * np.abs(row).max()]
    best, found = _SURE, None
    for lag in _LAGS:
        if lag > np.median(sample.lengths) / 4:
            break
        use = sample.place >= lag
        x = delayed(command, lag, sample)
        for column in columns:
            r, opening = _line(x, sample.states[column], use, sample.starts, Opening(column, lag, 0.0, 0.0))
            if abs(r) > best + 1e-3:
                best, found = abs(r), opening
    return found


def _line(
    x: NDArray[np.float32], y: NDArray[np.float32], use: NDArray[np.bool_], starts: NDArray[np.int64], at: Opening
) -> tuple[float, Opening]:
    """Correlation and line of y over x, without the episodes in which it falls where it should rise."""
    rows = np.array([np.ones_like(x), x, y, x * x, y * y, x * y], np.float64) * use
    sums = sum_each(rows, starts)
    keep = np.ones(len(starts) - 1, bool)
    r = 0.0
    for _ in range(2):
        n, sx, sy, sxx, syy, sxy = sums[:, keep].sum(axis=1)
        vx, vy, vxy = sxx - sx * sx / n, syy - sy * sy / n, sxy - sx * sy / n
        if vx <= 1e-6 * n or vy <= 1e-12 * syy:
            return 0.0, at
        r, factor = float(vxy / np.sqrt(vx * vy)), float(vxy / vx)
        at = Opening(at.column, at.lag, float((sy - factor * sx) / n), factor)
        if abs(r) < _SURE / 2:
            break
        n, sx, sy, sxx, syy, sxy = sums
        keep = (sxy - sx * sy / np.maximum(n, 1)) * factor >= 0
    return r, at


def gripper_part(batch: EpisodeBatch, fitted: Opening) -> dict[str, Floats]:
    """Moments of the command and the opening, in units of the command, and their products at several shifts."""
    opening = (batch.states[fitted.column] - np.float32(fitted.offset)) / np.float32(fitted.factor)
    opening = np.clip(opening, -2, 3)
    use = (batch.place >= fitted.lag).astype(np.float32)
    command = np.clip(delayed(batch.actions[6], fitted.lag, batch), -1, 2) * use
    z = opening * use
    rows = np.array([use, command, z, command * command, z * z, np.abs(command - z)])
    centre = np.repeat((sum_each(z, batch.starts) / np.maximum(sum_each(use, batch.starts), 1)), batch.lengths)
    mean = np.repeat(sum_each(command, batch.starts) / np.maximum(sum_each(use, batch.starts), 1), batch.lengths)
    dz, dc = ((z - centre) * use).astype(np.float32), ((command - mean) * use).astype(np.float32)
    products = [sum_each(delayed(dc, shift, batch) * dz, batch.starts) for shift in _SHIFTS]
    return {
        "gripper sums": sum_each(rows, batch.starts).T, "gripper products": np.array(products).T,
    }  # fmt: skip


def judge_gripper(part: Part) -> Judgement:
    """`gripper_mismatch`: compare how every episode's gripper follows the command."""
    count, c, z, cc, zz, apart = part["gripper sums"].T
    count = np.maximum(count, 4)
    power = (cc - c * c / count), np.maximum(zz - z * z / count, 0)
    # at least three steps of each command, or an opening that changes without one
    few = 3 * (1 - 3 / count)
    used = (power[0] > 0.8 * few) | (power[1] > 0.4 * few)
    scale = np.sqrt(np.maximum(power[0], 0.02 * count) * np.maximum(power[1], 0.02 * count))
    r = part["gripper products"] / scale[:, None]
    zero = _SHIFTS.index(0)
    disagree = np.where(used, 1 - r[:, zero], np.nan)
    best = r.argmax(axis=1)
    shift = np.array(_SHIFTS)[best]
    # a short shift is a gripper that was a little slower
    better = r.max(axis=1) - r[:, zero]
    late = np.where(used & (np.abs(shift) >= 3) & (better > 0.04), better / (1 - r[:, zero] + 0.05), 0.0)
    far = np.where(count >= 4, apart / count, np.nan)
    tests: list[Test] = [
        (disagree, _limit(disagree, 0.75, 0.95)),
        (far, _limit(far, 0.7, 0.9)),
        (late, _limit(late, 0.5, 0.8)),
    ]
    value, limit, _ = worst(tests)

    def words(i: int) -> str:
        if r[i, zero] < -0.5 or (not used[i] and far[i] > 0.7):
            return "inverted"
        if late[i] > tests[2][1]:
            return f"the commands are {abs(shift[i])} steps {'early' if shift[i] > 0 else 'late'}"
        return "the gripper does not follow the command"

    return judged(value, limit, words)


def _limit(value: Floats, least: float, most: float) -> float:
    """Learned between absolute bounds; infinite if half of the episodes are above them: the opening says little."""
    known = value[np.isfinite(value)]
    informative = len(known) >= 8 and float(np.median(known)) < least
    return min(robust_limit(known, least=least), most) if informative else float("inf")
