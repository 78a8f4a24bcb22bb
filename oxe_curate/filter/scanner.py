"""Reads the records of a data set as its card says: the task of scanning one shard, and rows of the episode index."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from oxe_curate import __version__
from oxe_curate.episode import EpisodeId, Trajectory
from oxe_curate.errors import ConfigError, CorruptError, DataError
from oxe_curate.filter.criteria import Criteria
from oxe_curate.filter.frames import FrameLook
from oxe_curate.filter.keep_ranges import FIELDS, episode_key, identifies_episodes, read_keep_ranges
from oxe_curate.filter.looking import look_at_camera
from oxe_curate.filter.screen import Candidate, no_third_person_camera, screen, success
from oxe_curate.index.frame_pool import locate
from oxe_curate.index.idle import drop_idle_frames, keep_frames
from oxe_curate.index.index_json import FORMAT, FrameDetail
from oxe_curate.index.table import IndexRow
from oxe_curate.lru import LruCache
from oxe_curate.quality.looks import LookedFrames
from oxe_curate.registry.card import DatasetCard
from oxe_curate.registry.features import check_features
from oxe_curate.registry.text import draw_text
from oxe_curate.rlds import tfrecord
from oxe_curate.rlds.dataset import RldsDataset, Shard
from oxe_curate.rlds.leaf import camera_key, leaves
from oxe_curate.rlds.object_shard import READ_THROUGH
from oxe_curate.rlds.reader import RawEpisode, RecordReader
from oxe_curate.storage import Folder, StoreOptions

ROLES = ("primary", "secondary", "extra", "wrist", "egocentric")
"""Roles whose frames the index locates: the first camera of each."""


@dataclass(frozen=True)
class FilterTask:
    """The input of a worker that scans one shard.

    Attributes:
        size: of the shard, in bytes; used for balancing, and part of the fingerprint.
        frames: "exact" locates every frame, "span" each camera's list.
        verify: check the CRC of every record's data, which reads every byte.
        skip_corrupt: count and list unreadable records instead of failing.
        look: frames to decode of each episode and camera.
    """

    dataset: RldsDataset
    shard: Shard
    card: DatasetCard
    recipe: str
    criteria: Criteria
    out: Folder
    size: int
    frames: FrameDetail = "exact"
    verify: bool = False
    skip_corrupt: bool = False
    look: int = 0

    @property
    def output(self) -> str:
        """Path of the index file that the task writes."""
        return self.shard.index_path

    @property
    def at_once(self) -> int:
        """How many such tasks a worker runs at once: a scan of a remote shard mostly waits for the next record."""
        return 1 if self.dataset.source.is_local else min(4 * StoreOptions.current().requests, 64)

    @property
    def held(self) -> int:
        """Bytes of memory that it takes at most: of large records in an object, what is not needed is dropped."""
        records = max(self.shard.records, 1)
        if self.size < records << 20:
            return self.size
        return min(self.size, (READ_THROUGH if self.size < records << 23 else 0) + (records << 19))

    @property
    def name(self) -> str:
        """The shard, for messages."""
        return f"{self.dataset.source}/{self.shard.path}"

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of everything that determines the index file's contents."""
        ranges = self.criteria.keep_ranges
        parts = {
            "format": FORMAT, "version": __version__, "shard": asdict(self.shard), "size": self.size,
            "card": asdict(self.card), "recipe": self.recipe, "criteria": self.criteria.of_the_scan(),
            "frames": self.frames, "skip_corrupt": self.skip_corrupt,
            **({"verify": True} if self.verify and self.skip_corrupt else {}),
            **({"look": self.look} if self.look else {}),
            **({"keep_ranges": read_keep_ranges(ranges).sha256} if ranges else {}),
        }  # fmt: skip
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class FoundRecord:
    """A record that was read, but not standardised.

    Attributes:
        name: of the episode.
        number, offset, length: of the record in its shard.
        episode: what was read of it.
        look: looks at its frames.
        dark: whether no third-person camera shows anything, or the error that looking at them raised.
    """

    name: EpisodeId
    number: int
    offset: int
    length: int
    episode: RawEpisode
    look: FrameLook
    dark: bool | CorruptError | DataError


