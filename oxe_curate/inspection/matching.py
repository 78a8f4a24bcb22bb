"""Match groups of action columns with the state columns that they move, as displacements or as levels.

A displacement summed over a few steps correlates with the displacement of the state; a pose with the state itself. Both
correlations are computed for every group of three columns, and the best group wins. A pose minus the state would also
be a displacement, so levels are compared after subtracting each episode's mean. Smooth series correlate by
chance, the more so the shorter they are; so the same search also runs on the state shifted in time, and its result
lowers the confidence.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from oxe_curate.arrays import Floats
from oxe_curate.inspection.series import (
    Columns,
    Episodes,
    correlation,
    displacements,
    gain,
    levels,
    unwrap,
    varies,
    window_for,
)

LAGS = range(6)
"""Delays of a controller to try [steps]; at most a quarter of an episode."""
SURE, THIN = 0.5, 0.35
"""Mean correlations: a group is matched from SURE on; at THIN there is no confidence."""
TURNS = re.compile(r"rot|orient|quat|euler|rpy|angle|axis")
_POSES = re.compile(r"world_vector|position|cartesian|xyz|_pos\b|translation")
_SHIFTS = (1 / 3, 1 / 2, 2 / 3)

ActionKind = Literal["delta", "absolute"]


@dataclass(frozen=True, slots=True)
class Match:
    """The correlation of a group of action columns with a group of state columns.

    Attributes:
        action, state: the columns, equally many.
        kind: which of the two hypotheses fits better.
        r: mean correlation of the columns under it; `other`: under the other hypothesis.
        chance: the best r of the same search on the state shifted in time; 1 where r is below `SURE` anyway.
        gain: state displacement per unit of summed action (delta), or state per unit of action (absolute).
        lag: steps after which the state follows best.
        samples: number of windows that do not overlap.
    """

    action: Columns
    state: Columns
    kind: ActionKind
    r: float
    other: float
    chance: float
    gain: float
    lag: int
    samples: int

    @property
    def confidence(self) -> float:
        """From r, its margin over the other hypothesis and over chance, and the number of samples; at most 0.99.

        Levels are smooth and correlate more easily than displacements, so their threshold is higher.
        """
        low, wide = (THIN, 0.5) if self.kind == "delta" else (THIN + 0.2, 0.4)
        strength = np.clip((self.r - low) / wide, 0, 1)
        margin = np.clip((self.r - max(self.other, 0.0)) / 0.25, 0, 1)
        beyond = np.clip((self.r - self.chance) / (1.0001 - max(self.chance, 0.0)) / 0.6, 0, 1)
        return round(float(0.99 * strength * margin * beyond * self.samples / (self.samples + 8)), 2)


def match(episodes: Episodes, action: Columns, state: Columns, size: int = 3) -> list[Match]:
    """Compare every `size` adjacent action columns with every `size` adjacent state columns.

    Args:
        episodes: step dicts.
        action: columns to search; a narrower action is compared as a whole.
        state: columns to search, at least as many.
        size: columns per group.

    Returns:
        The best state group of each action group in which two columns vary, best first.
    """
    size = min(size, len(action))
    if size < 1 or len(state) < size:
        return []
    a, s = [action.of(steps) for steps in episodes], [unwrap(state.of(steps)) for steps in episodes]
    window = window_for(episodes)
    found: list[Match] = []
    for start in range(len(action) - size + 1):
        part = [x[:, start : start + size] for x in a]
        moving = varies(np.concatenate(part)) if part else np.zeros(size, bool)
        if moving.sum() < min(2, size):  # at least two axes: a single axis correlates with many columns
            continue
        scores = _Scores.of(part, s, moving, window)
        best = int(np.maximum(scores.delta.max(axis=0), scores.absolute.max(axis=0)).argmax())
        found.append(
            _describe(part, s, moving, window, scores, best, Columns(action.key, action.start + start, 0), state)
        )
    return sorted(found, key=lambda m: -m.r)


@dataclass(frozen=True, slots=True)
class _Scores:
    """Mean r of an action group with each state group (columns) at each lag (rows), under both hypotheses."""

    delta: Floats
    absolute: Floats

    @classmethod
    def of(cls, a: Sequence[Floats], s: Sequence[Floats], moving: NDArray[np.bool_], window: int) -> _Scores:
        lags = range(min(len(LAGS), 1 + min((len(x) for x in a), default=0) // 4))
        return cls(
            np.array([_diagonals(*displacements(a, s, window, lag), moving, s[0].shape[1]) for lag in lags]),
            np.array([_diagonals(*levels(a, s, lag), moving, s[0].shape[1]) for lag in lags]),
        )


def _diagonals(x: Floats, y: Floats, moving: NDArray[np.bool_], width: int) -> Floats:
    """Mean r of column i with column d + i, over the action columns that move, for each d."""
    count = width - len(moving) + 1
    if len(x) < 3:
        return np.zeros(count)
    r = correlation(x, y)
    rows = np.flatnonzero(moving)
    return np.array([r[rows, d + rows].mean() for d in range(count)])


def _describe(
    a: Sequence[Floats], s: Sequence[Floats], moving: NDArray[np.bool_], window: int, scores: _Scores, best: int,
    at: Columns, state: Columns,
) -> Match:  # fmt: skip
    kind: ActionKind = "delta" if scores.delta[:, best].max() >= scores.absolute[:, best].max() else "absolute"
    table, other = (scores.delta, scores.absolute) if kind == "delta" else (scores.absolute, scores.delta)
    lag, size = int(table[:, best].argmax()), len(moving)
    x, y = displacements(a, s, window, lag) if kind == "delta" else levels(a, s, lag)
    r, by_chance = float(table[lag, best]), 1.0
    if r >= SURE:  # below, the confidence is zero anyway
        shifted = [_Scores.of(a, [np.roll(e, round(len(e) * f), axis=0) for e in s], moving, window) for f in _SHIFTS]
        by_chance = max(float(max(c.delta.max(), c.absolute.max())) for c in shifted)
    return Match(
        action=Columns(at.key, at.start, at.start + size),
        state=Columns(state.key, state.start + best, state.start + best + size),
        kind=kind, r=r, other=float(other[:, best].max()),
        chance=by_chance,
        gain=gain(x[:, moving], y[:, best : best + size][:, moving]) if len(x) else 0.0,
        lag=lag, samples=len(x) // window,
    )  # fmt: skip


def find_position(episodes: Episodes, actions: list[Columns], states: list[Columns]) -> Match | None:
    """The action columns that move a position, and the state columns that hold it.

    xyz and angles are matched in the same way; a position is distinguished from angles by name, else by coming first.
    """
    found = [
        m
        for a in actions
        for s in states
        if len(a) > 1 and not TURNS.search(s.key) and not TURNS.search(a.key)
        for m in match(episodes, a, s)
        if m.r >= SURE and m.confidence >= 0.1
    ]
    if not found:
        return None
    best = max(m.r for m in found)
    near = [m for m in found if m.r >= best - 0.25]
    return min(near, key=lambda m: (m.action.start, not _POSES.search(m.action.key), -round(m.r, 2), m.state))


def find_rotation(
    episodes: Episodes, actions: list[Columns], states: list[Columns], position: Match | None
) -> Match | None:
    """The action columns that change three angles of the state, other than the position's; None if nothing fits."""
    found = []
    for action in actions:
        for free in without(action, position.action if position else None):
            adjacent = position is not None and free.key == position.action.key
            # angles directly follow the position; later columns would include the gripper
            free = replace(free, stop=min(free.start + 3, free.stop)) if adjacent else free
            for state in states:
                for rest in without(state, position.state if position else None):
                    found += match(episodes, free, rest) if len(free) >= 3 else []
    found = [m for m in found if m.r >= SURE and m.confidence >= 0.1]
    return max(found, key=lambda m: m.r, default=None)


def without(columns: Columns, taken: Columns | None) -> list[Columns]:
    """The columns before and after those taken."""
    if taken is None or not columns.overlaps(taken):
        return [columns]
    before = Columns(columns.key, columns.start, max(taken.start, columns.start))
    after = Columns(columns.key, min(taken.stop, columns.stop), columns.stop)
    return [part for part in (before, after) if len(part) > 0]
