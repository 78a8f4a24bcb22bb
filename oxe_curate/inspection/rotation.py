"""Detect quaternions and their component order, angle units, and Euler angles or rotation vectors."""

from __future__ import annotations

from typing import Literal

import numpy as np

from oxe_curate.arrays import Floats
from oxe_curate.inspection import motion
from oxe_curate.inspection.finding import Finding, unknown
from oxe_curate.inspection.series import Columns, Episodes, correlation, gain, pooled, varies
from oxe_curate.registry.operations import QuaternionOrder

RotationFrame = Literal["world", "hand"]
ORDERS: tuple[QuaternionOrder, ...] = ("xyzw", "wxyz")
_FRAMES: tuple[RotationFrame, ...] = ("world", "hand")
_TURN = 2 * np.pi


def find_quaternions(episodes: Episodes, keys: list[Columns]) -> list[Columns]:
    """Find groups of four adjacent columns with unit norm at every step, of which at least two vary.

    Constant columns with unit norm, such as 0 0 0 1, are skipped: a gripper that stays open looks the same.
    """
    found: list[Columns] = []
    for columns in keys:
        x = pooled(episodes, columns)
        start = columns.start
        while start + 4 <= columns.stop and len(x):
            four = x[:, start - columns.start : start - columns.start + 4]
            unit = np.abs(np.sqrt((four * four).sum(axis=1)) - 1) < 2e-3
            if unit.mean() >= 0.99 and varies(four).sum() >= 2:
                found.append(Columns(columns.key, start, start + 4))
                start += 4
            else:
                start += 1
    return found


def rotation_vectors(q: Floats, order: QuaternionOrder, frame: RotationFrame = "world") -> Floats:
    """Rotation from each quaternion to the next as a rotation vector [rad], (T, 4) -> (T - 1, 3).

    In the world's axes r = q[t+1] q[t]*, in the hand's r = q[t]* q[t+1]; v = 2 atan2(|xyz|, w) xyz / |xyz|, w >= 0.
    """
    xyz, w = (q[:, :3], q[:, 3]) if order == "xyzw" else (q[:, 1:], q[:, 0])
    a, aw, b, bw = -xyz[:-1], w[:-1], xyz[1:], w[1:]
    cross = np.cross(b, a) if frame == "world" else np.cross(a, b)
    vector = bw[:, None] * a + aw[:, None] * b + cross
    scalar = aw * bw - (a * b).sum(axis=1)
    vector *= np.where(scalar < 0, -1.0, 1.0)[:, None]
    length = np.sqrt((vector * vector).sum(axis=1))
    angle = 2 * np.arctan2(length, np.abs(scalar))
    out: Floats = vector * np.divide(angle, length, out=np.full_like(angle, 2.0), where=length > 1e-12)[:, None]
    return out


def quaternion_order(episodes: Episodes, quaternion: Columns, turns: Columns | None = None) -> Finding:
    """Is the scalar part of a quaternion its last column (xyzw) or its first (wxyz)?

    The confidence is high only if the action's rotation columns (`turns`) correlate with the rotation under one order.
    Otherwise: many libraries keep the scalar part positive, so a single column that never changes sign is a fair cue.
    The largest column is a weak one: a gripper that points down is near (1, 0, 0, 0) in either order.
    """
    question = f"in which order is the quaternion {quaternion} stored?"
    q = [quaternion.of(steps) for steps in episodes]
    evidence: dict[str, object] = {}
    if turns is not None:
        scores = {}
        for order in ORDERS:
            for frame in _FRAMES:
                scores[order, frame] = _compare(episodes, q, turns, order, frame)[0]
        best = max(scores, key=lambda k: scores[k])
        rival = max(value for (order, _), value in scores.items() if order != best[0])
        evidence = {f"r_{order}_{frame}": round(value, 3) for (order, frame), value in scores.items()}
        if scores[best] > 0.5 and scores[best] - rival > 0.1:
            sure = round(float(np.clip(0.6 + scores[best] - rival, 0, 0.97)), 2)
            why = f"{turns} follows its rotation in {best[1]} axes: r = {scores[best]:.2f}, other order {rival:.2f}"
            return Finding(question, best[0], sure, why, evidence | {"frame": best[1]})
    x = np.concatenate(q)
    x = x[np.isfinite(x).all(axis=1)]
    # a large scalar part is positive anyway: only one that comes near zero shows that its sign is fixed
    signs = [bool(len(c) and -1e-3 <= c.min() < 0.2 and c.max() > 0.05) for c in x.T]
    largest = int(np.abs(x).mean(axis=0).argmax()) if len(x) else 0
    evidence |= {"never_negative": [i for i, s in enumerate(signs) if s], "largest": largest}
    crossing = [bool((c > 0.02).any() and (c < -0.02).any()) for c in x.T]
    for column, order in ((3, "xyzw"), (0, "wxyz")):
        if signs[column] and sum(signs) == 1 and sum(crossing) >= 2:
            why = f"only column {column} never changes sign, like a scalar part that is kept positive"
            return Finding(question, order, 0.6, why, evidence)
    if largest == 3:
        why = "weak cue: the last column is the largest, as for small rotations in xyzw order"
        return Finding(question, "xyzw", 0.35, why, evidence)
    why = "no action follows its rotation, and its largest column is ambiguous: a gripper pointing down is (1, 0, 0, 0)"
    return unknown(question, why, **evidence)


