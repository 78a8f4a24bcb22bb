"""Episodes that begin or end where those of their task do not: cut off, begun midway, or played backwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oxe_curate.arrays import Floats
from oxe_curate.quality.episodes import EpisodeBatch
from oxe_curate.quality.limits import robust_limit
from oxe_curate.quality.measure import Judgement, Part
from oxe_curate.quality.scales import Scales
from oxe_curate.quality.segments import sum_each
from oxe_curate.quality.tasks import deviations, normal, task_of
from oxe_curate.quality.verdict import Test, factor_limit, judged, worst

_WIDEST = 16
"""State columns compared."""
_LAST = 3
"""Steps whose motion counts as that of an end."""
_LIMIT, _CUT = 5.0, 3.6
"""Deviations of an episode's start, and of its end and length together, that are never too many."""
_BACKWARDS = 2.0
_ALIKE = 0.05
"""A failure is doubted if this share of the successes differ more from each other than it differs from them."""
_FEWEST = 8


@dataclass(frozen=True)
class Endings:
    """`truncated`, `unusual_start`, `reversed` and `success_contradicted`."""

    criteria: tuple[str, ...] = ("truncated", "unusual_start", "reversed", "success_contradicted")
    columns: frozenset[str] = frozenset({"proprio", "instruction", "success"})

    def fit(self, sample: EpisodeBatch) -> Scales:
        """The usual sizes."""
        return Scales.of(sample)

    def part(self, batch: EpisodeBatch, fitted: Scales) -> Part:
        """State, gripper and speed at both ends; length and path."""
        starts, first, last = batch.starts, batch.starts[:-1], batch.starts[1:] - 1
        pose = batch.actions[:6] / fitted.motion[:, None]
        speed = np.minimum(np.abs(pose).max(axis=0), 10)
        begins, ends = (side < _LAST for side in (batch.place, batch.left))
        count = np.minimum(batch.lengths, _LAST)
        toggles = np.abs(np.diff(batch.actions[6], prepend=0)) > 0.5
        toggles[first] = False
        used = np.flatnonzero(fitted.state_step > 0)[:_WIDEST]
        span = np.maximum(fitted.state_high - fitted.state_low, fitted.state_step)[used][:, None]
        state = np.clip(batch.states[used] / span, -1e6, 1e6)
        grip = np.clip(batch.actions[6], -10, 10)
        return {
            "task": np.array([task_of(text) for text in batch.instruction], np.int64),
            "steps": batch.lengths, "success": batch.success,
            "speed": np.array([sum_each(speed * side, starts) / count for side in (begins, ends)]).T,
            "path": sum_each(speed, starts), "net": sum_each(np.clip(pose[:3], -10, 10), starts).T,
            "toggles": sum_each(toggles, starts), "grip": np.array([grip[first], grip[last]], np.float64).T,
            "first": state[:, first].T.astype(np.float64), "last": state[:, last].T.astype(np.float64),
        }  # fmt: skip

    def judge(self, part: Part, fitted: Scales) -> Mapping[str, Judgement]:
        """Compare every episode with those of its task."""
        ends = _Ends.of(part, fitted.length)
        shortness = np.quantile(part["steps"], 0.2) / part["steps"]
        cut, limit, _ = worst([
            (ends.cut, robust_limit(ends.cut, least=_CUT, within=5)), (shortness, factor_limit(shortness, least=2.5))
        ])  # fmt: skip
        found = {
            "truncated": judged(
                cut, limit, lambda i: _words(_AT_END, ends.at_end[i]) or f"only {part['steps'][i]} steps",
                step=part["steps"] - 1, unit="deviations",
            ),
            "unusual_start": judged(
                ends.start, robust_limit(ends.start, least=_LIMIT, times=6, within=3),
                lambda i: _words(_AT_START, ends.at_start[i]), step=np.zeros(len(ends.start), np.int64),
                unit="deviations",
            ),
            "reversed": _reversed(part),
        }  # fmt: skip
        if (part["success"] >= 0).any():
            found["success_contradicted"] = _contradicted(part, fitted.length)
        return found


_AT_END = (
    "still moving",
    "few steps",
    "a short path",
    "few gripper commands",
    "another gripper command",
    "another place",
)
_AT_START = ("moving at once", "another gripper command", "another place")


