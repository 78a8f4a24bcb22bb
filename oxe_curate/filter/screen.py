"""Criteria: pure functions that return the reason an episode is dropped, or None.

A YAML file (`--criteria FILE`) switches them and sets their thresholds; see `Criteria` for all of them:

    no_third_person_camera: true
    too_short: 10
    no_language: false
    idle: 0.8
    duplicate: true

`action_outlier`, `duplicate` and `near_duplicate` compare episodes: `across.py` decides them when every shard has been
scanned. All others need only the episode itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from oxe_curate import config
from oxe_curate.episode import Trajectory
from oxe_curate.errors import ConfigError
from oxe_curate.filter.frames import FrameLook
from oxe_curate.index.idle import RULES, IdleRule
from oxe_curate.registry.card import THIRD_PERSON, DatasetCard
from oxe_curate.rlds.example import Span
from oxe_curate.rlds.reader import RawEpisode

ACROSS = ("action_outlier", "duplicate", "near_duplicate")
"""Reasons that depend on the other episodes."""


@dataclass(frozen=True, config=config.STRICT)
class Criteria:
    """The conditions for keeping an episode; the defaults are OpenVLA's.

    Attributes:
        no_third_person_camera: drop if there is no third-person camera, or only with missing, empty or black frames.
        black_level: 0 to 255. A frame is black if no block of 8 x 8 pixels reaches this mean brightness; 0 disables the
            check. Flags such as Bridge's `has_image_0` are ignored: some are false although there are images.
        not_single_arm: drop if the card does not list a single arm.
        not_end_effector: drop if the action is not the end effector's, or the card has no recipe for it.
        failed: drop episodes that the card's episode filters reject (kuka: success is not true).
        success_key: with `failed`, also drop if the card's success flag (of the last step, if it is a step feature) is
            not true. OpenVLA does not check it.
        no_language: drop if no step has an instruction.
        too_short: drop episodes with fewer steps, counted after the recipe's trim; at least 1.
        too_long: drop episodes with more steps; null for no limit.
        not_finite: drop if an action or proprio value is NaN or infinite.
        idle: drop if a larger share of the steps is idle by `idle_rule`; null for no limit.
        idle_rule: "libero" or "droid", see `idle.py`.
        drop_idle_frames: a rule by which idle steps are removed from every episode first; null for none.
        bad_image: drop if a frame of a located camera cannot be decoded. Slow: decodes every image.
        action_outlier: drop if a pose value is outside the data set's 1 % .. 99 % range by more than this multiple of
            that range; null for no limit.
        duplicate: true drops an episode whose standardised actions equal those of an earlier one, in any split or data
            set (train comes first, then the lower id); "report" keeps and marks it; false disables the check.
        near_duplicate: also treat as copies episodes of nearly the same length whose image hashes differ by at most
            this many of their 64 bits, 0 to 8; null for exact copies only. Decodes four images per episode.
        allow_leak: allow a mixture to draw from a split with copies of the train split's episodes.
    """

    no_third_person_camera: bool = True
    black_level: int = Field(default=8, ge=0, le=255)
    not_single_arm: bool = True
    not_end_effector: bool = True
    failed: bool = True
    success_key: bool = False
    no_language: bool = True
    too_short: int = Field(default=1, ge=1)
    too_long: int | None = Field(default=None, ge=1)
    not_finite: bool = True
    idle: float | None = Field(default=None, ge=0, le=1)
    idle_rule: IdleRule = "libero"
    drop_idle_frames: IdleRule | None = None
    bad_image: bool = False
    action_outlier: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    duplicate: Literal[True, False, "report"] = "report"
    near_duplicate: int | None = Field(default=None, ge=0, le=8)
    allow_leak: bool = False

    def __post_init__(self) -> None:
        if self.too_long is not None and self.too_long < self.too_short:
            raise ValueError(f"too_long {self.too_long} is below too_short {self.too_short}")
        if self.near_duplicate is not None and self.duplicate is False:
            raise ValueError("near_duplicate needs duplicate: true or report")

    def of_one_episode(self) -> dict[str, Any]:
        """The settings that affect a shard's scan: changing the others does not scan again."""
        decided = asdict(self)
        for name in ("action_outlier", "duplicate", "allow_leak"):
            del decided[name]
        decided["near_duplicate"] = self.near_duplicate is not None  # then images are hashed
        return decided


