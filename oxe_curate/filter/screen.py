"""Criteria that need the source or the card: pure functions of one episode, applied while a shard is scanned.

The index records which of them apply, whether or not they are on, so that `decisions.py` can decide later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from oxe_curate.episode import Trajectory
from oxe_curate.filter.criteria import Criteria
from oxe_curate.filter.frames import FrameLook
from oxe_curate.registry.card import THIRD_PERSON, DatasetCard
from oxe_curate.rlds.example import Span
from oxe_curate.rlds.reader import RawEpisode


@dataclass(frozen=True, slots=True)
class Candidate:
    """The data that a criterion may use.

    Attributes:
        trajectory: None if the card has no recipe.
        look: checks single frames; None without a shard.
        dark: the answer of `no_third_person_camera`, None if nobody has looked yet.
    """

    card: DatasetCard
    episode: RawEpisode
    trajectory: Trajectory | None
    look: FrameLook | None = None
    dark: bool | None = None


def third_person_camera(candidate: Candidate, level: int) -> Span | None:
    """The frames of the first third-person camera that is not black in this episode."""
    for key, camera in candidate.card.cameras.items():
        if camera.role in THIRD_PERSON:
            span = candidate.episode.cameras.get(key)
            if span is not None and span.length > 0 and (candidate.look is None or candidate.look.shows(span, level)):
                return span
    return None


def no_third_person_camera(candidate: Candidate, criteria: Criteria) -> bool:
    """No third-person camera, or only black ones."""
    if candidate.dark is not None:
        return candidate.dark
    return third_person_camera(candidate, criteria.black_level) is None


def not_single_arm(candidate: Candidate, criteria: Criteria) -> bool:
    """Two arms, none, or a human's."""
    return not candidate.card.is_single_arm


def not_end_effector(candidate: Candidate, criteria: Criteria) -> bool:
    """Joint, navigation or other actions."""
    return not candidate.card.is_end_effector or candidate.trajectory is None


def failed(candidate: Candidate, criteria: Criteria) -> bool:
    """The card's own filters, such as kuka's success flag, reject the episode."""
    metadata = candidate.episode.metadata
    return not all(rule.accepts(find_metadata(metadata, rule.field)) for rule in candidate.card.episode_filters)


def not_finite(candidate: Candidate, criteria: Criteria) -> bool:
    """A NaN or infinity in the action or proprio."""
    trajectory = candidate.trajectory
    return trajectory is not None and not (
        np.isfinite(trajectory.action).all() and np.isfinite(trajectory.proprio).all()
    )


def no_language(candidate: Candidate, criteria: Criteria) -> bool:
    """No step has an instruction (OpenVLA keeps an episode if any step has one)."""
    return candidate.trajectory is not None and not candidate.trajectory.instructions


def bad_image(candidate: Candidate, criteria: Criteria) -> bool:
    """A frame of any camera of the card cannot be decoded; not looked for unless the criterion is on."""
    look = candidate.look
    if look is None or not criteria.bad_image:
        return False
    return any(look.undecodable(span) for span in candidate.episode.cameras.values())


CRITERIA: dict[str, Callable[[Candidate, Criteria], bool]] = {
    check.__name__: check
    for check in (no_third_person_camera, not_single_arm, not_end_effector, failed, not_finite, no_language, bad_image)
}


def screen(candidate: Candidate, criteria: Criteria) -> tuple[str, ...]:
    """The criteria that the episode does not meet, whether or not they are on."""
    return tuple(name for name, check in CRITERIA.items() if check(candidate, criteria))


def success(candidate: Candidate) -> bool | None:
    """The card's success flag: of the episode, or of its last step; None if it is not stored."""
    key = candidate.card.success_key
    flag = find_flag(candidate.episode, key) if key else None
    return None if flag is None else bool(flag)


def find_metadata(metadata: dict[str, Any], field: str) -> Any:
    """A value outside the steps, named with or without the prefix `episode_metadata/`."""
    value = metadata.get(field, metadata.get(f"episode_metadata/{field}"))
    if isinstance(value, np.generic):
        value = value.item()
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def find_flag(episode: RawEpisode, key: str) -> Any:
    """A flag of the episode, or of its last step; None if it is not stored."""
    if key in episode.steps:
        values = episode.steps[key]
        return bool(np.all(values[-1])) if len(values) else None
    return find_metadata(episode.metadata, key)