def turn_kind(
    episodes: Episodes, turns: Columns, quaternion: Columns, order: QuaternionOrder, control_hz: float | None = None
) -> Finding:
    """Is the action's rotation a displacement of this quaternion? Answers as `motion.kind_of`, except "absolute".

    A gain near 1 is a displacement in radians, one near pi / 180 a displacement in degrees.
    """
    question = f"what does {turns} mean?"
    q = [quaternion.of(steps) for steps in episodes]
    found = {frame: _compare(episodes, q, turns, order, frame) for frame in _FRAMES}
    frame = max(_FRAMES, key=lambda f: found[f][0])
    r, factor, samples = found[frame]
    evidence = {"state": str(quaternion), "gain": float(f"{factor:.4g}"), "samples": samples}
    evidence |= {f"r_{f}": round(found[f][0], 3) for f in _FRAMES}
    numbers = f"r = {r:.2f} with the rotation of {quaternion} in {frame} axes, {samples} steps"
    if r < 0.5:
        return unknown(question, numbers, **evidence)
    margin = abs(found["world"][0] - found["hand"][0])
    axes = (
        f"; in the other axes {min(found[f][0] for f in _FRAMES):.2f}"
        if margin > 0.05
        else "; both axes fit equally well"
    )
    answer = motion.reading(factor, control_hz)
    if answer == "delta":
        evidence["unit"] = "radians"
    elif motion.reading(factor * 180 / np.pi, None) == "delta":
        answer, evidence["unit"] = "delta", "degrees"
    sure = round(float(np.clip((r - 0.3) / 0.6, 0, 0.97)) * samples / (samples + 20), 2)
    return Finding(question, answer, sure, f"{numbers}{axes}; one unit is {factor:.3g} rad", evidence)


def _compare(
    episodes: Episodes, q: list[Floats], turns: Columns, order: QuaternionOrder, frame: RotationFrame
) -> tuple[float, float, int]:
    """Mean r of the action's rotation columns with the quaternion's rotation, its gain, steps; at the better lag."""
    best = (0.0, 0.0, 0)
    for lag in (0, 1, 2):
        left, right = [], []
        for steps, quaternion in zip(episodes, q, strict=True):
            moved = rotation_vectors(quaternion, order, frame)[lag:]
            left.append(turns.of(steps)[: len(moved)])
            right.append(moved[: len(left[-1])])
        x, y = np.concatenate(left), np.concatenate(right)
        good = np.isfinite(x).all(axis=1) & np.isfinite(y).all(axis=1)
        x, y = x[good], y[good]
        moving = varies(x) if len(x) else np.zeros(3, bool)
        if moving.any():
            r = float(np.diag(correlation(x, y))[moving].mean())
            if r > best[0]:
                best = (r, gain(x[:, moving], y[:, moving]), len(x))
    return best


