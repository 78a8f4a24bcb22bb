"""What is known of one data set: `cards/<name>.yaml`, read strictly into a DatasetCard."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from oxe_curate.config import STRICT, load
from oxe_curate.episode import Trajectory
from oxe_curate.errors import ConfigError, did_you_mean
from oxe_curate.registry.recipe import PART_WIDTHS, ActionRecipe, Piece, Pieces
from oxe_curate.registry.standardize import Standardizer, Steps

Role = Literal[
    "primary", "secondary", "extra", "wrist",
    "depth_primary", "depth_secondary", "depth_wrist", "depth_extra",
    "egocentric", "body", "none",
]  # fmt: skip
"""What a camera shows. primary, secondary and extra look at the workspace from outside; egocentric and body
cameras ride on a mobile robot; none is a dummy, or an image that is not a robot's camera."""

Widths = Mapping[str, tuple[int | None, ...]]
"""Flat step key -> shape without the time axis."""

THIRD_PERSON: frozenset[Role] = frozenset({"primary", "secondary", "extra"})

ActionEncoding = Literal[
    "EEF_POS", "EEF_VEL", "EEF_OSC", "EEF_GOAL", "EEF_POSE", "EEF_POS_BIMANUAL",
    "JOINT_POS", "JOINT_POS_BIMANUAL", "JOINT_POS_BIMANUAL_NAV", "NAV_2D",
    "PRIMITIVE", "DISCRETE", "MUSCLE_PRESSURE", "NONE", "UNKNOWN",
]  # fmt: skip
"""The native action space, by Octo's and OpenVLA's names where they have one. EEF_* are end-effector spaces:
displacement, velocity, operational-space controller input, absolute goal, absolute pose."""

Verdict = Literal["pass", "fail", "conditional", "unknown"]
CRITERIA = ("no_third_person_camera", "not_single_arm", "not_end_effector")
"""OpenVLA's criteria for its training mixtures, by the name under which a data set fails them."""


@dataclass(frozen=True, config=STRICT)
class Camera:
    """One image feature.

    Attributes:
        role: what it shows.
        shape: (height, width, channels), or (height, width) of a plain tensor; null where not published.
        encoding: how TFDS stores it; `tensor` is a plain array, `unspecified` means not documented.
        dtype: of the pixels.
        channels: the order they are stored in; bgr needs a swap before use.
        note: anything else.
    """

    role: Role
    shape: tuple[int, ...] | None = None
    encoding: Literal["jpeg", "png", "tensor", "unspecified"] = "unspecified"
    dtype: Literal["uint8", "uint16", "int32", "float32"] = "uint8"
    channels: Literal["rgb", "bgr"] = "rgb"
    note: str | None = None

    def __post_init__(self) -> None:
        if self.shape is not None and (len(self.shape) not in (2, 3) or min(self.shape) < 1):
            raise ValueError(f"shape is [height, width, channels], found {list(self.shape)}")


@dataclass(frozen=True, config=STRICT)
class Language:
    """Where the instruction is.

    Attributes:
        keys: flat step keys, in order of preference: a step's text is the first that is not empty.
        kind: string, or codepoints (rows of Unicode code points, zero-padded).
        style: how the texts came about, in words.
    """

    keys: tuple[str, ...] = ()
    kind: Literal["string", "codepoints"] = "string"
    style: str | None = None


@dataclass(frozen=True, config=STRICT)
class Split:
    """Size of a published split; what is not published is null."""

    episodes: int | None = None
    shards: int | None = None
    gib: float | None = None

    @property
    def bytes(self) -> int | None:
        """Size on disk, to the precision in which it was published."""
        return None if self.gib is None else round(self.gib * 2**30)


@dataclass(frozen=True, config=STRICT)
class EpisodeFilter:
    """Keep the episodes whose `field` (flat key beside `steps`: success, episode_metadata/...) has a value."""

    field: str
    equals: bool | int | float | str
    note: str | None = None


