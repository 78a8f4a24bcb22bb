"""Actions that no robot of the data set performs: far outside, single peaks, repeated, clipped, rough."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oxe_curate.quality.episodes import EpisodeBatch
from oxe_curate.quality.explained import AXES
from oxe_curate.quality.limits import robust_limit
from oxe_curate.quality.measure import Judgement, Part
from oxe_curate.quality.scales import Scales
from oxe_curate.quality.segments import delayed, max_each, peak_each, runs, sum_each
from oxe_curate.quality.verdict import factor_limit, judged, worst

_TURN = 2 * np.pi


@dataclass(frozen=True)
class ActionValues:
    """Six criteria of the actions' values, from `action_outlier` to `gripper_flicker`, and `missing_actions`."""

    criteria: tuple[str, ...] = (
        "action_outlier", "action_spike", "repeated_actions", "saturated_actions", "noisy_actions", "gripper_flicker",
        "missing_actions",
    )  # fmt: skip
    columns: frozenset[str] = frozenset()

    def fit(self, sample: EpisodeBatch) -> Scales:
        """The usual sizes."""
        return Scales.of(sample)

    def part(self, batch: EpisodeBatch, fitted: Scales) -> Part:
        """Extremes and counts of each episode."""
        scaled, starts = batch.actions / fitted.size[:, None], batch.starts
        outside = np.abs(scaled - np.clip(scaled, *((v / fitted.size)[:, None] for v in (fitted.low, fitted.high))))
        out, out_at = peak_each(outside.max(axis=0), starts)
        out_axis = outside[:, starts[:-1] + out_at].argmax(axis=0)
        pose = np.clip(scaled[:6], -1e3, 1e3)
        peak = _peaks(pose, batch)
        spike, spike_at = peak_each(peak.max(axis=0), starts)
        spike_axis = peak[:, starts[:-1] + spike_at].argmax(axis=0)
        change = np.zeros_like(pose)
        np.subtract(pose[:, 1:], pose[:, :-1], out=change[:, 1:])
        change[:, starts[:-1]] = 0
        moving = np.abs(batch.actions[:6] / fitted.motion[:, None]).max(axis=0) > 0.05
        low, high = fitted.low[:6] / fitted.size[:6] + 1e-3, fitted.high[:6] / fitted.size[:6] - 1e-3
        # a controller at its limit commands the same again and again
        free = (pose > low[:, None]) & (pose < high[:, None]) & (np.abs(pose) > 0.02)
        same = moving & free.any(axis=0) & (np.abs(change).max(axis=0) < 1e-4) & (batch.place > 0)
        longest, at = peak_each(runs(same, starts), starts)
        zero = ~batch.actions[:6].any(axis=0)
        lost = zero & delayed(moving, 1, batch)
        held = sum_each(same, starts)
        again = _again(pose, moving & free.any(axis=0), batch)
        bend = np.abs(np.diff(change, axis=1, prepend=0))
        bend[:, batch.place < 2] = 0
        size = np.abs(pose)
        rough = [
            sum_each(values[group].sum(axis=0), starts)
            for values in (bend, size)
            for group in (slice(0, 3), slice(3, 6))
        ]
        toggles = np.abs(np.diff(batch.actions[6], prepend=0)) > 0.3
        toggles[starts[:-1]] = False
        return {
            "out": out, "out_at": out_at, "out_axis": out_axis, "spike": spike, "spike_at": spike_at,
            "spike_axis": spike_axis, "same": longest, "same_at": at - longest, "again": again, "held": held,
            "moving": sum_each(moving, starts), "rough": np.array(rough).T, "toggles": sum_each(toggles, starts),
            "lost": sum_each(lost, starts), "lost_at": peak_each(lost, starts)[1],
            "clipped": _at_ends(pose, batch, low, high), "bound": sum_each(moving & ~free.any(axis=0), starts),
            "steps": batch.lengths,
        }  # fmt: skip

    def judge(self, part: Part, fitted: Scales) -> Mapping[str, Judgement]:
        """Compare every episode with the others."""
        steps, moving = part["steps"].astype(float), part["moving"]
        axis = part["out_axis"]
        out = part["out"].astype(float)
        far = judged(
            out, robust_limit(out, least=2.5, times=10), lambda i: _far((*AXES, "gripper")[axis[i]], out[i]),
            step=part["out_at"], unit="of the usual range",
        )  # fmt: skip
        spike = part["spike"].astype(float)
        peaks = judged(
            spike, robust_limit(spike, least=0.75, times=10), lambda i: f"{AXES[part['spike_axis'][i]]}: a single step",
            step=part["spike_at"], unit="of the usual range",
        )  # fmt: skip
        run = part["same"] + 1.0
        share = np.where(part["again"] >= 2, part["again"] / np.maximum(moving, 1), 0.0)
        held = np.where(part["held"] >= 4, part["held"] / np.maximum(moving, 1), 0.0)
        value, limit, kinds = worst([
            (run, robust_limit(run, least=4.5, within=2)), (share, robust_limit(share, least=0.15, within=2)),
            (held, robust_limit(held, least=0.25, within=2)),
        ])  # fmt: skip

        def repeats(i: int) -> str:
            if kinds[i] == 0:
                return f"{run[i]:.0f} equal actions in a row"
            what = "are those of other steps" if kinds[i] == 1 else "are equal to the step before"
            return f"{(share, held)[kinds[i] - 1][i]:.0%} of the moving steps {what}"

        repeated = judged(
            value, limit, repeats, step=np.where(kinds == 0, np.maximum(part["same_at"], 0), -1), unit="steps"
        )
        clipped = part["clipped"]
        most = np.where(clipped.max(axis=1) >= 3, clipped.max(axis=1) / steps, 0.0)
        bound = part["bound"] / np.maximum(moving, 1)
        tests = [(most, robust_limit(most, least=0.1, within=2)), (bound, robust_limit(bound, least=0.3))]
        value, limit, which = worst(tests)
        ends = judged(
            value, limit,
            lambda i: f"{bound[i]:.0%} of the moving steps are at the data set's largest values" if which[i]
            else f"{AXES[int(clipped[i].argmax()) % 6]}: {most[i]:.0%} of the steps have the episode's largest value",
            unit="of the steps",
        )  # fmt: skip
        bend, size = part["rough"][:, :2], part["rough"][:, 2:]
        each = size / steps[:, None]
        # an episode that hardly turns is all noise there
        rough = bend / np.maximum(steps[:, None] * (each + 0.5 * np.median(each, axis=0)), 1e-30)
        usual = np.median(rough, axis=0)
        times = np.where((usual > 0) & (steps[:, None] > 4), rough / np.maximum(usual, 1e-30), np.nan)
        value, limit, group = worst([(t, factor_limit(t, least=2.1, within=1.5)) for t in times.T])
        noise = judged(
            value, limit, lambda i: f"{('position', 'rotation')[group[i]]}: rough", unit="times the usual roughness"
        )
        toggles = part["toggles"]
        flicker = judged(
            toggles, robust_limit(toggles, least=6.5), lambda i: f"it changes {toggles[i]:.0f} times", unit="changes"
        )
        gaps = np.where(part["lost"] >= 3, part["lost"] / steps, 0.0)
        missing = judged(
            gaps, robust_limit(gaps, least=0.08 + 1 / fitted.length, within=2),
            lambda i: f"it stops for a moment {part['lost'][i]:.0f} times", step=part["lost_at"], unit="of the steps",
        )  # fmt: skip
        return dict(zip(self.criteria, (far, peaks, repeated, ends, noise, flicker, missing), strict=True))


