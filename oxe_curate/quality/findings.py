"""Findings about the actions of a whole data set, and what they depend on in its card.

Each finding has a name, by which a mixture can accept it. An error means that a model trained on these actions learns
something wrong; a warning, that it may.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from oxe_curate import registry
from oxe_curate.registry.card import DatasetCard

Severity = Literal["error", "warning"]

ACTION_FINDINGS: dict[str, str] = {
    "not_finite": "NaN or infinite actions in kept episodes",
    "never_moves": "xyz, or xyz and rpy, do not change",
    "same_action": "every step has the same xyz and rpy",
    "one_sided": "a displacement that is zero or of one sign",
    "bounds_collapse": "the bounds are equal, though the values vary",
    "rotation_jumps": "angles or their differences jump by a full turn",
    "gripper_range": "gripper values outside 0 (closed) to 1 (open)",
    "gripper_narrow": "the gripper never comes near one of its ends",
    "gripper_constant": "the gripper never changes, though the card reads it from the data",
    "gripper_pulses": "gripper commands that last one or two steps, as relative commands do",
    "gripper_inverted": "the measured gripper closes where the action opens",
    "identical_dimensions": "two dimensions are equal at every step",
    "xyz_scale": "xyz is not in metres per step",
    "rpy_scale": "rpy is not in radians per step",
    "absolute_xyz": "xyz are positions, not displacements",
    "absolute_rpy": "rpy are orientations, not changes of them",
    "inverted_axis": "the state moves against the action",
    "swapped_axes": "the state moves along another axis than the action",
    "constant_dimension": "a dimension is constant here, but not in data sets of the same robot",
    "outside_bounds": "values outside the bounds, which are clipped",
    "wide_bounds": "bounds much wider than the values, so that few bins are used",
    "moving_camera": "a camera that should be fixed moves with the hand",
    "fixed_camera": "a camera that should be on the hand does not move",
}
"""The names of all findings, and what they say."""


@dataclass(frozen=True, kw_only=True)
class DataFinding:
    """One thing that is implausible in a data set.

    Attributes:
        name: one of `ACTION_FINDINGS`.
        dimension: such as "yaw" or "xyz"; None if it is about all.
        text: what was measured, with the number.
        advice: what to change in the card.
    """

    name: str
    severity: Severity
    dimension: str | None
    text: str
    advice: str


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card says of the standardised actions.

    Attributes:
        control_hz: steps per second, if known.
        constant: whether a dimension is a constant of the recipe, (7,).
        published: whether this is the registry's own card and its `openvla` recipe, which reproduces published data.
        kin: equal for data sets whose actions should be alike; "" if the robot is unknown.
    """

    control_hz: float | None
    constant: tuple[bool, ...]
    published: bool
    kin: str

    @classmethod
    def of(cls, card: DatasetCard, recipe: str) -> CardFacts:
        """The facts of one recipe. Raises ConfigError if the card does not have it."""
        constant: list[bool] = []
        for part, width in (("xyz", 3), ("rpy", 3), ("gripper", 1)):
            mine: list[bool] = []
            for piece in getattr(card.recipe(recipe), part):
                mine += [piece.src is None] * (piece.columns(None) or width - len(mine))
            constant += mine[:width]
        own = card.name in registry.names() and registry.load(card.name) == card
        unknown = card.robot.strip().lower() in ("", "unknown", "todo")
        kin = "" if unknown else f"{card.robot.strip().lower()}, {card.action_encoding}, {card.arms}"
        return cls(control_hz=card.control_hz, constant=tuple(constant), published=own and recipe == "openvla", kin=kin)


def digits(value: float) -> str:
    """A number with three digits, for messages."""
    return f"{value:.3g}" if abs(value) < 1e5 else f"{value:,.0f}"


def as_percent(share: float) -> str:
    """A share in percent, for messages."""
    return f"{100 * share:.2g} %" if share < 0.995 else "100 %" if share == 1 else "over 99 %"


def sentences(found: Iterable[DataFinding], dataset: str) -> list[str]:
    """One line per finding, as every command prints it."""
    return [f"{dataset}: {f.text}. {f.advice} [{f.name}]" for f in found]
