"""Is the action a displacement, a velocity or a pose, and which columns of the state does it move?

A displacement summed over a few steps goes with the displacement of the state; a pose goes with the state itself. Both
correlations are computed for every group of three columns, and the group that follows best wins. A pose less the state
would be a displacement too, so levels are compared after each episode's mean is taken off.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

from oxe_curate.inspection.finding import Finding, unknown
from oxe_curate.inspection.series import (
    Columns,
    Episodes,
    Floats,
    correlation,
    displacements,
    gain,
    levels,
    pooled,
    unwrap,
    varies,
    window_for,
)

LAGS = range(6)
"""Steps by which a controller may follow late."""
SURE, THIN = 0.5, 0.35
"""Correlations: a group is matched from SURE on; below THIN nothing goes with anything."""
TURNS = re.compile(r"rot|orient|quat|euler|rpy|angle|axis")
JOINTS = re.compile(r"joint|qpos|motor")
_POSES = re.compile(r"world_vector|position|cartesian|xyz|_pos\b|translation")

Kind = Literal["delta", "absolute"]


@dataclass(frozen=True, slots=True)
class Match:
    """How a group of action columns goes with a group of state columns.

    Attributes:
        action, state: the columns, equally many.
        kind: which of the two hypotheses fits better.
        r: mean correlation of the columns under it; `other`: under the other hypothesis.
        gain: state displacement per unit of summed action (delta), or state per unit of action (absolute).
        lag: steps after which the state follows best.
        samples: number of independent stretches compared.
    """

    action: Columns
    state: Columns
    kind: Kind
    r: float
    other: float
    gain: float
    lag: int
    samples: int

    @property
    def confidence(self) -> float:
        """From r, the margin over the other hypothesis and the number of samples; 0.99 at most."""
        strength = np.clip((self.r - THIN) / 0.5, 0, 1)
        margin = np.clip((self.r - max(self.other, 0.0)) / 0.25, 0, 1)
        return round(float(0.99 * strength * margin * self.samples / (self.samples + 5)), 2)


def match(episodes: Episodes, action: Columns, state: Columns, size: int = 3) -> list[Match]:
    """Compare every `size` neighbouring action columns with every `size` neighbouring state columns.

    Args:
        episodes: step dicts.
        action: columns to look in; a narrower action is compared as a whole.
        state: columns to look in.
        size: 3 for positions and angles, 1 for a single column.

    Returns:
        The best state group of each action group that varies, best first.
    """
    size = min(size, len(action), len(state))
    a, s = [action.of(steps) for steps in episodes], [unwrap(state.of(steps)) for steps in episodes]
    found: list[Match] = []
    for start in range(len(action) - size + 1):
        part = [x[:, start : start + size] for x in a]
        moving = varies(np.concatenate(part)) if part else np.zeros(size, bool)
        if moving.sum() < min(2, size):  # two axes at least: one alone goes with many things
            continue
        found += _best(episodes, part, s, moving, Columns(action.key, action.start + start, 0), state, size)
    return sorted(found, key=lambda m: -m.r)


def _best(
    episodes: Episodes, a: list[Floats], s: list[Floats], moving: np.ndarray, at: Columns, state: Columns, size: int
) -> list[Match]:
    window = window_for(episodes)
    moved = [displacements(a, s, window, lag) for lag in LAGS]
    level = [levels(a, s, lag) for lag in LAGS]
    starts = range(len(state) - size + 1)
    delta = np.array([_diagonals(x, y, moving, size) for x, y in moved])
    absolute = np.array([_diagonals(x, y, moving, size) for x, y in level])
    best = max(starts, key=lambda d: float(max(delta[:, d].max(), absolute[:, d].max())), default=None)
    if best is None:
        return []
    kind: Kind = "delta" if delta[:, best].max() >= absolute[:, best].max() else "absolute"
    table, other = (delta, absolute) if kind == "delta" else (absolute, delta)
    lag = int(table[:, best].argmax())
    x, y = (moved if kind == "delta" else level)[lag]
    stretch = window if kind == "delta" else 1
    return [
        Match(
            action=Columns(at.key, at.start, at.start + size),
            state=Columns(state.key, state.start + best, state.start + best + size),
            kind=kind, r=float(table[lag, best]), other=float(other[:, best].max()),
            gain=gain(x[:, moving], y[:, best : best + size][:, moving]) if len(x) else 0.0,
            lag=lag, samples=len(x) // stretch,
        )
    ]  # fmt: skip


def _diagonals(x: Floats, y: Floats, moving: np.ndarray, size: int) -> Floats:
    """Mean r of column i with column d + i, over the action columns that move, for each d."""
    count = y.shape[1] - size + 1
    if len(x) < 3:
        return np.zeros(max(count, 1))
    r = correlation(x, y)
    rows = np.flatnonzero(moving)
    return np.array([r[rows, d + rows].mean() for d in range(count)])


def find_position(episodes: Episodes, actions: list[Columns], states: list[Columns]) -> Match | None:
    """The action columns that move a position, and the state columns that hold it.

    xyz and angles are matched alike; a position is told from angles by names, else by standing first.
    """
    found = [m for a in actions for s in states if not TURNS.search(s.key) for m in match(episodes, a, s)]
    found = [m for m in found if m.r >= SURE and not TURNS.search(m.action.key)]
    if not found:
        return None
    best = max(m.r for m in found)
    near = [m for m in found if m.r >= best - 0.25 and (m.confidence > 0.1 or m.r == best)] or found
    return min(near, key=lambda m: (m.action.start, not _POSES.search(m.action.key), -round(m.r, 2), m.state))


def find_rotation(
    episodes: Episodes, actions: list[Columns], states: list[Columns], position: Match | None
) -> Match | None:
    """The action columns that turn three angles of the state, apart from the position's; None if nothing fits."""
    found = []
    for action in actions:
        for free in _without(action, position.action if position else None):
            for state in states:
                for rest in _without(state, position.state if position else None):
                    if len(free) >= 3 and len(rest) >= 3:
                        found += match(episodes, free, rest)
    found = [m for m in found if m.r >= SURE]
    return max(found, key=lambda m: m.r, default=None)


