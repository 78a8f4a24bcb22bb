"""Criteria: pure functions that return the reason an episode is dropped, or None.

Each is switched, and given its threshold, in one block (`--criteria FILE`):

    no_third_person_camera: true
    too_short: 10
    no_language: false
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from oxe_curate import config
from oxe_curate.episode import Trajectory
from oxe_curate.registry.card import THIRD_PERSON, DatasetCard
from oxe_curate.rlds.reader import RawEpisode


@dataclass(frozen=True, config=config.STRICT)
class Criteria:
    """What an episode must satisfy; the defaults are OpenVLA's.

    Attributes:
        no_third_person_camera: drop where no camera looks from outside, or its list of frames is empty.
        not_single_arm: drop where the card says anything but one arm.
        not_end_effector: drop where the action is not the end effector's, or the card has no recipe for it.
        failed: drop what the card's episode filters refuse (kuka: success is not true).
        no_language: drop where no step has a text.
        too_short: drop episodes of fewer steps, counted after the recipe's trim; at least 1.
        not_finite: drop where an action or proprio value is NaN or infinite.
    """

    no_third_person_camera: bool = True
    not_single_arm: bool = True
    not_end_effector: bool = True
    failed: bool = True
    no_language: bool = True
    too_short: int = Field(default=1, ge=1)
    not_finite: bool = True


def read_criteria(path: Path | None) -> Criteria:
    """Read a criteria file; None gives the defaults. Raises ConfigError for an unknown criterion or a bad value."""
    return config.build(Criteria, config.read_yaml(path) or {}, str(path)) if path else Criteria()


@plain_dataclass(frozen=True, slots=True)
class Candidate:
    """What a criterion may look at. `trajectory` is None where the card has no recipe."""

    card: DatasetCard
    episode: RawEpisode
    trajectory: Trajectory | None


def no_third_person_camera(candidate: Candidate, criteria: Criteria) -> str | None:
    """No camera of an outside role, or none that has frames in this episode."""
    for key, camera in candidate.card.cameras.items():
        if camera.role in THIRD_PERSON:
            span = candidate.episode.cameras.get(key)
            if span is not None and span.length > 0:
                return None
    return "no_third_person_camera"


def not_single_arm(candidate: Candidate, criteria: Criteria) -> str | None:
    """Two arms, none, or a person's."""
    return None if candidate.card.is_single_arm else "not_single_arm"


def not_end_effector(candidate: Candidate, criteria: Criteria) -> str | None:
    """Joint, navigation or other actions."""
    return None if candidate.card.is_end_effector and candidate.trajectory is not None else "not_end_effector"


def failed(candidate: Candidate, criteria: Criteria) -> str | None:
    """The card's own filters, such as kuka's success flag."""
    for rule in candidate.card.episode_filters:
        if find_metadata(candidate.episode.metadata, rule.field) != rule.equals:
            return "failed"
    return None


def find_metadata(metadata: dict[str, Any], field: str) -> Any:
    """A value outside the steps, named with or without its `episode_metadata/`."""
    value = metadata.get(field, metadata.get(f"episode_metadata/{field}"))
    if isinstance(value, np.generic):
        value = value.item()
    return value.decode() if isinstance(value, bytes) else value


def no_language(candidate: Candidate, criteria: Criteria) -> str | None:
    """No step has a text (OpenVLA keeps an episode when any step has one)."""
    return None if candidate.trajectory is None or candidate.trajectory.instructions else "no_language"


def too_short(candidate: Candidate, criteria: Criteria) -> str | None:
    """Fewer steps than asked for, after the trim."""
    length = candidate.episode.num_steps if candidate.trajectory is None else len(candidate.trajectory)
    return "too_short" if length < criteria.too_short else None


def not_finite(candidate: Candidate, criteria: Criteria) -> str | None:
    """A NaN or an infinity in the action or in proprio."""
    trajectory = candidate.trajectory
    if trajectory is None or (np.isfinite(trajectory.action).all() and np.isfinite(trajectory.proprio).all()):
        return None
    return "not_finite"


CRITERIA: dict[str, Callable[[Candidate, Criteria], str | None]] = {
    check.__name__: check
    for check in (
        no_third_person_camera, not_single_arm, not_end_effector, failed, too_short, not_finite, no_language,
    )
}  # fmt: skip
"""In the order they are asked; an episode gets the first reason that holds."""


def screen(candidate: Candidate, criteria: Criteria) -> str | None:
    """The first reason to drop the episode, or None to keep it."""
    for name, check in CRITERIA.items():
        if getattr(criteria, name) and (reason := check(candidate, criteria)):
            return reason
    return None
