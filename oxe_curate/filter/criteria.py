"""The criteria file: which conditions an episode must meet, and what happens to one that does not.

    preset: strict
    too_short: 10
    no_language: false
    idle: 0.8
    duplicate: true
    unexplained_motion: report
    limits: {unexplained_motion: 0.9}

Each line is also `--criterion KEY=VALUE`. See `Criteria` for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from oxe_curate import config
from oxe_curate.errors import ConfigError, did_you_mean, quoted
from oxe_curate.quality.measures import MEASURES
from oxe_curate.registry.card import IdleRule

MeasuredSwitch = Literal[True, False, "report"] | Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
"""What happens to an episode that is unlike its data set: true drops it, "report" keeps and marks it, false does not
measure it; a number drops it above this limit."""


@dataclass(frozen=True, config=config.STRICT)
class Criteria:
    """The conditions for keeping an episode. By default OpenVLA's conditions drop, and all others only mark.

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
        drop_idle_frames: a rule by which idle steps are removed from every episode first: "card" for the `frame_filter`
            of each data set's card (droid has one), null for none.
        keep_ranges: a JSON file of the steps to keep of each episode of DROID, as openpi uses it (see `keep_ranges`);
            it applies to data sets with the metadata `recording_folderpath` and `file_path`, in place of their card's
            `frame_filter`.
        bad_image: drop if a frame of a located camera cannot be decoded. Slow: decodes every image.
        duplicate: true drops an episode whose standardised actions equal those of an earlier one, in any split or data
            set (train comes first, then the lower id); "report" keeps and marks it; false disables the check.
        allow_leak: allow a mixture to draw from a split with copies of the train split's episodes.
        limits: criterion -> limit in place of the one that is learned from each data set.

    The others compare an episode with its data set; a number in place of true sets the limit, too:

    Attributes:
        unexplained_motion: the actions do not explain how the state moves (sign, axes, shuffled, another episode's).
        shifted_actions: the actions lead or lag the state by more steps than usual.
        scaled_actions: the actions are larger or smaller than the motion that follows.
        gripper_mismatch: the gripper's actions do not explain its state.
        action_outlier: an action is far outside the usual range.
        action_spike: a single step has a much larger action than its neighbours.
        repeated_actions: the same action again and again, more than usual.
        saturated_actions: actions clipped at a bound, more than usual.
        noisy_actions: actions change from step to step more than usual.
        gripper_flicker: the gripper's action changes more often than usual.
        missing_actions: the actions are zero for a moment, again and again.
        full_turn: an angle of the action or the state jumps by 2 pi.
        state_jump: the state jumps.
        frozen_state: the state stays the same while the actions move.
        noisy_state: the state changes from step to step more than usual.
        state_offset: the state is far from the data set's.
        idle_start: nothing moves at the start for longer than usual.
        idle_middle: nothing moves in the middle for longer than usual.
        idle_end: nothing moves at the end for longer than usual.
        truncated: it ends in the middle of a motion, too early or elsewhere than others of its task.
        unusual_start: it begins elsewhere than others of its task, or already moving.
        reversed: it starts where others end, and ends where they start.
        success_contradicted: the success flag contradicts how the episode moves and ends.
        near_duplicate: its numbers agree with another episode's far better than neighbours' do.
        frozen_frames: the images stay the same while the arm moves.
        flat_image: an image of one colour, of noise, or far too dark, bright or blurred; more with `--look`.
        missing_camera: a camera has no, black or undecodable frames, unlike in other episodes; more with `--look`.
        image_format: size, channels or their order differ from the other images. Needs `--look`.
        wrong_camera: a camera shows what another one shows, or another scene than it does. Needs `--look`.
        image_cut: the image changes at once. Needs `--look`.
        image_motion_lag: the images do not follow the motion: late, in another order, or of another episode. Needs
            `--look`.
        meaningless_text: the instruction is a placeholder or says nothing.
        damaged_text: the instruction has encoding damage or the like.
        changing_text: the instruction becomes another one within the episode, unlike in other episodes.
        wrong_text: the instruction fits other trajectories of the data set but not its own.
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
    drop_idle_frames: IdleRule | Literal["card"] | None = "card"
    keep_ranges: str | None = None
    bad_image: bool = False
    duplicate: Literal[True, False, "report"] = "report"
    allow_leak: bool = False
    limits: dict[str, float] = field(default_factory=dict)
    unexplained_motion: MeasuredSwitch = "report"
    shifted_actions: MeasuredSwitch = "report"
    scaled_actions: MeasuredSwitch = "report"
    gripper_mismatch: MeasuredSwitch = "report"
    action_outlier: MeasuredSwitch = "report"
    action_spike: MeasuredSwitch = "report"
    repeated_actions: MeasuredSwitch = "report"
    saturated_actions: MeasuredSwitch = "report"
    noisy_actions: MeasuredSwitch = "report"
    gripper_flicker: MeasuredSwitch = "report"
    missing_actions: MeasuredSwitch = "report"
    full_turn: MeasuredSwitch = "report"
    state_jump: MeasuredSwitch = "report"
    frozen_state: MeasuredSwitch = "report"
    noisy_state: MeasuredSwitch = "report"
    state_offset: MeasuredSwitch = "report"
    idle_start: MeasuredSwitch = "report"
    idle_middle: MeasuredSwitch = "report"
    idle_end: MeasuredSwitch = "report"
    truncated: MeasuredSwitch = "report"
    unusual_start: MeasuredSwitch = "report"
    reversed: MeasuredSwitch = "report"
    success_contradicted: MeasuredSwitch = "report"
    near_duplicate: MeasuredSwitch = "report"
    frozen_frames: MeasuredSwitch = "report"
    flat_image: MeasuredSwitch = "report"
    missing_camera: MeasuredSwitch = "report"
    image_format: MeasuredSwitch = "report"
    wrong_camera: MeasuredSwitch = "report"
    image_cut: MeasuredSwitch = "report"
    image_motion_lag: MeasuredSwitch = "report"
    meaningless_text: MeasuredSwitch = "report"
    damaged_text: MeasuredSwitch = "report"
    changing_text: MeasuredSwitch = "report"
    wrong_text: MeasuredSwitch = "report"

    def __post_init__(self) -> None:
        if self.too_long is not None and self.too_long < self.too_short:
            raise ValueError(f"too_long {self.too_long} is below too_short {self.too_short}")
        for name, limit in self.limits.items():
            if name not in MEASURED:
                raise ValueError(f"limits: unknown criterion {quoted(name)}. {did_you_mean(name, MEASURED)}")
            if math.isnan(limit):
                raise ValueError(f"limits: {name}: expected a number, got NaN")

    def of_the_scan(self) -> dict[str, Any]:
        """The settings that need the source: changing the others does not scan again."""
        return {name: getattr(self, name) for name in SCANNED}

    def measured(self) -> dict[str, bool]:
        """The criteria that compare an episode with its data set and are on -> whether they drop."""
        switches = {name: getattr(self, name) for name in MEASURED}
        return {name: switch != "report" for name, switch in switches.items() if switch is not False}

    def fixed_limits(self) -> dict[str, float]:
        """Criterion -> limit that is not learned."""
        numbers = {name: getattr(self, name) for name in MEASURED}
        return {**{n: float(v) for n, v in numbers.items() if not isinstance(v, bool | str)}, **self.limits}


SCANNED = ("black_level", "drop_idle_frames", "keep_ranges", "bad_image")
"""Settings that are applied while a shard is read."""
MEASURED = tuple(criterion for measure in MEASURES for criterion in measure.criteria)
"""Criteria that compare an episode with its data set, in order."""
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "strict": {"duplicate": True, **dict.fromkeys(MEASURED, True)},
}
"""Names of sets of criteria; `default` is the defaults of `Criteria`."""