def _without(columns: Columns, taken: Columns | None) -> list[Columns]:
    if taken is None or not columns.overlaps(taken):
        return [columns]
    parts = [Columns(columns.key, columns.start, taken.start), Columns(columns.key, taken.stop, columns.stop)]
    return [part for part in parts if len(part) > 0]


def action_kind(episodes: Episodes, action: Columns, state: Columns, control_hz: float | None = None) -> Finding:
    """Is the action a displacement, a velocity or an absolute pose of these state columns?

    Answers: "delta" (in the state's units), "scaled delta" (a displacement in other units, a controller's input, or
    a velocity at an unknown rate), "velocity" (only where `control_hz` is given and gain x rate is near 1), "absolute".

    Args:
        episodes: step dicts.
        action, state: equally many columns.
        control_hz: steps per second, where known.
    """
    question = f"what does {action} mean?"
    matches = match(episodes, action, state, size=len(action))
    if not matches:
        return unknown(question, f"{action} hardly varies, so nothing can be compared with {state}")
    m = matches[0]
    evidence = {
        "state": str(m.state), "r_delta": round(m.r if m.kind == "delta" else m.other, 3),
        "r_absolute": round(m.other if m.kind == "delta" else m.r, 3), "gain": float(f"{m.gain:.4g}"), "lag": m.lag,
        "samples": m.samples,
    }  # fmt: skip
    numbers = (
        f"r = {evidence['r_delta']:.2f} with the displacement of {m.state}, {evidence['r_absolute']:.2f} with its value, "
        f"{m.samples} stretches"
    )
    if m.r < SURE or m.confidence < 0.1:
        return unknown(question, f"neither reading stands out: {numbers}", **evidence)
    if m.kind == "absolute":
        near = "in its units" if 0.8 < m.gain < 1.25 else f"scaled: one unit is {m.gain:.3g} of the state"
        return Finding(question, "absolute", m.confidence, f"{numbers}; {near}, {m.lag} steps ahead", evidence)
    if _is_exact(episodes, action, m.state):
        evidence["exact"] = True
        why = f"a[t] is s[t+1] - s[t] of {m.state} to float32's precision"
        return Finding(question, "delta", 0.99, why, evidence)
    per_unit = f"a unit moves the state by {m.gain:.3g} (lag {m.lag})"
    if control_hz and 0.6 < m.gain * control_hz < 1.6 and not 0.6 < m.gain < 1.6:
        why = f"{numbers}; {per_unit}, and {m.gain:.3g} x {control_hz:g} Hz is near 1"
        return Finding(question, "velocity", m.confidence, why, evidence)
    if 0.6 < m.gain < 1.6:
        return Finding(question, "delta", m.confidence, f"{numbers}; {per_unit}", evidence)
    rate = f", or a velocity if the rate is {1 / m.gain:.0f} Hz" if 0.01 < m.gain < 1 else ""
    return Finding(question, "scaled delta", m.confidence, f"{numbers}; {per_unit}{rate}", evidence)