@dataclass(frozen=True, eq=False)
class _Ends:
    """Deviations of every episode from those of its task.

    Attributes:
        at_end: (n, 6), those that a cut end has, each 0 or more, named by `_AT_END`. at_start: (n, 3), as `_AT_START`.
        cut, start: (n,), all of them together.
        any: (n,), together, in either direction.
    """

    at_end: Floats
    at_start: Floats
    cut: Floats
    start: Floats
    any: Floats

    @classmethod
    def of(cls, part: Part, length: float, peers: NDArray[np.bool_] | None = None) -> _Ends:
        task, width = part["task"], part["first"].shape[1]
        log_steps, log_path = np.log(part["steps"]), np.log(part["path"] + 0.5)
        amounts = np.column_stack([part["speed"], log_steps, log_path, part["toggles"]])
        z = deviations(amounts, task, np.array([0.15, 0.15, 0.12, 0.15, 0.5]), peers)
        places = np.column_stack([part["first"], part["last"], part["grip"], part["net"]])
        floors = np.concatenate([np.full(2 * width, 0.03), [0.3, 0.3], np.full(3, 0.03 * length)])
        far = np.abs(deviations(places, task, floors, peers))
        first, last, net = (
            far[:, columns].max(axis=1, initial=0.0)
            for columns in (slice(0, width), slice(width, 2 * width), slice(2 * width + 2, None))
        )
        more, less = np.maximum(z, 0), np.maximum(-z, 0)
        grips, elsewhere = far[:, 2 * width : 2 * width + 2], np.maximum(last, net)
        at_end = np.column_stack([more[:, 1], less[:, 2:], grips[:, 1], elsewhere])
        at_start = np.column_stack([more[:, 0], grips[:, 0], first])
        # one deviation alone hardly decides, and an episode is not cut unless it is shorter, too
        shorter = np.clip(0.4 + 0.3 * np.maximum(at_end[:, 1], at_end[:, 2]), 0, 1)
        either = np.column_stack([np.abs(z[:, 1:]), grips[:, 1], elsewhere])
        return cls(
            at_end, at_start, _length(np.minimum(at_end, 4)) * shorter,
            _length(np.minimum(at_start, [5, 5, 10])), _length(np.minimum(either, 8)),
        )  # fmt: skip


def _length(vectors: Floats) -> Floats:
    return np.asarray(np.sqrt((vectors**2).sum(axis=1)))


def _words(names: tuple[str, ...], values: Floats) -> str:
    order = [int(k) for k in np.argsort(-values) if values[k] >= 1.5][:3]
    return ", ".join(names[k] for k in order)


def _reversed(part: Part) -> Judgement:
    """Episodes that start away from where the others of their task start, and end there."""
    width = part["first"].shape[1] + 1
    first = np.column_stack([part["first"], part["grip"][:, :1]])
    last = np.column_stack([part["last"], part["grip"][:, 1:]])
    middle, spread = normal(first, np.full(width, 0.05))
    start, end = (np.minimum(np.abs(side - middle) / spread, 8) for side in (first, last))
    tell = np.median(end, axis=0) > 2
    value = (start - end)[:, tell].mean(axis=1) if tell.any() else np.full(len(first), np.nan)
    limit = _BACKWARDS if len(first) >= _FEWEST else np.inf
    return judged(value, limit, lambda i: "it starts where others end, and ends where they start", unit="deviations")


def _contradicted(part: Part, length: float) -> Judgement:
    """Flags of success on episodes that end unlike all other successes, and of failure on those that end like them."""
    flag = part["success"]
    good = flag == 1
    ends = _Ends.of(part, length, good)
    cut = np.where(good, ends.cut, np.nan)
    usual = float(np.median(part["path"]))
    still = np.where(good, usual / np.maximum(part["path"], 1e-3 * usual + 1e-9), np.nan)
    tests: list[Test] = [(cut, robust_limit(cut, least=_CUT, within=5)), (still, 20.0 if usual > 0 else np.inf)]
    alike = np.full(len(flag), np.nan)
    if good.sum() >= 2 * _FEWEST and (flag == 0).any():
        among = np.sort(ends.any[good])
        # the share of the successes that differ more from each other
        alike[flag == 0] = 1 - np.searchsorted(among, ends.any[flag == 0]) / len(among)
        # failures that mostly look like successes cannot be distinguished by their numbers
        rare = (flag == 0).sum() < 0.25 * good.sum()
        telling = float(np.mean(alike[flag == 0] > _ALIKE)) < 0.3
        tests.append((alike, _ALIKE if rare or telling else np.inf))
    value, limit, which = worst(tests)

    def words(i: int) -> str:
        if which[i] == 2:
            return f"failure, but {alike[i]:.0%} of the successes differ more from each other"
        if which[i] == 1:
            return "success, but it hardly moves"
        return f"success, but {_words(_AT_END, ends.at_end[i])}"

    return judged(value, limit, words, unit="deviations")
