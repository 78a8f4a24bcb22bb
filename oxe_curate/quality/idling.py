"""Stretches in which nothing moves, longer than usual for the data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from oxe_curate.quality.episodes import EpisodeBatch
from oxe_curate.quality.limits import robust_limit
from oxe_curate.quality.measure import Judgement, Part
from oxe_curate.quality.scales import Scales, full_turns_removed
from oxe_curate.quality.segments import head_each, peak_each, runs
from oxe_curate.quality.verdict import judged

_STILL = 0.05
"""Share of a large but usual motion below which an action is still."""


@dataclass(frozen=True)
class Idling:
    """`idle_start`, `idle_middle` and `idle_end`: steps without motion of pose, gripper or state."""

    criteria: tuple[str, ...] = ("idle_start", "idle_middle", "idle_end")
    columns: frozenset[str] = frozenset({"proprio"})

    def fit(self, sample: EpisodeBatch) -> Scales:
        """The usual sizes."""
        return Scales.of(sample)

    def part(self, batch: EpisodeBatch, fitted: Scales) -> Part:
        """The longest still stretch at the start, at the end and in between."""
        starts = batch.starts
        still = np.abs(batch.actions[:6] / fitted.motion[:, None]).max(axis=0) < _STILL
        grip = np.abs(np.diff(batch.actions[6], prepend=0)) < _STILL
        grip[starts[:-1]] = True
        still &= grip
        used = fitted.state_step > 0
        if used.any():
            change = np.abs(full_turns_removed(batch.state_steps[used])) / fitted.state_step[used][:, None]
            still &= change.max(axis=0) < 4 * _STILL
        lengths = runs(still, starts)
        head = head_each(still, starts)
        tail = lengths[starts[1:] - 1]
        inner = lengths.copy()
        inner[batch.place < np.repeat(head, batch.lengths)] = 0
        inner[batch.left < np.repeat(tail, batch.lengths)] = 0
        middle, at = peak_each(inner, starts)
        return {"start": head, "middle": middle, "at": at - middle + 1, "end": np.where(head == batch.lengths, 0, tail),
                "steps": batch.lengths}  # fmt: skip

    def judge(self, part: Part, fitted: Scales) -> Mapping[str, Judgement]:
        """Compare every episode with the others."""
        least = max(3.5, 0.12 * fitted.length)
        where = {"start": np.zeros_like(part["at"]), "middle": part["at"], "end": part["steps"] - part["end"]}
        found = {}
        for name, step in where.items():
            value = part[name].astype(float)
            limit = robust_limit(value, least=least, within=2)
            found[f"idle_{name}"] = judged(value, limit, lambda i: "", step=step, unit="steps")
        return found
