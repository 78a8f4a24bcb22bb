"""Detect the meaning of action columns (displacement, velocity, pose, constant), and idle first and last steps."""

from __future__ import annotations

import re
from typing import Literal

import numpy as np

from oxe_curate.inspection.finding import Finding, unknown
from oxe_curate.inspection.matching import SURE, Match
from oxe_curate.inspection.series import Columns, Episodes, pooled, unwrap, varies

JOINTS = re.compile(r"joint|qpos|motor")


def kind_of(episodes: Episodes, m: Match, control_hz: float | None = None) -> Finding:
    """Is the action a displacement, a velocity or an absolute pose of the state columns that it is matched with?"""
    question = f"what does {m.action} mean?"
    evidence = {
        "state": str(m.state),
        "r_delta": round(m.r if m.kind == "delta" else m.other, 3),
        "r_absolute": round(m.other if m.kind == "delta" else m.r, 3),
        "r_by_chance": round(m.chance, 3) if m.chance < 1 else None,
        "gain": float(f"{m.gain:.4g}"),
        "lag": m.lag,
        "samples": m.samples,
    }
    numbers = (
        f"r = {evidence['r_delta']:.2f} with the displacement of {m.state}, {evidence['r_absolute']:.2f} with its "
        f"value{f', {m.chance:.2f} by chance' if m.chance < 1 else ''}, {m.samples} windows"
    )
    if m.r < SURE or m.confidence < 0.1:
        return unknown(question, f"neither interpretation fits clearly better: {numbers}", **evidence)
    if m.kind == "absolute":
        near = "in the state's units" if 0.8 < m.gain < 1.25 else f"one unit is {m.gain:.3g} of the state"
        return Finding(question, "absolute", m.confidence, f"{numbers}; {near}, {m.lag} steps ahead", evidence)
    if _is_exact(episodes, m.action, m.state):
        evidence["exact"] = True
        why = f"a[t] is s[t+1] - s[t] of {m.state} to float32 precision"
        return Finding(question, "delta", 0.99, why, evidence)
    per_unit = f"one unit moves the state by {m.gain:.3g} (lag {m.lag})"
    answer = reading(m.gain, control_hz)
    if answer == "velocity":
        why = f"{numbers}; {per_unit}, and {m.gain:.3g} x {control_hz:g} Hz is near 1"
        return Finding(question, "velocity", m.confidence, why, evidence)
    if answer == "delta":
        return Finding(question, "delta", m.confidence, f"{numbers}; {per_unit}", evidence)
    rate = f", or a velocity if the rate is {1 / m.gain:.0f} Hz" if 0.01 < m.gain < 1 else ""
    return Finding(question, "scaled delta", m.confidence, f"{numbers}; {per_unit}{rate}", evidence)


def reading(factor: float, control_hz: float | None) -> Literal["delta", "velocity", "scaled delta"]:
    """The kind of a displacement by its gain: near 1, near 1 / rate, or other; controllers undershoot commands."""
    if 0.6 < factor < 1.6:
        return "delta"
    return "velocity" if control_hz and 0.6 < factor * control_hz < 1.6 else "scaled delta"


def _is_exact(episodes: Episodes, action: Columns, state: Columns) -> bool:
    """Whether a[t] equals s[t+1] - s[t] at 99 % of the steps."""
    good = total = 0
    for steps in episodes:
        a, s = action.of(steps), unwrap(state.of(steps))
        near = np.abs(a[:-1] - np.diff(s, axis=0)) <= 2e-6 * (1 + np.abs(s[:-1]))
        good, total = good + int(near.all(axis=1).sum()), total + len(near)
    return total > 0 and good >= 0.99 * total


def kind_without_state(episodes: Episodes, action: Columns) -> Finding:
    """The kind without a state: from names and smoothness, with low confidence unless the action is constant."""
    question = f"what does {action} mean?"
    x = pooled(episodes, action)
    if len(x) and not varies(x).any():
        return Finding(question, "constant", 0.95, f"the value is {', '.join(f'{v:g}' for v in x[0])} at every step")
    if len(x) < 10:
        return unknown(question, f"only {len(x)} steps, and no state to compare it with")
    parts = [action.of(steps)[:, varies(x)] for steps in episodes if len(steps[action.key]) > 2]
    rough = float(np.nanmedian([np.diff(p, axis=0).std() / (p.std() + 1e-12) for p in parts]))
    side = float(np.median(np.abs(x.mean(axis=0)) / (x.std(axis=0) + 1e-12)))
    evidence = {"roughness": round(rough, 3), "mean_over_std": round(side, 3)}
    numbers = f"no state correlates with it; changes per step {rough:.2f} std, mean {side:.1f} std from zero"
    if re.search(r"delta|vector|_rel|rel_|displacement", action.key):
        why = f"only from its name {action.key!r}, a displacement in the RT-X data sets ({numbers})"
        return Finding(question, "delta", 0.5, why, evidence)
    if rough < 0.1 and side > 1.5:
        return Finding(question, "absolute", 0.3, f"weak cue: it is smooth and far from zero ({numbers})", evidence)
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
        why = f"all its pose columns are zero in {sum(flags)} of {len(flags)} episodes"
        if len(flags) < 3:
            found.append(unknown(question, f"the arm moves in only {len(flags)} episodes", **evidence))
        else:
            answer = "yes" if share >= 0.9 else "no" if share <= 0.1 else "sometimes"
            found.append(Finding(question, answer, round(0.99 * len(flags) / (len(flags) + 1), 2), why, evidence))
    return found[0], found[1]
