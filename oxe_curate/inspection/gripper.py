"""Detect the gripper: the command's column and range, whether it is a level or pulses, and which end is open.

The command's sign comes from the state's aperture, which follows it with a lag. Three cues, each weighed as odds, show
which end of the aperture is open: its name; that fingers stop at the object when they close but always open to the same
width; and that most episodes begin with an open gripper.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from oxe_curate.arrays import Floats
from oxe_curate.inspection.finding import Finding, unknown
from oxe_curate.inspection.series import (
    Columns,
    Episodes,
    correlation,
    displacements,
    levels,
    pooled,
    varies,
)

_GRIPPER = re.compile(r"grip|finger|aperture|\bclosed|closedness")
_CLOSED = re.compile(r"clos")
_OPEN = re.compile(r"open|width|aperture")
_OTHER = re.compile(r"terminate|base_|mode|discount|reward")
_COMMAND = re.compile(r"command|target|desired")
_LAGS = range(9)


@dataclass(frozen=True, slots=True)
class Aperture:
    """The state column that follows the gripper's command.

    Attributes:
        state: the column.
        r: its correlation with the command, `lag` steps later; negative where it falls when the command rises.
        lag: steps.
        samples: stretches compared.
    """

    state: Columns
    r: float
    lag: int
    samples: int


def find_command(episodes: Episodes, actions: list[Columns], taken: list[Columns]) -> Columns | None:
    """The action column most like a gripper command, other than those already explained; None if there is none.

    The name, the last place in a flat action, and few distinct values or values at two ends score points.
    """
    best: tuple[float, Columns] | None = None
    for action in actions:
        for column in action.one_by_one():
            if any(column.overlaps(t) for t in taken) or _OTHER.search(column.key):
                continue
            x = pooled(episodes, column)[:, 0]
            if not len(x):
                continue
            few = len(np.unique(np.round(x, 4))) <= 3 or bool(_at_ends(x) > 0.8)
            score = 2.0 * bool(_GRIPPER.search(column.key)) + 0.5 * (column.stop == action.stop) + few
            score += 0.5 * float(len(action) >= 7 and column.stop == 7) - 0.6 * float(not varies(x[:, None])[0])
            if score >= 1.0 and (best is None or score > best[0]):
                best = (score, column)
    return best[1] if best else None


def _at_ends(x: Floats) -> float:
    """Share of values within a tenth of the range from either end."""
    low, high = x.min(), x.max()
    margin = 0.1 * (high - low)
    return float(((x <= low + margin) | (x >= high - margin)).mean())


def command_form(episodes: Episodes, command: Columns) -> Finding:
    """Is the command a level or relative pulses, and in what range?

    Answers: "relative" (0 keeps, +1 and -1 act), "0..1", "-1..1", "constant", or "level" in another range.
    """
    question = f"how does {command} command the gripper?"
    x = pooled(episodes, command)[:, 0]
    if not len(x):
        return unknown(question, "no values")
    low, high = float(x.min()), float(x.max())
    values, counts = np.unique(np.round(x, 3), return_counts=True)
    common = {f"{v:g}": round(int(c) / len(x), 3) for v, c in zip(values, counts, strict=True) if c > 0.01 * len(x)}
    evidence = {"min": round(low, 4), "max": round(high, 4), "shares": dict(list(common.items())[:8])}
    if not varies(x[:, None])[0]:
        return Finding(question, "constant", 0.99, f"the value is {low:g} at every step", evidence)
    pulses, zero = _pulses(episodes, command)
    evidence |= {"share_zero_while_used": round(zero, 3), "alternating_pulses": round(pulses, 2)}
    span = f"values from {low:.3g} to {high:.3g}"
    if low < -0.5 and high > 0.5 and zero > 0.6:
        why = f"{span}; zero at {100 * zero:.0f} % of the steps if used; {100 * pulses:.0f} % of pulses alternate"
        return Finding(
            question, "relative", round(float(np.clip(0.35 + 0.3 * zero + 0.3 * pulses, 0, 0.95)), 2), why, evidence
        )
    longest = _longest_pulse(episodes, command)
    if low in (-1.0, 0.0) and high in (0.0, 1.0) and set(common) <= {"-1", "0", "1"} and zero > 0.8 and longest <= 4:
        why = f"{span}; zero at {100 * zero:.0f} % of the steps if used; no pulse exceeds {longest} steps"
        return Finding(question, "relative", 0.4, why, evidence)
    ends = _at_ends(x)
    evidence["share_at_ends"] = round(ends, 3)
    span += f", {100 * ends:.0f} % of them at the ends"
    if abs(low) < 0.05 and 0.9 < high < 1.1:
        return Finding(question, "0..1", 0.95, span, evidence)
    if -1.1 < low < -0.9 and 0.9 < high < 1.1:
        return Finding(question, "-1..1", 0.95, span, evidence)
    if low < -0.9 and high < 0.05:
        return Finding(question, "-1..1", 0.4, f"{span}: half of -1..1, if +1 is missing from these episodes", evidence)
    return Finding(question, "level", 0.6, span, evidence)


def _pulses(episodes: Episodes, command: Columns) -> tuple[float, float]:
    """Share of runs of one sign that follow a run of the other; share of zeros in episodes that use the gripper."""
    alternating = runs = zeros = steps_seen = 0
    for steps in episodes:
        x = command.of(steps)[:, 0]
        sign = np.sign(np.where(np.abs(x) > 0.05, x, 0))
        if not sign.any():
            continue
        zeros, steps_seen = zeros + int((sign == 0).sum()), steps_seen + len(sign)
        starts = sign[(sign != 0) & (sign != np.concatenate([[0], sign[:-1]]))]
        runs += len(starts) - 1
        alternating += int((starts[1:] != starts[:-1]).sum())
    return (alternating / runs if runs > 0 else 0.5), (zeros / steps_seen if steps_seen else 1.0)


def _longest_pulse(episodes: Episodes, command: Columns) -> int:
    """Length of the longest run of non-zero values."""
    longest = 0
    for steps in episodes:
        zero = np.flatnonzero(np.abs(np.concatenate([[0], command.of(steps)[:, 0], [0]])) <= 0.05)
        longest = max(longest, int(np.diff(zero).max(initial=1)) - 1)
    return longest


def find_aperture(
    episodes: Episodes, command: Columns, states: list[Columns], taken: list[Columns], *, relative: bool = False
) -> Aperture | None:
    """The state column that follows the command, among those that are not part of a pose; None below |r| = 0.5.

    A relative command is compared by its sum over a few steps with the aperture's change.
    """
    best: tuple[float, Aperture] | None = None
    a = [command.of(steps) for steps in episodes]
    for state in states:
        for column in state.one_by_one():
            if any(column.overlaps(t) for t in taken):
                continue
            s = [column.of(steps) for steps in episodes]
            named = bool(_GRIPPER.search(column.key)) - bool(_COMMAND.search(column.key))
            for lag in _LAGS:
                x, y = displacements(a, s, 3, lag) if relative else levels(a, s, lag, centre=False)
                r = float(correlation(x, y)[0, 0]) if len(x) else 0.0
                score = abs(r) + 0.3 * named
                if abs(r) >= 0.5 and (best is None or score > best[0] + 1e-3):
                    best = (score, Aperture(column, r, lag, len(x)))
    return best[1] if best else None


def aperture_sense(episodes: Episodes, aperture: Columns) -> Finding:
    """Which end of the aperture's column is open? Answers "high" or "low"."""
    question = f"which end of {aperture} is open?"
    x = pooled(episodes, aperture)[:, 0]
    low, high = (float(v) for v in np.quantile(x, [0.01, 0.99])) if len(x) else (0.0, 0.0)
    if high - low < 1e-6:
        return unknown(question, "the values hardly vary", low=low, high=high)
    odds, cues = 0.0, []
    name = aperture.key.rsplit("/", 1)[-1]
    if _CLOSED.search(name) or _OPEN.search(name):
        sign = -1 if _CLOSED.search(name) else 1
        odds += sign * 2.2
        cues.append(f"the name {name!r}")
    at_top, at_bottom = _rests(episodes, aperture, low, high)
    if len(at_top) >= 3 and len(at_bottom) >= 3:
        top, bottom = _spread(at_top) / (high - low), _spread(at_bottom) / (high - low)
        if max(top, bottom) > 0.02 and max(top, bottom) > 3 * min(top, bottom):
            odds += 1.5 if bottom > top else -1.5
            cues.append(f"it stops at varying {'low' if bottom > top else 'high'} values, as fingers do on objects")
    starts = np.array([float(aperture.of(s)[:3].mean()) for s in episodes if len(s[aperture.key])])
    began = float((starts > (low + high) / 2).mean())
    if began >= 0.75 or began <= 0.25:
        odds += 1.0 if began > 0.5 else -1.0
        end = "high" if began > 0.5 else "low"
        cues.append(f"{100 * max(began, 1 - began):.0f} % of the episodes begin {end}, and most begin open")
    evidence = {
        "log_odds_high_open": round(odds, 2), "begins_high": round(began, 2), "low": round(low, 4),
        "high": round(high, 4),
    }  # fmt: skip
    if abs(odds) < 0.5:
        return unknown(question, f"the cues disagree or are missing ({'; '.join(cues) or 'none'})", **evidence)
    sure = round(float(1 / (1 + np.exp(-abs(odds)))), 2)
    return Finding(question, "high" if odds > 0 else "low", sure, "; ".join(cues), evidence)


