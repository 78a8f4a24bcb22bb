"""Does the gripper open and close as the actions command it?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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

    Args:
        sample: some episodes.
        taken: columns to leave out, those of the pose.
    """
    command = sample.actions[6].astype(np.float64)
    if len(sample) < 4 or np.ptp(command) < 0.1:
        return None
    best, found = _SURE, None
    for lag in _LAGS:
        if lag > np.median(sample.lengths) / 4:
            break
        use = sample.place >= lag
        c = delayed(command, lag, sample)[use]
        for column in range(len(sample.states)):
            s = sample.states[column][use].astype(np.float64)
            if column in taken or len(c) < 3 or np.ptp(s) <= 1e-6 * np.abs(s).max() or np.ptp(c) < 0.1:
                continue
            dc, ds = c - c.mean(), s - s.mean()
            r = float(dc @ ds / np.sqrt((dc @ dc) * (ds @ ds)))
            if abs(r) > best + 1e-3:
                factor = float(dc @ ds / (dc @ dc))
                best, found = abs(r), Opening(column, lag, float(s.mean() - factor * c.mean()), factor)
    return found


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
    count = np.maximum(count, 1)
    power = (cc - c * c / count), np.maximum(zz - z * z / count, 0)
    # at least three steps of each command
    used = power[0] > 3 * 0.8 * (1 - 3 / np.maximum(count, 3.01))
    scale = np.sqrt(np.maximum(power[0], 1e-12) * np.maximum(power[1], 0.02 * count))
    r = part["gripper products"] / scale[:, None]
    zero = _SHIFTS.index(0)
    disagree = np.where(used, 1 - r[:, zero], np.nan)
    best = r.argmax(axis=1)
    shift = np.array(_SHIFTS)[best]
    # a short shift is a gripper that was a little slower
    late = np.where(used & (np.abs(shift) >= 3), r.max(axis=1) - r[:, zero], 0.0)
    far = np.where(count >= 4, apart / count, np.nan)
    tests: list[Test] = [
        (disagree, robust_limit(disagree, least=0.75)),
        (far, robust_limit(far, least=0.55)),
        (late, robust_limit(late, least=0.3)),
    ]
    value, limit, _ = worst(tests)

    def words(i: int) -> str:
        if r[i, zero] < -0.5 or (not used[i] and far[i] > 0.7):
            return "inverted"
        if late[i] > tests[2][1]:
            return f"the commands are {abs(shift[i])} steps {'early' if shift[i] > 0 else 'late'}"
        return "the gripper does not follow the command"

    return judged(value, limit, words)
