"""States that jump, do not follow a moving action, are noisy, or are outside the data set's workspace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from oxe_curate.quality.episodes import EpisodeBatch
from oxe_curate.quality.limits import robust_limit
from oxe_curate.quality.measure import Judgement, Part
from oxe_curate.quality.scales import Scales, full_turns_removed
from oxe_curate.quality.segments import max_each, min_each, peak_each, runs, sum_each
from oxe_curate.quality.verdict import factor_limit, judged, worst


@dataclass(frozen=True)
class StateValues:
    """`state_jump`, `frozen_state`, `noisy_state` and `state_offset`."""

    criteria: tuple[str, ...] = ("state_jump", "frozen_state", "noisy_state", "state_offset")
    columns: frozenset[str] = frozenset({"proprio"})

    def fit(self, sample: EpisodeBatch) -> Scales:
        """The usual sizes."""
        return Scales.of(sample)

    def part(self, batch: EpisodeBatch, fitted: Scales) -> Part:
        """Extremes of each episode, of the columns that vary in the data set."""
        used = fitted.state_step > 1e-6 * np.maximum(np.abs(fitted.state_low), np.abs(fitted.state_high))
        if not used.any():
            return {"steps": batch.lengths}
        starts = batch.starts
        unit = fitted.state_step[used][:, None]
        change = np.clip(full_turns_removed(batch.state_steps[used]) / unit, -1e4, 1e4)
        size = np.abs(change)
        jump, jump_at = peak_each(size.max(axis=0), starts)
        column = np.flatnonzero(used)[size[:, starts[:-1] + jump_at].argmax(axis=0)]
        moving = np.abs(batch.actions[:6] / fitted.motion[:, None]).max(axis=0) > 0.1
        frozen = moving & (size.max(axis=0) < 1e-4) & (batch.left > 0)
        run, run_at = peak_each(runs(frozen, starts), starts)
        bend = np.abs(np.diff(change, axis=1, prepend=0))
        bend[:, (batch.place == 0) | (batch.left == 0)] = 0
        span = np.maximum(fitted.state_high - fitted.state_low, fitted.state_step)[used][:, None]
        low, high = fitted.state_low[used][:, None], fitted.state_high[used][:, None]
        state = batch.states[used]
        beyond = np.maximum((max_each(state, starts) - high) / span, (low - min_each(state, starts)) / span)
        return {
            "steps": batch.lengths, "jump": jump, "jump_at": jump_at, "column": column, "frozen": run,
            "frozen_at": run_at - run + 1, "rough": sum_each(bend, starts).T, "beyond": np.maximum(beyond, 0).T,
        }  # fmt: skip

    def judge(self, part: Part, fitted: Scales) -> Mapping[str, Judgement]:
        """Compare every episode with the others."""
        if "jump" not in part:
            return {}
        column = part["column"]
        jump = part["jump"].astype(float)
        jumps = judged(
            jump, factor_limit(jump, least=4.0, times=8, within=3), lambda i: f"proprio {column[i]}",
            step=part["jump_at"], unit="times a large step",
        )  # fmt: skip
        run = part["frozen"].astype(float)
        frozen = judged(
            run, robust_limit(run, least=max(3.5, 0.08 * fitted.length)), lambda i: f"for {run[i]:.0f} steps",
            step=part["frozen_at"], unit="steps",
        )  # fmt: skip
        rough = part["rough"] / np.maximum(part["steps"][:, None] - 2, 1)
        usual = np.median(rough, axis=0)
        # a column that rarely moves has no usual roughness
        rough = np.where(usual > 0.05, rough / np.maximum(usual, 0.05), np.nan)
        value, limit, which = worst([(r, factor_limit(r, least=4.0 + 24 / fitted.length, within=2.5)) for r in rough.T])
        columns = np.flatnonzero(fitted.state_step > 1e-6 * np.maximum(abs(fitted.state_low), abs(fitted.state_high)))
        noise = judged(value, limit, lambda i: f"proprio {columns[which[i]]}", unit="times the usual roughness")
        beyond = part["beyond"].astype(float)
        far = beyond.max(axis=1)
        offset = judged(
            far, robust_limit(far, least=1.5, within=4), lambda i: f"proprio {columns[beyond[i].argmax()]}",
            unit="of the usual range outside it",
        )  # fmt: skip
        return dict(zip(self.criteria, (jumps, frozen, noise, offset), strict=True))