def _rests(episodes: Episodes, aperture: Columns, low: float, high: float) -> tuple[list[float], list[float]]:
    """Values that the aperture keeps for at least three steps, in the upper and the lower half of its range."""
    middle, still = (low + high) / 2, 0.01 * (high - low)
    top: list[float] = []
    bottom: list[float] = []
    for steps in episodes:
        x = aperture.of(steps)[:, 0]
        resting = np.abs(np.diff(x)) < still
        start = 0
        for t in range(len(resting) + 1):
            if t == len(resting) or not resting[t]:
                if t - start >= 3:
                    value = float(np.median(x[start : t + 1]))
                    (top if value > middle else bottom).append(value)
                start = t + 1
    return top, bottom


def _spread(values: list[float]) -> float:
    return float(np.quantile(values, 0.9) - np.quantile(values, 0.1))


def polarity(episodes: Episodes, command: Columns, aperture: Aperture | None, *, relative: bool = False) -> Finding:
    """Does a higher command open or close the gripper? Answers "high opens" or "high closes"."""
    question = f"does a high {command} open or close the gripper?"
    if not varies(pooled(episodes, command))[0]:
        return unknown(question, f"{command} is constant")
    if aperture is not None:
        sense = aperture_sense(episodes, aperture.state)
        evidence = {"aperture": str(aperture.state), "r": round(aperture.r, 3), "lag": aperture.lag} | sense.evidence
        low, high = sense.evidence.get("low", 0.0), sense.evidence.get("high", 0.0)
        column = f"{aperture.state} ({low:.3g} to {high:.3g})"
        relation = f"{column} follows it with r = {aperture.r:.2f} after {aperture.lag} steps"
        if not sense.known:
            return unknown(question, f"{relation}, but it is unclear which end is open: {sense.why}", **evidence)
        opens = (aperture.r > 0) == (sense.answer == "high")
        follows = float(np.clip(0.5 + (abs(aperture.r) - 0.3), 0.5, 1)) * aperture.samples / (aperture.samples + 10)
        sure = sense.confidence * follows
        why = f"{relation}, and its {sense.answer} end is open: {sense.why}"
        return Finding(question, "high opens" if opens else "high closes", round(sure, 2), why, evidence)
    return _polarity_without_aperture(episodes, command, relative, question)


