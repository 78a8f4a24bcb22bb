"""Action columns that xyz, roll-pitch-yaw and gripper leave over: more joints, a second arm, a base.

A flat action of 7 joints and a gripper looks like an end-effector action with one column too many: its first columns
correlate with those of the state. What gives it away are the column that is left, columns that follow the state one by
one beyond the sixth, ranges that no position in metres has, and a position that the other columns move too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from oxe_curate.arrays import Floats
from oxe_curate.inspection import rotation
from oxe_curate.inspection.finding import Finding
from oxe_curate.inspection.motion import JOINTS
from oxe_curate.inspection.series import Columns, Episodes, correlation, displacements, levels, pooled, unwrap, varies

_BOOKKEEPING = re.compile(r"terminate|discount|reward|is_first|is_last|episode_end")
_SIDES = (re.compile(r"(^|[/_.])(left|l)([/_.]|$)"), re.compile(r"(^|[/_.])(right|r)([/_.]|$)"))
_BASE = re.compile(r"base|torso|wheel|head|lift")
_LARGEST_REACH = 1.6
"""Metres from the base that no arm's position exceeds; joint angles do."""
_WIDEST_SPACE = 0.95
_FOLLOWS = 0.85
_TWO_ARMS = (12, 14, 16, 18, 20)
"""Widths of two arms: 6 or 7 joints, or xyz, a rotation and gripper, each."""

JOINT_QUESTION = "does the action move the end effector?"
UNUSED_QUESTION = "which action columns are not used?"
ARMS_QUESTION = "how many arms does the action move?"


def unused_columns(episodes: Episodes, actions: Sequence[Columns], taken: Sequence[Columns]) -> list[Columns]:
    """Action columns that vary and are not among those taken, adjacent ones together; without flags of the episode."""
    found: list[Columns] = []
    for action in actions:
        if _BOOKKEEPING.search(action.key):
            continue
        for column in action.one_by_one():
            if any(column.overlaps(t) for t in taken) or not varies(pooled(episodes, column)).any():
                continue
            if found and found[-1].key == column.key and found[-1].stop == column.start:
                found[-1] = replace(found[-1], stop=column.stop)
            else:
                found.append(column)
    return found


def unused(episodes: Episodes, actions: Sequence[Columns], taken: Sequence[Columns]) -> Finding | None:
    """The columns that the draft does not use; None if it uses all that vary."""
    left = unused_columns(episodes, actions, taken)
    if not left:
        return None
    spans = []
    for columns in left:
        x = pooled(episodes, columns)
        spans.append(f"{columns}: {x.min():.3g} to {x.max():.3g}")
    count = sum(len(columns) for columns in left)
    vary = "1 column varies and is" if count == 1 else f"{count} columns vary and are"
    why = f"{vary} neither xyz, roll-pitch-yaw nor gripper ({'; '.join(spans[:6])})"
    if any(_BASE.search(columns.key) for columns in left):
        why += "; by its name, a base or torso"
    return Finding(UNUSED_QUESTION, ", ".join(map(str, left)), 0.99, why, {"columns": count})