def _is_exact(episodes: Episodes, action: Columns, state: Columns) -> bool:
    """Whether a[t] equals s[t+1] - s[t] at all but a hundredth of the steps."""
    good = total = 0
    for steps in episodes:
        a, s = action.of(steps), unwrap(state.of(steps))
        near = np.abs(a[:-1] - np.diff(s, axis=0)) <= 2e-6 * (1 + np.abs(s[:-1]))
        good, total = good + int(near.all(axis=1).sum()), total + len(near)
    return total > 0 and good >= 0.99 * total


def action_kind_alone(episodes: Episodes, action: Columns) -> Finding:
    """The same without a state: from names and from how smooth the action is. Never sure."""
    question = f"what does {action} mean?"
    x = pooled(episodes, action)
    if len(x) < 10 or not varies(x).any():
        return unknown(question, f"{action} hardly varies and there is no state to compare it with")
    parts = [action.of(steps)[:, varies(x)] for steps in episodes if len(steps[action.key]) > 2]
    rough = float(np.nanmedian([np.diff(p, axis=0).std() / (p.std() + 1e-12) for p in parts]))
    side = float(np.median(np.abs(x.mean(axis=0)) / (x.std(axis=0) + 1e-12)))
    evidence = {"roughness": round(rough, 3), "mean_over_std": round(side, 3)}
    numbers = f"no state goes with it; steps change it by {rough:.2f} of its spread, mean {side:.1f} spreads from zero"
    if re.search(r"delta|vector|_rel|rel_|displacement", action.key):
        why = f"only by its name {action.key!r}, as in the RT-X data sets, where it is a displacement ({numbers})"
        return Finding(question, "delta", 0.5, why, evidence)
    if rough < 0.1 and side > 1.5:
        return Finding(question, "absolute", 0.3, f"a weak cue: it is smooth and far from zero ({numbers})", evidence)
    return unknown(question, numbers, **evidence)


def idle_ends(episodes: Episodes, pose: list[Columns]) -> tuple[Finding, Finding]:
    """Do episodes begin, and end, with a step whose pose columns are all zero? (Bridge's first action is.)"""
    first, last = [], []
    for steps in episodes:
        x = np.concatenate([columns.of(steps) for columns in pose], axis=1) if pose else np.empty((0, 0))
        still = np.abs(x).max(axis=1, initial=0.0) < 1e-6
        if len(still) > 2 and not still.all():
            first.append(bool(still[0]))
            last.append(bool(still[-1]))
    found = []
    for name, flags in (("first", first), ("last", last)):
        question = f"is the {name} step idle?"
        share = float(np.mean(flags)) if flags else 0.0
        evidence = {"share": round(share, 3), "episodes": len(flags)}
        why = f"all pose columns are zero there in {sum(flags)} of {len(flags)} episodes"
        if len(flags) < 3:
            found.append(unknown(question, f"only {len(flags)} episodes move at all", **evidence))
        else:
            answer = "yes" if share >= 0.9 else "no" if share <= 0.1 else "sometimes"
            found.append(Finding(question, answer, round(0.99 * len(flags) / (len(flags) + 1), 2), why, evidence))
    return found[0], found[1]
