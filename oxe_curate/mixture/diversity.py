"""Weights from variety: OpenVLA's principle (less of what repeats itself, more of what varies) as a closed form.

With E episodes of median length L, an effective number of tasks and of scenes, a coverage c of the action range and a
share d of near-duplicates:

    quantity_i = E sqrt(L)                              steps of one episode resemble each other
    variety_i  = sqrt(tasks_i scenes_i) c_i (1 - d_i)   about how many different situations there are
    share_i    ~ sqrt(quantity_i variety_i)             in between "by size" and "by variety"
    weight_i   = share_i / steps_i, times what keeps one pass as large as asked, at most `MOST`

Twice the episodes of the same tasks in the same scenes raise a share by sqrt(2); twice the episodes with as many new
tasks and scenes double it. See docs/decisions/weights.md for what this assumes and where it fails.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from oxe_curate.errors import ConfigError
from oxe_curate.mixture.shares import weights_for_shares
from oxe_curate.mixture.survey import Survey

MOST = 3.0
"""The largest weight proposed, as in OpenVLA's Magic Soup: more copies are learnt by heart."""
NOTHING_VARIES = 1.5
"""A data set whose effective numbers of tasks and of scenes are both below this shows one thing only."""


@dataclass(frozen=True)
class DiversityWeight:
    """A weight and the numbers behind it.

    Attributes:
        weight: None where the data set should be left out.
        variety: effective number of situations. quantity: episodes times the root of their length.
        reason: one sentence with the numbers.
    """

    weight: float | None
    variety: float
    quantity: float
    reason: str


def variety_of(survey: Survey) -> float:
    """About how many different situations a data set shows."""
    situations = np.sqrt(survey.effective_tasks * survey.effective_scenes)
    return float(situations * survey.coverage * (1 - survey.duplicates))


def quantity_of(survey: Survey) -> float:
    """How much there is of it: an episode of L steps counts as sqrt(L)."""
    return float(survey.episodes * np.sqrt(survey.median_steps))


def weights(surveys: Mapping[str, Survey], one_pass: float | None = None) -> dict[str, DiversityWeight]:
    """Weights of data sets by their surveys.

    Args:
        surveys: name -> survey.
        one_pass: samples in one pass of the mixture, before the cap; None: as many as there are steps.

    Raises:
        ConfigError: there is no data set.
    """
    if not surveys:
        raise ConfigError("there is no data set to weigh: the index keeps no episode")
    variety = {name: variety_of(survey) for name, survey in surveys.items()}
    quantity = {name: quantity_of(survey) for name, survey in surveys.items()}
    kept = [name for name, survey in surveys.items() if variety[name] > 0 and not _shows_one_thing(survey)]
    kept = kept or list(surveys)  # a single task in a single scene is better than nothing
    steps = np.array([surveys[name].steps for name in kept], np.float64)
    shares = np.sqrt([quantity[name] * max(variety[name], 1e-9) for name in kept])
    total = float(steps.sum())
    by_size = 1.0 if one_pass is None else one_pass / total  # the weight that all have if only size counts
    raw = dict(zip(kept, weights_for_shares(shares, steps, total * by_size).tolist(), strict=True))
    result = {}
    for name, survey in surveys.items():
        # no one weighs to a millionth
        weight = float(f"{min(raw[name], MOST):.4g}") if name in raw else None
        reason = _reason(name, survey, variety[name], weight, raw.get(name, 0.0) / by_size)
        result[name] = DiversityWeight(weight, variety[name], quantity[name], reason)
    return result


def _shows_one_thing(survey: Survey) -> bool:
    return survey.effective_tasks < NOTHING_VARIES and survey.effective_scenes < NOTHING_VARIES


def _reason(name: str, survey: Survey, variety: float, weight: float | None, relative: float) -> str:
    facts = (
        f"{_count(survey.episodes, 'episode')} of {survey.median_steps:g} steps with {_count(survey.tasks, 'task')} "
        f"(as varied as {survey.effective_tasks:.3g} equally frequent ones), about {survey.effective_scenes:.2g} "
        f"different scenes in {_count(survey.sampled, 'first frame')}, actions that fill {100 * survey.coverage:.0f} % "
        f"of their range and {100 * survey.duplicates:.0f} % near-duplicates"
    )
    if weight is None:
        return f"{name} is left out: {facts} show one thing only."
    often = "as often as" if f"{relative:.2f}" == "1.00" else f"{relative:.2g} times as often as"
    cap = f", held to {MOST:g} copies" if weight == MOST else ""
    makes = f"make {variety:.3g} situations for {_count(survey.steps, 'step')}"
    return f"{name} is drawn {often} by its size alone{cap}: {facts} {makes}."


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"
