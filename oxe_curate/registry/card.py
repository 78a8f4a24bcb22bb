"""The card of one data set: `cards/<name>.yaml`, read strictly into a DatasetCard."""

from __future__ import annotations

import functools
from collections.abc import Container
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from oxe_curate.config import STRICT, read
from oxe_curate.episode import Steps, Trajectory
from oxe_curate.errors import ConfigError, did_you_mean, quoted
from oxe_curate.registry.recipe import ActionRecipe, Pieces
from oxe_curate.registry.standardize import Standardizer

Role = Literal[
    "primary", "secondary", "extra", "wrist",
    "depth_primary", "depth_secondary", "depth_wrist", "depth_extra",
    "egocentric", "body", "none",
]  # fmt: skip
"""What a camera shows. primary, secondary and extra view the workspace from outside; egocentric and body cameras are
mounted on a mobile robot; none is a placeholder, or an image that is not from a robot's camera."""

IndexedRole = Literal["primary", "secondary", "extra", "wrist", "egocentric"]
"""Roles whose frames the index locates."""

THIRD_PERSON: frozenset[Role] = frozenset({"primary", "secondary", "extra"})

ActionEncoding = Literal[
    "EEF_POS", "EEF_VEL", "EEF_OSC", "EEF_GOAL", "EEF_POSE", "EEF_POS_BIMANUAL",
    "JOINT_POS", "JOINT_POS_BIMANUAL", "JOINT_POS_BIMANUAL_NAV", "NAV_2D",
    "PRIMITIVE", "DISCRETE", "MUSCLE_PRESSURE", "NONE", "UNKNOWN",
]  # fmt: skip
"""The native action space, by Octo's and OpenVLA's names where they have one. EEF_* are end-effector spaces:
displacement, velocity, operational-space controller input, absolute goal, absolute pose."""

Verdict = Literal["pass", "fail", "conditional", "unknown"]
_CRITERIA = ("no_third_person_camera", "not_single_arm", "not_end_effector")
"""OpenVLA's criteria for its training mixtures, by the reason of failure."""


IdleRule = Literal["libero", "droid"]
"""Rules by which idle steps were removed from published data; see `index.idle`."""

_Count = Annotated[int, Field(ge=0, le=10**12)]
"""Episodes, steps or shards."""


@dataclass(frozen=True, config=STRICT)
class Camera:
    """One image feature.

    Attributes:
        role: what it shows.
        shape: (height, width, channels), or (height, width) of a plain tensor; null if not published.
        encoding: how TFDS stores it; `tensor` is a plain array, `unspecified` means not documented.
        dtype: of the pixels.
        channels: stored order; bgr is swapped before use.
        note: further remarks.
    """

    role: Role
    shape: tuple[int, ...] | None = None
    encoding: Literal["jpeg", "png", "tensor", "unspecified"] = "unspecified"
    dtype: Literal["uint8", "uint16", "int32", "float32"] = "uint8"
    channels: Literal["rgb", "bgr"] = "rgb"
    note: str | None = None

    def __post_init__(self) -> None:
        if self.shape is not None and (
            len(self.shape) not in (2, 3) or not 1 <= min(self.shape) <= max(self.shape) <= 100_000
        ):
            raise ValueError(f"expected shape [height, width, channels], got {quoted(list(self.shape))}")


@dataclass(frozen=True, config=STRICT)
class Language:
    """The location of the instruction.

    Attributes:
        keys: flat step keys, in order of preference: a step's text is the first that is not empty.
        choice: "random" draws, for each episode, which of the keys that have a text comes first.
        kind: string, or codepoints (rows of Unicode code points, zero-padded).
        style: origin of the texts, in words.
    """

    keys: tuple[str, ...] = ()
    kind: Literal["string", "codepoints"] = "string"
    choice: Literal["first", "random"] = "first"
    style: str | None = None


@dataclass(frozen=True, config=STRICT)
class Split:
    """Size of a published split; null if not published."""

    episodes: _Count | None = None
    shards: _Count | None = None
    gib: float | None = Field(default=None, ge=0, le=1e9)

    @property
    def bytes(self) -> int | None:
        """Size on disk, to the published precision."""
        return None if self.gib is None else round(self.gib * 2**30)


