"""Weights from variety: OpenVLA's principle (less repetitive data, more varied data) as a closed form.

With E episodes of median length L, an effective number of tasks and of scenes, a coverage c of the action range and a
share d of near-duplicates:

    quantity_i = E sqrt(L)                              steps of one episode resemble each other
    variety_i  = sqrt(tasks_i scenes_i) c_i (1 - d_i)   approximate number of different situations
    share_i    ~ sqrt(quantity_i variety_i)             between "by size" and "by variety"
    weight_i   = share_i / steps_i, scaled to the size of one pass, at most `MAX_WEIGHT`

Twice the episodes of the same tasks in the same scenes raise a share by sqrt(2); twice the episodes with as many new
tasks and scenes double it. docs/decisions/weights.md has the assumptions and limits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from oxe_curate.errors import ConfigError
from oxe_curate.mixture.shares import weights_for_shares
from oxe_curate.mixture.survey import Survey

MAX_WEIGHT = 3.0
"""The largest proposed weight, as in OpenVLA's Magic Soup: more copies would be memorised."""
_NO_VARIETY = 1.5
"""A data set whose effective numbers of tasks and of scenes are both below this has no variety."""


@dataclass(frozen=True)
class DiversityWeight:
    """A weight and the numbers it is computed from.

    Attributes:
        weight: None if the data set should be removed.
        variety: effective number of situations.
        quantity: episodes times the square root of their length.
        reason: one sentence with the numbers.
    """

    weight: float | None
    variety: float
    quantity: float
    reason: str


def variety_of(survey: Survey) -> float:
    """The approximate number of different situations in a data set."""
    situations = np.sqrt(survey.effective_tasks * survey.effective_scenes)
    return float(situations * survey.coverage * (1 - survey.duplicates))


def quantity_of(survey: Survey) -> float:
    """The amount of data: an episode of L steps counts as sqrt(L)."""
    return float(survey.episodes * np.sqrt(survey.median_steps))


def weights(surveys: Mapping[str, Survey], one_pass: float | None = None) -> dict[str, DiversityWeight]:
    """Weights of data sets from their surveys.

    Args:
        surveys: name -> survey.
        one_pass: samples in one pass of the mixture, before weights are limited; None: the number of steps.

    Raises:
        ConfigError: no data set.
    """
    if not surveys:
        raise ConfigError("no data set to compute weights for: the index keeps no episode")
    variety = {name: variety_of(survey) for name, survey in surveys.items()}
    quantity = {name: quantity_of(survey) for name, survey in surveys.items()}
    kept = [name for name, survey in surveys.items() if variety[name] > 0 and not _has_no_variety(survey)]
    kept = kept or list(surveys)  # all of them lack variety
    steps = np.array([surveys[name].steps for name in kept], np.float64)
    shares = np.sqrt([quantity[name] * max(variety[name], 1e-9) for name in kept])
    total = float(steps.sum())
    by_size = 1.0 if one_pass is None else one_pass / total  # everyone's weight if shares are by size
    raw = dict(zip(kept, weights_for_shares(shares, steps, total * by_size).tolist(), strict=True))
    result = {}
    for name, survey in surveys.items():
        # four digits are more than precise enough
        weight = float(f"{min(raw[name], MAX_WEIGHT):.4g}") if name in raw else None
        reason = _reason(name, survey, variety[name], weight, raw.get(name, 0.0) / by_size)
        result[name] = DiversityWeight(weight, variety[name], quantity[name], reason)
    return result


def _has_no_variety(survey: Survey) -> bool:
    return survey.effective_tasks < _NO_VARIETY and survey.effective_scenes < _NO_VARIETY


def _reason(name: str, survey: Survey, variety: float, weight: float | None, relative: float) -> str:
    facts = (
        f"{_count(survey.episodes, 'episode')} of {survey.median_steps:g} steps with {_count(survey.tasks, 'task')} "
        f"(as varied as {survey.effective_tasks:.3g} equally frequent ones), about {survey.effective_scenes:.2g} "
        f"different scenes in {_count(survey.sampled, 'first frame')}, actions that cover {100 * survey.coverage:.0f} "
        f"% of their range, and {100 * survey.duplicates:.0f} % near-duplicates"
    )
    if weight is None:
        return f"{name} is removed, for lack of variety: {facts}."
    often = "as often as" if f"{relative:.2f}" == "1.00" else f"{relative:.2g} times as often as"
    cap = f", limited to {MAX_WEIGHT:g} copies" if weight == MAX_WEIGHT else ""
    makes = f"amount to {variety:.3g} situations in {_count(survey.steps, 'step')}"
    return f"{name} is drawn {often} by size only{cap}: {facts} {makes}."


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"