def read_criteria(path: Path | None = None, changes: Sequence[str] = (), preset: str | None = None) -> Criteria:
    """Read a criteria file (None: the defaults) and apply single `key=value` settings on top.

    Args:
        path: the file, whose key `preset` names what its other keys change.
        changes: settings such as "too_short=10"; `limits.NAME=NUMBER` sets one limit.
        preset: overrides the file's.

    Raises:
        ConfigError: an unknown criterion, preset or a bad value, with the closest key.
    """
    where = str(path or "--criterion")
    found = config.read_yaml(path) if path else {}
    if found is not None and not isinstance(found, dict):
        raise ConfigError(f"{where}: expected a mapping of criteria, got {quoted(found)}")
    chosen: dict[Any, Any] = dict(found or {})
    named = preset if preset is not None else chosen.get("preset", "default")
    chosen.pop("preset", None)
    if not isinstance(named, str) or named not in PRESETS:
        place = "--preset" if preset is not None else f"{where}: preset"
        raise ConfigError(f"{place}: unknown preset {quoted(named)}. {did_you_mean(str(named), PRESETS)}")
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise ConfigError(f"--criterion {change}: expected KEY=VALUE, such as too_short=10")
        parsed = config.parse_yaml(value, f"--criterion {key}")
        group, dot, name = key.strip().partition(".")
        if dot and group == "limits":
            limits = chosen.get("limits") or {}
            chosen["limits"] = {**limits, name: parsed} if isinstance(limits, Mapping) else limits
        else:
            chosen[key.strip()] = parsed
    return config.build(Criteria, {**PRESETS[named], **chosen}, where)