@dataclass(frozen=True, config=STRICT)
class EpisodeFilter:
    """Keep the episodes whose `field` (flat key outside `steps`: success, episode_metadata/...) has a value.

    Attributes:
        equals: the value.
        contains: in place of `equals`, a part of a text: openpi keeps DROID's episodes whose path contains success.
    """

    field: str
    equals: bool | int | float | str | None = None
    note: str | None = None
    contains: str | None = None

    def __post_init__(self) -> None:
        if (self.equals is None) == (self.contains is None):
            raise ValueError("an episode filter needs exactly one of the keys 'equals' and 'contains'")

    def accepts(self, value: object) -> bool:
        """Whether an episode with this value (None if it has none) is kept."""
        if self.contains is not None:
            return isinstance(value, str) and self.contains in value
        return value == self.equals


@dataclass(frozen=True, config=STRICT)
class FrameFilter:
    """Single steps that the data set's users leave out: those that are idle by a rule."""

    rule: IdleRule
    note: str | None = None


@dataclass(frozen=True, config=STRICT)
class DatasetCard:
    """One data set.

    Attributes:
        name: the name of the card, and of its file.
        robot: maker and model.
        arms: one arm, two, none, a human's, or a mixture of embodiments.
        action_encoding: the native action space.
        cameras: flat step key of each image -> Camera; the first camera of a role is preferred.
        language: location of the instruction.
        recipes: name -> recipe. `openvla` reproduces OpenVLA's loader; `documented` follows the data set's
            own documentation if it differs.
        proprio: pieces that are concatenated to Trajectory.proprio; without pieces it has no columns.
        aliases: other names, including the TFDS name.
        versions: TFDS version -> remark.
        morphology: type of robot.
        control_hz: steps per second.
        simulated: whether it is a simulation.
        splits: published sizes.
        num_transitions: steps of the whole data set after the openvla recipe, if published.
        licence: null if unknown.
        episode_filters: episodes to keep; all must hold.
        success_key: key of the success flag, if there is one.
        frame_filter: a rule by which filter drops single steps, as OpenVLA does. A text, as in older cards, has no
            effect and becomes a note.
        random_view: cameras that change places at random, per episode, when tokenize draws from it, as in OpenVLA and
            openpi: with two of them, each is the primary camera of half of the episodes.
        documented_action: description of the action by the source.
        state_layout: description of the state by the source.
        why: the reason for the verdict, in words.
        judgement: overrides the verdict if the facts below do not suffice for one.
        notes: disagreements between sources, and other remarks for users.
        open_questions: what a draft could not decide; filter refuses the card until the list is empty.
    """

    name: str
    robot: str
    arms: Literal["single", "bimanual", "none", "human", "mixed"]
    action_encoding: ActionEncoding
    language: Language
    why: str
    cameras: dict[str, Camera] = field(default_factory=dict)
    recipes: dict[str, ActionRecipe] = field(default_factory=dict)
    proprio: Pieces = ()
    aliases: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    morphology: Literal["arm", "mobile manipulator", "wheeled robot", "quadruped"] = "arm"
    control_hz: float | None = Field(default=None, gt=0, le=1e6)
    simulated: bool = False
    splits: dict[str, Split] = field(default_factory=dict)
    num_transitions: _Count | None = None
    licence: str | None = None
    episode_filters: tuple[EpisodeFilter, ...] = ()
    success_key: str | None = None
    frame_filter: FrameFilter | str | None = None
    random_view: tuple[str, ...] = ()
    documented_action: str | None = None
    state_layout: str | None = None
    judgement: Literal["conditional", "unknown"] | None = None
    notes: tuple[str, ...] = ()
    open_questions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.frame_filter, str):
            object.__setattr__(self, "notes", (*self.notes, f"frame_filter: {self.frame_filter}"))
            object.__setattr__(self, "frame_filter", None)
        for camera in self.random_view:
            if camera not in self.cameras:
                raise ValueError(f"random_view: unknown camera {quoted(camera)}. {did_you_mean(camera, self.cameras)}")
        if {self.cameras_by_role()[role] for role in self.random_roles} != set(self.random_view):
            raise ValueError("random_view: expected cameras of different roles, each the first of its role")
        if len({self.cameras[camera].channels for camera in self.random_view}) > 1:
            raise ValueError("random_view: expected cameras with the same order of channels")
        for i, piece in enumerate(self.proprio):
            if piece.shortens:
                raise ValueError(f"proprio.{i}: delta is not allowed in proprio")

    # ── verdict ──────────────────────────────────────────────────────────────────────────────────────────

    @property
    def has_third_person_camera(self) -> bool:
        """Whether there is a third-person camera."""
        return any(camera.role in THIRD_PERSON for camera in self.cameras.values())

    @property
    def is_single_arm(self) -> bool:
        """Whether the action moves one robot arm."""
        return self.arms == "single"

    @property
    def is_end_effector(self) -> bool:
        """Whether the native action space is the end effector's."""
        return self.action_encoding.startswith("EEF")

    @property
    def failed_criteria(self) -> tuple[str, ...]:
        """The criteria that the card does not satisfy, in order."""
        met = (self.has_third_person_camera, self.is_single_arm, self.is_end_effector)
        return tuple(name for name, ok in zip(_CRITERIA, met, strict=True) if not ok)

    @property
    def verdict(self) -> Verdict:
        """Whether the data set fits OpenVLA's criteria; derived from the card unless it has a `judgement`."""
        return self.judgement or ("fail" if self.failed_criteria else "pass")

    @property
    def reason(self) -> str:
        """The verdict's reason, as in "not_single_arm, not_end_effector: bimanual joint actions"."""
        if self.verdict == "fail":
            return f"{', '.join(self.failed_criteria)}: {self.why}"
        return self.why

    @property
    def frame_rule(self) -> IdleRule | None:
        """The rule of `frame_filter`."""
        return self.frame_filter.rule if isinstance(self.frame_filter, FrameFilter) else None

    @property
    def random_roles(self) -> tuple[Role, ...]:
        """The roles of the cameras of `random_view`."""
        return tuple(self.cameras[key].role for key in self.random_view)

    # ── for the filter ─────────────────────────────────────────────────────────────────────────────

    def cameras_by_role(self) -> dict[str, str]:
        """Role -> flat step key of the first camera that has it."""
        roles: dict[str, str] = {}
        for key, camera in self.cameras.items():
            roles.setdefault(camera.role, key)
        return roles

    def recipe(self, name: str = "openvla") -> ActionRecipe:
        """Return the recipe `name`. Raises ConfigError if the card has none of that name."""
        if name in self.recipes:
            return self.recipes[name]
        if not self.recipes:
            raise ConfigError(
                f"card {self.name!r} has no 7-D end-effector recipe ({self.action_encoding}): {self.why}. "
                "Exclude the data set, or write your own card with a recipe."
            )
        raise ConfigError(f"card {self.name!r} has no recipe {name!r}. {did_you_mean(name, self.recipes)}")

    def step_keys(self, recipe: str = "openvla", available: Container[str] | None = None) -> frozenset[str]:
        """Flat step keys that the recipe and proprio read, without language and cameras.

        If `available` is given and lacks a key of proprio, only those of the action are returned.
        """
        action = {piece.src for _, piece in self.recipe(recipe).pieces() if piece.src is not None}
        proprio = {piece.src for piece in self.proprio if piece.src is not None}
        if available is not None and any(key not in available for key in proprio):
            return frozenset(action)
        return frozenset(action | proprio)

    def standardize(self, steps: Steps, recipe: str = "openvla") -> Trajectory:
        """Convert one episode to the common convention.

        Proprio is built if every key that it reads is in `steps`; otherwise it has no columns, so a reader may omit the
        state.

        Args:
            steps: flat step key -> array with time first, as TFDS decodes it; texts as numpy bytes or str. Keys
                that the recipe does not read are ignored; no array is changed.
            recipe: the name of one of the card's recipes.

        Raises:
            ConfigError: the card has no such recipe.
            DataError: a key is missing, too narrow, of another length than the others, or of the wrong kind.
        """
        return self.standardizer(recipe)(steps)

    def standardizer(self, recipe: str = "openvla") -> Standardizer:
        """Resolve the recipe; later calls return the same object. Raises ConfigError as `recipe` does."""
        if recipe not in self._standardizers:
            self._standardizers[recipe] = Standardizer(
                where=f"card {self.name!r}, recipe {recipe!r}",
                recipe=self.recipe(recipe),
                proprio=self.proprio,
                language_keys=self.language.keys,
                codepoints=self.language.kind == "codepoints",
            )
        return self._standardizers[recipe]

    @functools.cached_property
    def _standardizers(self) -> dict[str, Standardizer]:
        return {}


def read_card(path: Path) -> DatasetCard:
    """Read one card. Raises ConfigError, which names the file, the key and the closest match."""
    card: DatasetCard = read(DatasetCard, path)
    if card.name != path.stem:
        raise ConfigError(f"{path}: expected the file's name {path.stem!r} as the card's name, got {quoted(card.name)}")
    return card
