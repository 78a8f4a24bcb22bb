"""What a kind of defect is, the registry of kinds, and planting one kind into some episodes of a source."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from benchmarks.defects_episode import StoredEpisode
from benchmarks.defects_sources import Clean, Columns, Parts

FEWEST, MOST, SHARE = 3, 12, 0.15

Copies = Literal["", "train", "val"]


@dataclass(frozen=True, eq=False)
class Scene:
    """One episode to spoil, and what a defect may be made of.

    Attributes:
        others: clean episodes of the same data set.
        foreign: the frames of episodes of another data set.
    """

    episode: StoredEpisode
    parts: Parts
    others: Sequence[StoredEpisode]
    foreign: Sequence[Sequence[bytes]]
    rng: np.random.Generator

    @property
    def steps(self) -> int:
        return self.episode.steps

    @property
    def camera(self) -> str:
        """The primary camera."""
        return self.parts.cameras[0]

    @property
    def frames(self) -> list[bytes]:
        return list(self.episode.values[self.camera])

    def with_frames(self, frames: Sequence[bytes]) -> StoredEpisode:
        return self.episode.with_values(**{self.camera: list(frames)})

    def part(self, field: str) -> Columns:
        """Columns that the kind says it needs."""
        columns = getattr(self.parts, field)
        if not isinstance(columns, Columns):
            raise TypeError(f"the data set has no {field}")
        return columns

    def other(self, suits: Callable[[StoredEpisode], bool] = lambda _: True) -> StoredEpisode | None:
        """Another episode, the first that suits in random order."""
        order = self.rng.permutation(len(self.others))
        return next((self.others[i] for i in order if suits(self.others[i])), None)

    def as_long(self) -> StoredEpisode | None:
        """Another episode with at least as many steps, so that nothing of it must be made up."""
        return self.other(lambda episode: episode.steps >= self.steps)

    def shifted(self, names: Sequence[str], by: int) -> StoredEpisode:
        """The episode with some features `by` steps late (negative: early), and without the steps that lack a part."""
        length = self.steps - abs(by)
        late, others = (max(-by, 0), max(by, 0))
        whole = self.episode.take(np.arange(others, others + length))
        moved = self.episode.take(np.arange(late, late + length))
        return whole.with_values(**{name: moved.values[name] for name in names})

    def stretch(self, low: float, high: float, *, at_least: int = 1) -> slice:
        """A random stretch of between `low` and `high` of the steps, not at the very beginning."""
        length = min(max(at_least, round(self.rng.uniform(low, high) * self.steps)), self.steps - 1)
        start = int(self.rng.integers(1, self.steps - length + 1))
        return slice(start, start + length)


Plant = Callable[[Scene], StoredEpisode | None]


@dataclass(frozen=True)
class Kind:
    """One kind of defect.

    Attributes:
        text: what went wrong, in a few words.
        plant: the spoiled episode; None where this one does not suit.
        needs: fields of `Parts` that must be there.
        touches: what may change: fields of `Parts`; "camera" (the primary), "camera2" (the last), "observed" (every
            number of the observation), "steps" (every step feature).
        whole: only where episodes are complete demonstrations.
        cameras: how many the data set must have.
        copies: the defect is a further episode, a copy, in this split.
    """

    name: str
    text: str
    plant: Plant
    needs: tuple[str, ...]
    touches: tuple[str, ...]
    whole: bool = False
    cameras: int = 1
    copies: Copies = ""

    @property
    def group(self) -> str:
        return self.name.partition("_")[0]


KINDS: dict[str, Kind] = {}

_WORDS = {
    "xyz": "displacement from the action",
    "rpy": "rotation from the action",
    "gripper": "gripper command",
    "aperture": "gripper's state",
    "angles": "angles of the state",
    "success": "success flag",
}


def kind(
    text: str, *needs: str, touches: Sequence[str] = (), whole: bool = False, cameras: int = 1, copies: Copies = ""
) -> Callable[[Plant], Plant]:
    """Register a function as the kind of its name; it changes what it needs unless `touches` says otherwise."""

    def register(plant: Plant) -> Plant:
        name = plant.__name__
        KINDS[name] = Kind(name, text, plant, needs, tuple(touches) or needs, whole, cameras, copies)
        return plant

    return register


@dataclass(frozen=True, eq=False)
class Planted:
    """A source with one kind of defect.

    Attributes:
        splits: split -> episodes: changed ones, and the bytes of the others.
        spoiled: (split, position) -> position in train of the episode it was made from.
        originals: (split, position) of episodes that have a copy; neither clean nor spoiled.
        reason: why nothing was planted; "" if something was.
    """

    splits: Mapping[str, Sequence[StoredEpisode | bytes]]
    spoiled: Mapping[tuple[str, int], int]
    originals: frozenset[tuple[str, int]] = frozenset()
    reason: str = ""


def plant(clean: Clean, kind: Kind, foreign: Sequence[Sequence[bytes]], seed: int = 0) -> Planted:
    """Plant a kind into about 15 % of a source's episodes, at least 3 and at most 12."""
    episodes, parts = clean.episodes, clean.source.parts
    missing = [_WORDS.get(name, name) for name in kind.needs if getattr(parts, name) is None]
    if missing:
        return Planted({}, {}, reason=f"the card reads no {', '.join(missing)}")
    if kind.whole and not parts.whole:
        return Planted({}, {}, reason="its episodes are pieces of demonstrations")
    if len(parts.cameras) < kind.cameras:
        return Planted({}, {}, reason="it has one camera")
    wanted = min(max(round(SHARE * len(episodes)), FEWEST), MOST)
    rng = np.random.default_rng([seed, zlib.crc32(f"{clean.source.name}/{kind.name}".encode())])
    made: dict[int, StoredEpisode] = {}
    for position in rng.permutation(len(episodes)).tolist():
        others = [episode for number, episode in enumerate(episodes) if number != position]
        new = kind.plant(Scene(episodes[position], parts, others, foreign, rng))
        if new is not None and new.encode() != episodes[position].encode():
            made[position] = replace(new, record=b"")
        elif new is not None and kind.copies:
            made[position] = new
        if len(made) == wanted:
            break
    if len(made) < FEWEST:
        return Planted({}, {}, reason=f"it suits {len(made)} of {len(episodes)} episodes")
    return _placed(episodes, made, kind.copies)


def _placed(episodes: Sequence[StoredEpisode], made: Mapping[int, StoredEpisode], copies: Copies) -> Planted:
    records: list[StoredEpisode | bytes] = [episode.record for episode in episodes]
    if not copies:
        for position, episode in made.items():
            records[position] = episode
        return Planted({"train": records}, {("train", position): position for position in made})
    start = len(records) if copies == "train" else 0
    spoiled = {(str(copies), start + number): position for number, position in enumerate(made)}
    originals = frozenset(("train", position) for position in made)
    added: list[StoredEpisode | bytes] = list(made.values())
    splits = {"train": records + added} if copies == "train" else {"train": records, copies: added}
    return Planted(splits, spoiled, originals)