def read_criteria(path: Path | None, changes: Sequence[str] = ()) -> Criteria:
    """Read a criteria file (None: the defaults) and apply single `key=value` settings on top.

    Raises:
        ConfigError: an unknown criterion or a bad value, with the closest key.
    """
    chosen = (config.read_yaml(path) or {}) if path else {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals or not isinstance(chosen, dict):
            raise ConfigError(f"--criterion {change}: expected KEY=VALUE, such as too_short=10")
        chosen = {**chosen, key.strip(): config.parse_yaml(value, f"--criterion {key}")}
    return config.build(Criteria, chosen, str(path or "--criterion"))


@plain_dataclass(frozen=True, slots=True)
class Candidate:
    """The data that a criterion may use.

    Attributes:
        trajectory: None if the card has no recipe.
        look: checks single frames; None without a shard.
    """

    card: DatasetCard
    episode: RawEpisode
    trajectory: Trajectory | None
    look: FrameLook | None = None


def third_person_camera(candidate: Candidate, level: int) -> Span | None:
    """The frames of the first third-person camera that is not black in this episode."""
    for key, camera in candidate.card.cameras.items():
        if camera.role in THIRD_PERSON:
            span = candidate.episode.cameras.get(key)
            if span is not None and span.length > 0 and (candidate.look is None or candidate.look.shows(span, level)):
                return span
    return None


def no_third_person_camera(candidate: Candidate, criteria: Criteria) -> str | None:
    """No third-person camera, or only black ones."""
    return None if third_person_camera(candidate, criteria.black_level) else "no_third_person_camera"


def not_single_arm(candidate: Candidate, criteria: Criteria) -> str | None:
    """Two arms, none, or a human's."""
    return None if candidate.card.is_single_arm else "not_single_arm"


def not_end_effector(candidate: Candidate, criteria: Criteria) -> str | None:
    """Joint, navigation or other actions."""
    return None if candidate.card.is_end_effector and candidate.trajectory is not None else "not_end_effector"


def failed(candidate: Candidate, criteria: Criteria) -> str | None:
    """The card's own filters, such as kuka's success flag; optionally also its `success_key`."""
    for rule in candidate.card.episode_filters:
        if find_metadata(candidate.episode.metadata, rule.field) != rule.equals:
            return "failed"
    if criteria.success_key and candidate.card.success_key:
        flag = find_flag(candidate.episode, candidate.card.success_key)
        if flag is not None and not flag:
            return "failed"
    return None


def find_metadata(metadata: dict[str, Any], field: str) -> Any:
    """A value outside the steps, named with or without the prefix `episode_metadata/`."""
    value = metadata.get(field, metadata.get(f"episode_metadata/{field}"))
    if isinstance(value, np.generic):
        value = value.item()
    return value.decode() if isinstance(value, bytes) else value


def find_flag(episode: RawEpisode, key: str) -> Any:
    """A flag of the episode, or of its last step; None if it is not stored."""
    if key in episode.steps:
        values = episode.steps[key]
        return bool(np.all(values[-1])) if len(values) else None
    return find_metadata(episode.metadata, key)


def no_language(candidate: Candidate, criteria: Criteria) -> str | None:
    """No step has an instruction (OpenVLA keeps an episode if any step has one)."""
    return None if candidate.trajectory is None or candidate.trajectory.instructions else "no_language"


def _length(candidate: Candidate) -> int:
    return candidate.episode.num_steps if candidate.trajectory is None else len(candidate.trajectory)


def too_short(candidate: Candidate, criteria: Criteria) -> str | None:
    """Fewer steps than the limit, after the trim."""
    return "too_short" if _length(candidate) < criteria.too_short else None


def too_long(candidate: Candidate, criteria: Criteria) -> str | None:
    """More steps than the limit, after the trim."""
    return "too_long" if criteria.too_long is not None and _length(candidate) > criteria.too_long else None


def not_finite(candidate: Candidate, criteria: Criteria) -> str | None:
    """A NaN or infinity in the action or proprio."""
    trajectory = candidate.trajectory
    if trajectory is None or (np.isfinite(trajectory.action).all() and np.isfinite(trajectory.proprio).all()):
        return None
    return "not_finite"


def idle(candidate: Candidate, criteria: Criteria) -> str | None:
    """A larger share of idle steps than the limit."""
    trajectory = candidate.trajectory
    if criteria.idle is None or trajectory is None or not len(trajectory):
        return None
    return "idle" if RULES[criteria.idle_rule](trajectory.action).mean() > criteria.idle else None


def bad_image(candidate: Candidate, criteria: Criteria) -> str | None:
    """A frame of any camera of the card cannot be decoded."""
    look = candidate.look
    if look is None:
        return None
    return "bad_image" if any(look.undecodable(span) for span in candidate.episode.cameras.values()) else None


CRITERIA: dict[str, Callable[[Candidate, Criteria], str | None]] = {
    check.__name__: check
    for check in (
        no_third_person_camera, not_single_arm, not_end_effector, failed, too_short, too_long, not_finite, no_language,
        idle, bad_image,
    )
}  # fmt: skip
"""Criteria of one episode, in order; an episode gets the first reason that applies."""


def screen(candidate: Candidate, criteria: Criteria) -> str | None:
    """Return the first reason to drop the episode, or None to keep it. `across.py` decides those in `ACROSS`."""
    for name, check in CRITERIA.items():
        switch = getattr(criteria, name)
        if switch is not None and switch is not False and (reason := check(candidate, criteria)):
            return reason
    return None