def _polarity_without_aperture(episodes: Episodes, command: Columns, relative: bool, question: str) -> Finding:
    """Polarity without an aperture: from the name and from how episodes begin."""
    x = pooled(episodes, command)[:, 0]
    middle = 0.0 if relative else (float(x.min()) + float(x.max())) / 2
    first = []
    for steps in episodes:
        c = command.of(steps)[:, 0]
        acts = c[np.abs(c) > 0.05] if relative else c
        if len(acts):
            first.append(float(acts[0] > middle))
    high = float(np.mean(first)) if first else 0.5
    odds, cues = 0.0, []
    name = command.key.rsplit("/", 1)[-1]
    if _CLOSED.search(name) or _OPEN.search(name):
        odds += -2.0 if _CLOSED.search(name) else 2.0
        cues.append(f"the name {name!r}")
    if len(first) >= 3 and (high >= 0.75 or high <= 0.25):
        begins_open = 0.8 if high > 0.5 else -0.8
        odds += -begins_open if relative else begins_open  # the first pulse of an open gripper closes it
        what = "have as first pulse a" if relative else "begin with a"
        cues.append(
            f"{100 * max(high, 1 - high):.0f} % of the episodes {what} {'high' if high > 0.5 else 'low'} command"
        )
    evidence = {"log_odds_high_opens": round(odds, 2), "first_high": round(high, 2), "episodes": len(first)}
    if abs(odds) < 0.5:
        return unknown(
            question, f"no state column follows it, and the cues disagree ({'; '.join(cues) or 'none'})", **evidence
        )
    weight = 0.9 if len(cues) > 1 or abs(odds) > 1 else 0.65  # how episodes begin is not enough on its own
    sure = round(weight * float(1 / (1 + np.exp(-abs(odds)))), 2)
    why = f"no state column follows it; weak cues: {'; '.join(cues)}"
    return Finding(question, "high opens" if odds > 0 else "high closes", sure, why, evidence)