def angle_unit(episodes: Episodes, angles: Columns, *, displacement: bool = False) -> Finding:
    """Are the angles in radians or degrees?

    Angles beyond 2 pi are degrees; angles that jump by 2 pi are radians. Small ones could be either: radians are more
    likely, since an arm that turns by only a few degrees is rare.

    Args:
        episodes: step dicts.
        angles: the columns.
        displacement: whether they are changes per step, which are small in both units.
    """
    question = f"is {angles} in radians or degrees?"
    x = pooled(episodes, angles)
    if len(x) == 0 or not varies(x).any():
        return unknown(question, f"{angles} hardly varies")
    largest, spread = float(np.abs(x).max()), float(np.quantile(np.abs(x - np.median(x, axis=0)), 0.9))
    evidence = {"largest": round(largest, 4), "q90_from_median": round(spread, 4)}
    if largest > _TURN + 0.1:
        why = f"values reach {largest:.3g}, more than a full turn of 6.28 rad"
        return Finding(question, "degrees", 0.95 if largest > 20 else 0.75, why, evidence)
    jumps = 0 if displacement else int(_jumps(episodes, angles).sum())
    if jumps:
        why = f"values jump by 2 pi in {jumps} places, as angles in radians do at pi"
        return Finding(question, "radians", 0.95, why, evidence | {"jumps": jumps})
    if displacement:
        usual = float(np.quantile(np.abs(x).max(axis=1), 0.95))
        why = f"the largest rotations per step are about {usual:.3g}"
        if usual > 1.5:
            return Finding(question, "degrees", 0.6, f"{why}, too large for radians", evidence)
        if usual > 0.7:
            return unknown(question, f"{why}: fast for radians, slow for degrees", **evidence)
        much = "plausible in radians, tiny in degrees" if usual >= 0.05 else "small in either unit"
        return Finding(question, "radians", 0.7 if usual >= 0.05 else 0.4, f"{why}: {much}", evidence)
    if largest <= np.pi + 0.01:
        sure = round(float(np.clip(0.45 + 0.15 * np.log10(max(spread, 1e-3) / 0.01), 0.3, 0.85)), 2)
        if largest > 2.9:
            sure = max(sure, 0.85)
        why = f"no value exceeds {largest:.3g}; in degrees the arm would hardly rotate"
        return Finding(question, "radians", sure, why, evidence)
    return Finding(question, "radians", 0.6, f"values reach {largest:.3g}, within a full turn of 6.28 rad", evidence)


def _jumps(episodes: Episodes, angles: Columns) -> np.ndarray:
    """Count the jumps of about 2 pi between steps in each column: int (C,)."""
    total = np.zeros(len(angles), int)
    for steps in episodes:
        size = np.abs(np.diff(angles.of(steps), axis=0))
        total += ((size > _TURN - 0.7) & (size < _TURN + 0.1)).sum(axis=0)
    return total


def rotation_kind(episodes: Episodes, angles: Columns) -> Finding:
    """Are the three columns Euler angles or a rotation vector (axis times angle)?

    The difference shows at pi: a single Euler angle jumps by 2 pi, whereas a rotation vector flips as a whole and is
    never longer than pi. Below about 0.3 rad the two are the same numbers and cannot be distinguished.
    """
    question = f"is {angles} Euler angles or a rotation vector?"
    x = pooled(episodes, angles)
    length = np.sqrt((x * x).sum(axis=1)) if len(x) else np.zeros(1)
    largest = float(length.max())
    evidence = {"longest": round(largest, 3)}
    if np.abs(x).max(initial=0.0) > _TURN + 0.1:
        return unknown(question, "the values are not radians", **evidence)
    if largest < 0.3:
        return unknown(question, f"no rotation exceeds {largest:.2g} rad, where both are the same numbers", **evidence)
    whole, single = _wraps(episodes, angles)
    over = float((length > np.pi + 0.05).mean())
    evidence |= {"wraps_of_the_whole": whole, "wraps_of_one": single, "share_beyond_pi": round(over, 3)}
    if over > 0.02:
        why = f"the norm exceeds pi at {100 * over:.0f} % of the steps; a rotation vector stays below"
        return Finding(question, "euler", 0.85, why, evidence)
    if whole + single and max(whole, single) >= 3 * min(whole, single):
        answer = "axis-angle" if whole > single else "euler"
        change = "the whole vector flips" if whole > single else "a single angle jumps by 2 pi"
        count = max(whole, single)
        return Finding(question, answer, round(0.9 * count / (count + 1), 2), f"{change} {count} times", evidence)
    return unknown(question, f"norms up to {largest:.2g} rad, without a jump at pi to distinguish them", **evidence)


def _wraps(episodes: Episodes, angles: Columns) -> tuple[int, int]:
    """Count jumps at pi that fit a rotation vector, v - 2 pi v / |v|, and those that fit an Euler angle, +-2 pi."""
    whole = single = 0
    for steps in episodes:
        v = angles.of(steps)
        before, after = v[:-1], v[1:]
        jump = np.abs(after - before)
        for t in np.flatnonzero(jump.max(axis=1) > 2.5):
            b, a = before[t], after[t]
            turned = b - _TURN * b / (np.linalg.norm(b) + 1e-12)
            stepped = b - _TURN * np.round((b - a) / _TURN)
            vector, euler = float(np.linalg.norm(a - turned)), float(np.linalg.norm(a - stepped))
            whole += vector < 0.4 * euler
            single += euler < 0.4 * vector
    return whole, single