@dataclass(frozen=True, config=STRICT)
class DatasetCard:
    """One data set.

    Attributes:
        name: the name of the card, and of its file.
        robot: maker and model.
        arms: one arm, two, none, a human's, or a mixture of embodiments.
        action_encoding: the native action space.
        cameras: flat step key of each image -> Camera; of several with one role, the first is preferred.
        language: where the instruction is.
        recipes: name -> recipe. `openvla` gives what OpenVLA's loader gives; `documented` follows the data
            set's own documentation where that differs.
        proprio: pieces that are concatenated to Trajectory.proprio; none: no column.
        aliases: other names, the TFDS name among them.
        versions: TFDS version -> remark.
        morphology: what carries the arm.
        control_hz: steps per second.
        simulated: whether it is a simulation.
        splits: published sizes.
        num_transitions: steps of the whole data set after the openvla recipe, where published.
        licence: null where not known.
        episode_filters: episodes to keep; all must hold.
        success_key: key of a flag that says whether the episode succeeded, where there is one.
        frame_filter: a rule by which OpenVLA drops single frames, in words.
        random_view: cameras among which OpenVLA draws the primary one, per episode.
        action: how the source documents the action.
        state: how the source documents the state.
        why: the reason for the verdict, in words.
        judgement: overrides the verdict where the facts below do not suffice for one.
        notes: where sources disagree, and what else a user should know.
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
    control_hz: float | None = None
    simulated: bool = False
    splits: dict[str, Split] = field(default_factory=dict)
    num_transitions: int | None = None
    licence: str | None = None
    episode_filters: tuple[EpisodeFilter, ...] = ()
    success_key: str | None = None
    frame_filter: str | None = None
    random_view: tuple[str, ...] = ()
    action: str | None = None
    state: str | None = None
    judgement: Literal["conditional", "unknown"] | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for camera in self.random_view:
            if camera not in self.cameras:
                raise ValueError(f"random_view: no camera {camera!r}. {did_you_mean(camera, self.cameras)}")
        for i, piece in enumerate(self.proprio):
            if piece.shortens:
                raise ValueError(f"proprio.{i}: delta has no place in proprio")

    # ── verdict ──────────────────────────────────────────────────────────────────────────────────────────

    @property
    def has_third_person_camera(self) -> bool:
        """Whether a camera looks at the workspace from outside."""
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
        """Those of `CRITERIA` that the data set does not meet, in their order."""
        met = (self.has_third_person_camera, self.is_single_arm, self.is_end_effector)
        return tuple(name for name, ok in zip(CRITERIA, met, strict=True) if not ok)

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

    # ── what the filter asks ─────────────────────────────────────────────────────────────────────────────

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
                "Leave the data set out, or write a card with a recipe of your own."
            )
        raise ConfigError(f"card {self.name!r} has no recipe {name!r}. {did_you_mean(name, self.recipes)}")

    def step_keys(self, recipe: str = "openvla") -> frozenset[str]:
        """Flat step keys that the recipe and proprio read (language and cameras not among them)."""
        pieces = [*(piece for _, piece in self.recipe(recipe).pieces()), *self.proprio]
        return frozenset(piece.src for piece in pieces if piece.src is not None)

    def standardize(self, steps: Steps, recipe: str = "openvla") -> Trajectory:
        """Bring one episode into the common convention: see `registry.standardize.standardize`."""
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

    def check_features(
        self, widths: Widths, recipe: str | None = None, where: str = "features.json"
    ) -> tuple[str, ...]:
        """Compare the card with the shapes of a data set on disk.

        Args:
            widths: flat step key -> shape without the time axis: () for a scalar, None for an unknown length.
            recipe: check this recipe; None checks all of the card's.
            where: what to call the other side in an error.

        Returns:
            Remarks on what will be left out: proprio whose keys are not there, cameras that are not there.

        Raises:
            ConfigError: a recipe, proprio or the language reads a key that is not there or slices beyond its
                width; the message names the card, the place in it, and the closest key.
        """
        recipes = self.recipes if recipe is None else {recipe: self.recipe(recipe)}
        problems: list[str] = []
        for name, pieces in recipes.items():
            for part, expected in PART_WIDTHS.items():
                place = f"recipes.{name}.{part}"
                counts = [
                    _count_columns(p, f"{place}.{i}", widths, where, problems)
                    for i, p in enumerate(getattr(pieces, part))
                ]
                total = sum(count for count in counts if count is not None)
                if None not in counts and total != expected:
                    problems.append(f"{place}: needs {expected} columns, {where} gives {total}")
        has_proprio = all(piece.src in widths for piece in self.proprio if piece.src is not None)
        for i, piece in enumerate(self.proprio if has_proprio else ()):
            _count_columns(piece, f"proprio.{i}", widths, where, problems)
        keys = self.language.keys
        if keys and not any(key in widths for key in keys):
            problems.append(f"language.keys: {where} has no {keys[0]!r}. {did_you_mean(keys[0], widths)}")
        if problems:
            raise ConfigError("\n".join(f"{self.name}.yaml: {problem}" for problem in problems[:5]))
        remarks = [f"camera {key!r} is not there" for key in self.cameras if key not in widths]
        return tuple(remarks if has_proprio else ["proprio is left out: its keys are not there", *remarks])


def _count_columns(piece: Piece, place: str, widths: Widths, where: str, problems: list[str]) -> int | None:
    """How many columns the piece gives, None if that is not known; what is wrong with it joins `problems`."""
    if piece.src is None:
        return piece.width
    if piece.src not in widths:
        problems.append(f"{place}.src: {where} has no step key {piece.src!r}. {did_you_mean(piece.src, widths)}")
        return None
    shape = widths[piece.src]
    width = shape[0] if shape else 1
    if len(shape) > 1:
        problems.append(f"{place}.src: {piece.src!r} has shape {shape} in {where}, expected columns")
        return None
    if width is not None and width < piece.needed_width:
        problems.append(f"{place}.cols: {list(piece.cols or ())} reaches beyond {piece.src!r}, {width} wide in {where}")
        return None
    try:
        return piece.columns(width)
    except ValueError as error:
        problems.append(f"{place}: {error}")
        return None


def read_card(path: Path) -> DatasetCard:
    """Read one card. Raises ConfigError, which names the file, the key and the closest match."""
    card: DatasetCard = load(DatasetCard, path)
    if card.name != path.stem:
        raise ConfigError(f"{path}: name is {card.name!r}; it must be the file's name, {path.stem!r}")
    return card


def as_row(card: DatasetCard) -> dict[str, Any]:
    """One line of the catalogue, JSON-ready: what `oxe-curate datasets` lists."""
    cameras: dict[str, list[str]] = {}
    for key, camera in card.cameras.items():
        cameras.setdefault(camera.role, []).append(key)
    episodes = [s.episodes for s in card.splits.values() if s.episodes is not None]
    sizes = [s.bytes for s in card.splits.values() if s.bytes is not None]
    return {
        "name": card.name,
        "verdict": card.verdict,
        "reason": card.reason,
        "failed": list(card.failed_criteria),
        "robot": card.robot,
        "arms": card.arms,
        "cameras": cameras,
        "action_encoding": card.action_encoding,
        "control_hz": card.control_hz,
        "simulated": card.simulated,
        "episodes": sum(episodes) if episodes else None,
        "bytes": sum(sizes) if sizes else None,
        "num_transitions": card.num_transitions,
        "recipes": list(card.recipes),
        "aliases": list(card.aliases),
    }