class Scanner:
    """Reads the records of one data set according to its card. Created once per process and data set."""

    def __init__(self, dataset: RldsDataset, card: DatasetCard, recipe: str) -> None:
        steps, other = leaves(dataset.features)
        where = f"{dataset.label} features.json"
        if card.recipes:
            check_features(card, {key: leaf.shape for key, leaf in steps.items()}, where, recipe)
        self._standardize = card.standardizer(recipe) if card.recipes else None
        cameras = {camera_key(key, steps): c.role for key, c in card.cameras.items() if c.role in ROLES}
        self.cameras = {key: role for key, role in cameras.items() if key in steps}
        fields = {}
        for rule in card.episode_filters:
            fields[rule.field] = rule.field if rule.field in other else f"episode_metadata/{rule.field}"
        flag = card.success_key
        if flag is not None and flag in other:
            fields[flag] = flag
        self._choice = tuple(key for key in card.language.keys if key in steps)
        if card.language.choice == "first":
            self._choice = ()
        self._rule = card.frame_rule
        self._keyed = identifies_episodes(other)
        if self._keyed:
            fields |= {field: field for field in FIELDS}
        self.reader = RecordReader(
            dataset.features,
            steps=[
                *(card.step_keys(recipe, available=steps) if card.recipes else ()),
                *(key for key in (*card.language.keys, flag) if key in steps),
            ],
            cameras=self.cameras,
            metadata=fields.values(),
            where=where,
        )

    def read(
        self, task: FilterTask, buffer: memoryview, number: int, offset: int, length: int, ensure: tfrecord.Ensure
    ) -> FoundRecord:
        """Read a record, as far as the rest does not depend on its actions."""
        episode, shard = self.reader.read(buffer, offset, length, ensure), task.shard
        name = EpisodeId(shard.dataset, shard.version, shard.split, shard.number, number)
        if self._choice:
            episode = replace(episode, steps=draw_text(episode.steps, self._choice, str(name)))
        look = FrameLook(buffer, ensure)
        dark: bool | CorruptError | DataError
        try:  # now, since the first frames begin in the pages that have just been read
            dark = no_third_person_camera(Candidate(task.card, episode, None, look), task.criteria)
        except (CorruptError, DataError) as error:
            dark = error
        return FoundRecord(name, number, offset, length, episode, look, dark)

    def standardize(self, found: Sequence[FoundRecord]) -> Iterator[Callable[[], Trajectory | None]]:
        """For each record, a function that returns its trajectory, None without a recipe, or raises DataError."""
        one_by_one = self._standardize
        if one_by_one is None:
            yield from [lambda: None] * len(found)
            return
        try:
            together = one_by_one.many([record.episode.steps for record in found])
        except DataError:
            yield from (partial(one_by_one, record.episode.steps) for record in found)
        else:
            yield from (partial(_identity, trajectory) for trajectory in together)

    def row(
        self,
        task: FilterTask,
        record: FoundRecord,
        trajectory: Trajectory | None,
        buffer: memoryview,
        ensure: tfrecord.Ensure,
    ) -> tuple[IndexRow, int]:
        """Return the record's row, and the number of bytes read."""
        episode, look, criteria = record.episode, record.look, task.criteria
        if trajectory is not None:
            trajectory = self._keep(trajectory, episode, criteria)
        if not isinstance(record.dark, bool):
            raise record.dark
        candidate = Candidate(task.card, episode, trajectory, look, record.dark)
        applies = screen(candidate, criteria)
        spans: dict[str, tuple[int, int]] = {}
        frames: dict[str, NDArray[np.int64]] = {}
        looks: dict[str, LookedFrames] = {}
        for key, role in self.cameras.items():
            span = episode.cameras.get(key)
            if span is None or role in spans:
                continue
            spans[role] = (span.offset, span.length)
            if trajectory is None or not (task.frames == "exact" or task.look):
                continue
            located = locate(buffer, spans[role], episode.num_steps, role, ensure)[trajectory.frame_index]
            if task.frames == "exact":
                frames[role] = located
            if task.look:
                looks[role] = look_at_camera(look, located, task.look)
        row = IndexRow(
            id=record.name, shard=task.shard.path, record=(record.offset, record.length), record_crc=0,
            source_steps=episode.num_steps, applies=applies, success=success(candidate), trajectory=trajectory,
            frames=frames, spans=spans, control_hz=task.card.control_hz, looks=looks if task.look else None,
        )  # fmt: skip
        return row, _touched(episode, frames) + look.touched

    def _keep(self, trajectory: Trajectory, episode: RawEpisode, criteria: Criteria) -> Trajectory:
        """Leave out single steps: those that keep_ranges does not list, and idle ones."""
        rule = criteria.drop_idle_frames
        if criteria.keep_ranges and self._keyed:
            ranges = read_keep_ranges(criteria.keep_ranges)
            keep = ranges.mask(episode_key(episode.metadata), episode.num_steps)
            trajectory = keep_frames(trajectory, keep[trajectory.frame_index])
            rule = None if rule == "card" else rule
        rule = self._rule if rule == "card" else rule
        return drop_idle_frames(trajectory, rule) if rule else trajectory


def _identity(trajectory: Trajectory) -> Trajectory:
    return trajectory


def _touched(episode: RawEpisode, frames: dict[str, NDArray[np.int64]]) -> int:
    numbers = sum(array.nbytes if array.dtype != object else sum(map(len, array)) for array in episode.steps.values())
    return tfrecord.HEADER + tfrecord.FOOTER + numbers + 4 * sum(len(f) for f in frames.values())


def scanner_of(dataset: RldsDataset, card: DatasetCard, recipe: str) -> Scanner:
    """The scanner of a data set, cached: parsing features.json takes as long as scanning a hundred episodes."""

    def make() -> tuple[Scanner, int]:
        try:
            return Scanner(dataset, card, recipe), 1
        except ConfigError as error:
            raise DataError(f"{dataset.source}/{dataset.path}: the card {card.name!r} does not fit: {error}") from error

    # a card is not hashable, but its text is
    return _scanners.get((dataset.source, dataset.path, dataset.name, dataset.version, repr(card), recipe), make)


_scanners: LruCache[Scanner] = LruCache(8)