def arms(episodes: Episodes, actions: Sequence[Columns]) -> Finding | None:
    """Whether the action moves a second arm; None if nothing suggests it."""
    keys = [action.key.removeprefix("action") for action in actions]
    named = [any(side.search(key.lower()) for key in keys) for side in _SIDES]
    if all(named):
        return Finding(ARMS_QUESTION, "two", 0.95, f"action keys are called left and right: {', '.join(keys[:6])}")
    for action in actions:
        width = len(action)
        if width not in _TWO_ARMS or not varies(pooled(episodes, replace(action, start=width // 2)))[:-1].any():
            continue
        half = width // 2
        ends = [Columns(action.key, i, i + 1) for i in (half - 1, width - 1)]
        switched = [_switches(pooled(episodes, column)[:, 0]) for column in ends]
        if all(switched):
            why = f"{width} columns, and columns {half - 1} and {width - 1} have the values of a gripper"
            return Finding(ARMS_QUESTION, "two", 0.95, why, {"width": width})
        grippers = sum(_switches(pooled(episodes, c)[:, 0]) for c in action.one_by_one())
        if grippers != 1:
            why = f"{width} columns, as two arms of {half} have; {grippers} columns have the values of a gripper"
            return Finding(ARMS_QUESTION, "two", 0.7, why, {"width": width})
    return None


def _switches(x: Floats) -> bool:
    """Whether a column has the values of a gripper's command: few, or mostly at two ends."""
    low, high = x.min(), x.max()
    if high - low < 1e-6:
        return False
    margin = 0.1 * (high - low)
    ends = ((x <= low + margin) | (x >= high - margin)).mean()
    return bool(ends > 0.8 or len(np.unique(np.round(x, 4))) <= 3)


def joints(
    episodes: Episodes, actions: Sequence[Columns], states: Sequence[Columns], at: Columns | None, held: Columns | None
) -> Finding | None:
    """Whether the action's columns are joints; None if nothing suggests it.

    Args:
        episodes: step dicts.
        actions: all columns of each numeric feature of the action.
        states: the same for the state.
        at: the action columns that look like a position.
        held: the state columns that they move, if any.
    """
    if at is None:
        return None
    named = [c for c in (at, held or at) if JOINTS.search(c.key)]
    if named:
        return Finding(JOINT_QUESTION, "joints", 0.9, f"from the key {named[0]}")
    whole = next(a for a in actions if a.key == at.key)
    quaternions = rotation.find_quaternions(episodes, [whole])
    cues, odds = [], 0.0
    count, key = (0, "") if quaternions else _one_by_one(episodes, whole, states)
    if count >= 7:
        odds += 2.5
        cues.append(f"{count} columns of {whole.key} follow {key} one by one; an end effector has six")
    if held is not None and len(held) == 3 and at.start == 0 and not quaternions:
        x = pooled(episodes, held)
        reach = float(np.linalg.norm(x, axis=1).max(initial=0.0))
        if reach > _LARGEST_REACH and _is_angle(episodes, held):
            odds += 1.2
            cues.append(f"{held} is up to {reach:.3g} from its origin, further than an arm reaches in metres")
        elif len(x) and np.ptp(x, axis=0).min() > _WIDEST_SPACE and _is_angle(episodes, held):
            odds += 1.0
            cues.append(f"every column of {held} covers over {_WIDEST_SPACE:g}, more than an arm's workspace in metres")
    pose = _position_feature(episodes, states, held)
    if pose is not None and not quaternions:
        own, every = _explained(episodes, at, whole, pose)
        if every > 0.5 and every - own > 0.2:
            odds += 1.5
            cues.append(
                f"{at} explains {100 * own:.0f} % of the motion of {pose}, and all columns of {whole.key} "
                f"{100 * every:.0f} %: the others move it too"
            )
        elif own < 0.1 and held is not None and held.key != pose.key:
            odds += 1.0
            cues.append(f"{at} does not move {pose}, which is named as a position")
    if whole.start == 0 and len(whole) == 8 and not quaternions and count < 7:
        odds += 0.6
        cues.append("8 columns, as 7 joints and a gripper have")
    if odds < 1.0:
        return None
    sure = round(float(0.98 / (1 + np.exp(-1.6 * (odds - 0.8)))), 2)
    return Finding(JOINT_QUESTION, "joints", sure, "; ".join(cues), {"log_odds": round(odds, 2)})


def _one_by_one(episodes: Episodes, action: Columns, states: Sequence[Columns]) -> tuple[int, str]:
    """The longest run of continuous action columns that follow adjacent state columns, and the state's key."""
    continuous = [not _switches(pooled(episodes, c)[:, 0]) for c in action.one_by_one()]
    a = [action.of(steps) for steps in episodes]
    best: tuple[int, str] = (0, "")
    for state in states:
        s = [unwrap(state.of(steps)) for steps in episodes]
        strong = np.zeros((len(action), len(state)), bool)
        for lag in range(3):
            for x, y in (displacements(a, s, 3, lag), levels(a, s, lag)):
                if len(x) >= 20:
                    strong |= np.abs(correlation(x, y)) > _FOLLOWS
        for shift in range(-len(action) + 1, len(state)):
            run = 0
            for i in range(len(action)):
                j = i + shift
                run = run + 1 if 0 <= j < len(state) and continuous[i] and strong[i, j] else 0
                best = max(best, (run, state.key))
    return best


def _is_angle(episodes: Episodes, held: Columns) -> bool:
    """Whether the values fit angles in radians: within a turn, so that millimetres are not taken for joints."""
    return bool(np.abs(pooled(episodes, held)).max(initial=0.0) < 2 * np.pi + 0.1)


def _position_feature(episodes: Episodes, states: Sequence[Columns], held: Columns | None) -> Columns | None:
    """Three state columns that are a position: by the feature's name, else those that the action moves."""
    for state in states:
        name = state.key.rsplit("/", 1)[-1]
        if re.search(r"ee|eef|tcp|cartesian|end_eff|tool|xyz", name) and len(state) >= 3 and not JOINTS.search(name):
            return Columns(state.key, 0, 3)
    fits = held is not None and np.abs(pooled(episodes, held)).max(initial=0.0) <= _LARGEST_REACH
    return held if fits else None


def _explained(episodes: Episodes, at: Columns, whole: Columns, pose: Columns) -> tuple[float, float]:
    """Share of the position's displacement that the three columns explain, each its own axis, and that all do."""
    window, best = 3, (0.0, 0.0)
    for lag in range(4):
        a = [whole.of(steps) for steps in episodes]
        s = [pose.of(steps) for steps in episodes]
        for differences in (False, True):  # absolute joints move the pose by their differences
            x = [np.diff(v, axis=0, append=v[-1:]) for v in a] if differences else a
            sums, moves = displacements(x, s, window, lag)
            if len(sums) < 10 * whole.stop:
                continue
            moves = moves - moves.mean(axis=0)
            sums = sums - sums.mean(axis=0)
            total = float((moves * moves).sum())
            if total <= 0:
                continue
            own = sums[:, at.start - whole.start : at.stop - whole.start]
            r = np.diag(correlation(own, moves[:, : own.shape[1]]))
            power = (moves[:, : own.shape[1]] ** 2).sum(axis=0)
            single = float((r * r * power).sum() / total)
            fit = np.linalg.lstsq(sums, moves, rcond=None)[0]
            every = 1 - float(((moves - sums @ fit) ** 2).sum()) / total
            best = max(best, (single, every), key=lambda pair: pair[1])
    return best