def _far(axis: str, value: float) -> str:
    return f"{axis}: {min(value, 1e6):.3g} times the usual range outside it"


def _peaks(pose: NDArray[np.float32], batch: EpisodeBatch) -> NDArray[np.float32]:
    """(6, N): how far each value is outside its two neighbours, less 0.7 of the larger of them; 0 at the ends."""
    out = np.zeros_like(pose)
    left, here, right = pose[:, :-2], pose[:, 1:-1], pose[:, 2:]
    high, low = np.maximum(left, right), np.minimum(left, right)
    # a short movement has neighbours of a similar size
    np.subtract(np.maximum(here - high, low - here), 0.7 * np.maximum(high, -low), out=out[:, 1:-1])
    out[:, (batch.place == 0) | (batch.left == 0)] = 0
    return np.maximum(out, 0)


def _again(pose: NDArray[np.float32], moving: NDArray[np.bool_], batch: EpisodeBatch) -> NDArray[np.float64]:
    """(n,): moving steps that, with their next one, have the pose actions of two other steps, to a thousandth.

    Two in a row, since a profile that accelerates and decelerates alike has every action twice.
    """
    at = np.flatnonzero(moving[:-1] & moving[1:] & (batch.left[:-1] > 0))
    primes = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63,
                       0x27D4EB2F165667C5, 0xFF51AFD7ED558CCD], np.uint64)  # fmt: skip
    key = np.zeros(len(at), np.uint64)
    for step in (0, 1):
        grid = np.round(pose[:, at + step] * 1e3).astype(np.int64).view(np.uint64)
        key = key * np.uint64(0x9FB21C651E98DF25) + (grid * primes[:, None]).sum(axis=0, dtype=np.uint64)
    key += batch.episode[at].astype(np.uint64) * np.uint64(0xC4CEB9FE1A85EC53)
    order = np.argsort(key)
    equal = key[order][1:] == key[order][:-1]
    twice = np.zeros(len(at), bool)
    twice[order[1:][equal]] = True
    twice[order[:-1][equal]] = True
    return np.bincount(batch.episode[at][twice], minlength=len(batch)).astype(np.float64)


