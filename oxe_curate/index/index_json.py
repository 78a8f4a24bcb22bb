"""index.json: the typed contents, read strictly and written in one place.

index.json certifies that the index files next to it are complete. A run that changes index files first renames it to
unfinished.json, and writes it last, so that a killed run leaves unfinished.json and the next run continues from it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from oxe_curate import __version__, config
from oxe_curate.errors import ConfigError, DataError
from oxe_curate.quality.action_facts import ActionFacts
from oxe_curate.quality.findings import DataFinding
from oxe_curate.sealed import CHECKSUM, check_seal, seal
from oxe_curate.storage import Folder

FORMAT = 2
INDEX_JSON = "index.json"
UNFINISHED = "unfinished.json"
"""The previous index.json, while a run changes index files."""

FrameDetail = Literal["exact", "span"]
"""Whether the index locates every frame, or only each camera's list of frames."""


@dataclass
class Summary:
    """Counts of episodes and steps, of a shard or a data set."""

    seen: int = 0
    kept: int = 0
    steps_seen: int = 0
    steps_kept: int = 0
    dropped: dict[str, list[int]] = field(default_factory=dict)
    """reason -> [episodes, steps]"""
    bytes_read: int = 0
    corrupt: list[str] = field(default_factory=list)
    """Descriptions of the records that --skip-corrupt skipped."""
    copies: int = 0
    """Kept episodes that are copies of others."""
    leaks: dict[str, int] = field(default_factory=dict)
    """split -> kept episodes that are copies of kept episodes of a train split."""

    def add(self, other: Summary) -> None:
        """Add another summary's counts to this one."""
        self.seen += other.seen
        self.kept += other.kept
        self.steps_seen += other.steps_seen
        self.steps_kept += other.steps_kept
        self.bytes_read += other.bytes_read
        self.corrupt += other.corrupt
        self.copies += other.copies
        for split, episodes in other.leaks.items():
            self.leaks[split] = self.leaks.get(split, 0) + episodes
        for reason, (episodes, steps) in other.dropped.items():
            mine = self.dropped.setdefault(reason, [0, 0])
            mine[0] += episodes
            mine[1] += steps

    @classmethod
    def count(cls, episodes: Iterable[tuple[int, str | None]]) -> Summary:
        """Count episodes, given as (steps, reason for dropping it or None)."""
        summary = cls()
        for steps, reason in episodes:
            summary.seen += 1
            summary.steps_seen += steps
            if reason is None:
                summary.kept += 1
                summary.steps_kept += steps
            else:
                count = summary.dropped.setdefault(reason, [0, 0])
                count[0] += 1
                count[1] += steps
        return summary


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What one criterion that compares episodes found in a data set.

    Attributes:
        limit: above which an episode is marked or dropped; None if the data set does not tell what is normal.
        unit: of the limit and the value, such as "steps"; "" for a plain number.
        measured: episodes that it could judge.
        marked: episodes above the limit that are kept. dropped: those dropped for this reason.
        worst: id of the episode with the largest value, and that value; None if there is none.
    """

    limit: float | None
    unit: str
    measured: int
    marked: int
    dropped: int
    worst: str | None = None
    value: float | None = None


@dataclass(frozen=True, kw_only=True)
class DatasetEntry:
    """One data set in index.json.

    Attributes:
        card, recipe, verdict, frames: None if no shard was selected.
        splits: tfds split expressions that were filtered.
        seconds: duration of the run that last scanned it.
        source: root of its shards, if it is not that of the index (moved, mirrored, or filtered from another folder).
        judged: criterion -> what it found, of those that compare an episode with its data set.
        facts: of the kept episodes' actions; None if none is kept, or an older version wrote the index.
        findings: what is implausible about them.
    """

    version: str
    card: str | None
    recipe: str | None
    verdict: str | None
    splits: tuple[str, ...]
    frames: FrameDetail | None
    seconds: float
    summary: Summary
    source: str | None = None
    judged: dict[str, Judged] = field(default_factory=dict)
    facts: ActionFacts | None = None
    findings: tuple[DataFinding, ...] = ()

    @property
    def split_names(self) -> tuple[str, ...]:
        """Names of the splits, of which the index may hold only a part: `train` for `train[:95%]`."""
        return tuple(dict.fromkeys(split.split("[")[0] for split in self.splits))

    @property
    def drop_reasons(self) -> str:
        """The reasons and the number of episodes dropped for each, for messages."""
        return ", ".join(f"{reason}: {count}" for reason, (count, _) in self.summary.dropped.items())


@dataclass(frozen=True, kw_only=True)
class IndexJson:
    """The contents of index.json.

    Attributes:
        source: root of the data sets.
        criteria: of the run, as in a criteria file.
        cards: absolute path of the folder of the user's own cards; None if none was given.
        files_sha256: of files.json.
    """

    source: str
    criteria: dict[str, Any]
    datasets: dict[str, DatasetEntry]
    cards: str | None = None
    files_sha256: str = ""
    software: str = f"oxe-curate {__version__}"

    @classmethod
    def read(cls, folder: Folder, name: str = INDEX_JSON) -> IndexJson:
        """Read and check the file.

        Raises:
            ConfigError: it is not an index.json, or of another format version.
            DataError: it was changed or damaged (the folders `source` and `cards` may be edited).
        """
        where = f"{folder}/{name}"
        try:
            data = json.loads(folder.read_bytes(name))
            version = data["format"]
            if version == FORMAT:
                _check(data, where)
                data["datasets"] = {dataset: _nested(entry) for dataset, entry in data["datasets"].items()}
                return config.build(cls, data, where)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ConfigError(
                f"{where}: not a valid index file ({str(error)[:200]}); run `oxe-curate filter` again"
            ) from None
        older = version == 1
        raise ConfigError(
            f"{where}: index format {str(version)[:20]} is not supported (expected {FORMAT}); run `oxe-curate filter` "
            + ("with the same options again, which converts the index" if older else "again")
        )

    def write(self, folder: Folder, name: str = INDEX_JSON) -> None:
        """Publish the file."""
        data = {
            "format": FORMAT,
            "software": self.software,
            "source": self.source,
            **({"cards": self.cards} if self.cards else {}),
            "files_sha256": self.files_sha256,
            "criteria": self.criteria,
            "datasets": {dataset: _flat(self.datasets[dataset]) for dataset in sorted(self.datasets)},
        }
        folder.publish_bytes(name, (json.dumps(seal(data, _EDITABLE), indent=1) + "\n").encode())

    def retract(self, folder: Folder) -> None:
        """Replace index.json by unfinished.json before index files change."""
        self.write(folder, UNFINISHED)
        folder.remove(INDEX_JSON)

    def finish(self, folder: Folder) -> None:
        """Write index.json after the last index file has changed."""
        self.write(folder)
        folder.remove(UNFINISHED)


_EDITABLE = ("source", "cards")
"""Folders, which may move; whatever is found there is compared with the index anyway."""


def _check(data: dict[str, Any], where: str) -> None:
    if CHECKSUM not in data:
        raise DataError(f"{where}: changed or damaged after it was written (no checksum). {_AGAIN}")
    try:
        check_seal(data, where, _EDITABLE)
    except DataError as error:
        raise DataError(f"{error}. {_AGAIN}") from None
    del data[CHECKSUM]


_AGAIN = "Run the same `oxe-curate filter` again (finished files are kept)."


def _nested(entry: Mapping[str, Any]) -> dict[str, Any]:
    counts = {key: entry[key] for key in Summary.__dataclass_fields__ if key in entry}
    return {**{key: value for key, value in entry.items() if key not in counts}, "summary": counts}


def _flat(entry: DatasetEntry) -> dict[str, Any]:
    data = asdict(entry)
    counts = data.pop("summary")
    for name in ("source", "judged", "facts", "findings"):
        if not data[name]:
            del data[name]
    return {**data, **counts}


def existing_cards(cards: Path, where: str) -> Path:
    """Return a remembered folder of cards. Raises ConfigError if it no longer exists."""
    if not cards.is_dir():
        raise ConfigError(f"{where}: the folder of cards {cards} no longer exists; give its new place with --cards")
    return cards