def _at_ends(
    pose: NDArray[np.float32], batch: EpisodeBatch, low: NDArray[np.float32], high: NDArray[np.float32]
) -> NDArray[np.float64]:
    """(n, 12): steps at the episode's own largest and smallest value of each axis.

    0 if that is near zero, or the data set's bound, which is the controller's.
    """
    counts = []
    for row, bound in ((pose, high), (-pose, -low)):
        top = max_each(row, batch.starts)
        at = row >= np.repeat(top - 1e-4, batch.lengths, axis=1)
        count = sum_each(at, batch.starts)
        counts.append(np.where((top > 0.05) & (np.abs(top - bound[:, None]) > 2e-3), count - 1, 0))
    return np.concatenate(counts).T


@dataclass(frozen=True)
class FullTurns:
    """`full_turn`: an angle of the action or the state jumps by 2 pi."""

    criteria: tuple[str, ...] = ("full_turn",)
    columns: frozenset[str] = frozenset({"proprio"})

    def fit(self, sample: EpisodeBatch) -> Scales:
        """The usual sizes."""
        return Scales.of(sample)

    def part(self, batch: EpisodeBatch, fitted: Scales) -> Part:
        """How often each episode jumps, and where first."""
        turn = np.asarray((np.abs(np.abs(batch.actions[3:6]) - _TURN) < 0.7).any(axis=0))
        angles = (fitted.state_step > 0) & (fitted.state_step < 1)
        step = np.abs(np.abs(batch.state_steps[angles]) - _TURN) < 0.35
        if step.any():
            before = batch.states[angles]
            after = before + batch.state_steps[angles]
            # from one end of -pi..pi or 0..2 pi to the other, the angle is the same
            wrapped = (np.maximum(np.abs(before), np.abs(after)) < np.pi + 0.05) | (
                (np.minimum(before, after) > -0.05) & (np.maximum(before, after) < _TURN + 0.05)
                & bool((fitted.state_high[angles] > np.pi + 0.3).any())
            )  # fmt: skip
            turn |= (step & ~wrapped).any(axis=0)
        count, at = sum_each(turn, batch.starts), peak_each(turn, batch.starts)[1]
        return {"count": count, "at": at}

    def judge(self, part: Part, fitted: Scales) -> Mapping[str, Judgement]:
        """An episode that jumps, unless a fifth of the data set's do."""
        count = part["count"]
        usual = float(np.mean(count > 0)) > 0.2
        limit = np.inf if usual else 0.5
        return {"full_turn": judged(count, limit, lambda i: "an angle jumps by 2 pi", step=part["at"], unit="jumps")}
