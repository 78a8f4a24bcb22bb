"""The episode index: one Parquet file per source shard with one row per episode, kept or dropped; and index.json.

See docs/formats.md. A row has an episode's location, the filter's decision and its reason, the standardised actions
and the locations of its frames, so that every later command needs only the index and the frames.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from oxe_curate.errors import ConfigError, DataError
from oxe_curate.index.files import IndexFile, read_files
from oxe_curate.index.index_json import INDEX_JSON, DatasetEntry, IndexJson, Summary, existing_cards
from oxe_curate.index.rows_file import (
    AGAIN,
    describe_file,
    describe_files,
    read_footer,
    read_table,
    verify_file,
    write_table,
)  # fmt: skip
from oxe_curate.index.table import SCHEMA
from oxe_curate.lru import LruCache
from oxe_curate.storage import Folder

KEPT = 256 << 20
"""Bytes of index files that a command keeps in memory if it reads them several times."""


def split_of(path: str) -> str:
    """Return the split that an index file belongs to."""
    return path.rsplit("/", 1)[-1].rsplit("-", 3)[0]


def dataset_of(path: str) -> tuple[str, str]:
    """The data set and the version that an index file belongs to."""
    dataset, version, _ = path.rsplit("/", 2)
    return dataset, version


def count_episodes(files: Mapping[str, IndexFile], dataset: str, version: str) -> Summary:
    """The counts of a data set's index files together."""
    summary = Summary()
    for path in sorted(files):
        if dataset_of(path) == (dataset, version):
            summary.add(files[path].summary)
    return summary


@dataclass(frozen=True, eq=False)
class IndexFiles:
    """The index files of a folder, as files.json (or a run that is about to write it) describes them.

    Attributes:
        tables: whole files by (path, SHA-256 of the footer), for a command that reads them several times; else None.
    """

    folder: Folder
    entries: Mapping[str, IndexFile]
    tables: LruCache[pa.Table] | None = None

    @classmethod
    def to_read_again(
        cls, folder: Folder, entries: Mapping[str, IndexFile], tables: LruCache[pa.Table] | None = None
    ) -> IndexFiles:
        """For a command that reads files several times; `tables` has some already."""
        return cls(folder, entries, LruCache(KEPT) if tables is None else tables)

    def with_entries(self, entries: Mapping[str, IndexFile]) -> IndexFiles:
        """The same folder after files have changed."""
        return IndexFiles(self.folder, entries, self.tables)

    def entry(self, path: str) -> IndexFile:
        """What files.json says of an index file. Raises DataError if it is not in the index."""
        if path not in self.entries:
            raise DataError(f"{self.folder}/{path}: not in files.json; {AGAIN}")
        return self.entries[path]

    def table(self, path: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Read one index file. Raises DataError if it is damaged or changed."""
        found = self.kept(path, columns)
        if found is not None:
            return found
        entry = self.entry(path)
        if self.tables is None or not self._worth_keeping:
            return read_table(self.folder, path, entry, columns)

        def whole() -> tuple[pa.Table, int]:
            table = read_table(self.folder, path, entry)
            return table, table.nbytes

        table = self.tables.get((path, entry.footer_sha256), whole)
        return table if columns is None else table.select(columns)

    def kept(self, path: str, columns: Sequence[str] | None = None) -> pa.Table | None:
        """The same if the file is in memory, else None."""
        table = self.tables.peek((path, self.entry(path).footer_sha256)) if self.tables else None
        return table if table is None or columns is None else table.select(columns)

    @functools.cached_property
    def _worth_keeping(self) -> bool:
        """Whether to read whole files: always over a network, where requests cost more, else if all fit in memory."""
        return not self.folder.is_local or sum(entry.bytes for entry in self.entries.values()) <= KEPT


@dataclass(frozen=True, eq=False)
class Index:
    """An opened index: the contents of index.json, and access to the index files.

    Attributes:
        source: root of the data sets that were filtered; see `source_of`.
        criteria: those of the run, as in a criteria file.
        cards: the folder of the user's own cards that filter was given, if any.
        moved: root that replaces those of all data sets (`--source`).
    """

    folder: Folder
    source: Folder
    datasets: dict[str, DatasetEntry]
    criteria: dict[str, Any]
    cards: Path | None = None
    files_sha256: str | None = None
    moved: Folder | None = None

    @classmethod
    def open(cls, uri: Any, source: str | Path | Folder | None = None) -> Index:
        """Open a folder that filter wrote.

        Args:
            uri: the folder.
            source: where the data sets are now, if they are not where they were filtered.

        Raises:
            ConfigError: it is not an index, or one of another format version.
            DataError: index.json is damaged.
        """
        folder = uri if isinstance(uri, Folder) else Folder.of(uri)
        if not folder.exists(INDEX_JSON):
            raise ConfigError(
                f"{INDEX_JSON} not found in {folder}; run `oxe-curate filter SOURCE --out {folder}` first"
            )
        data = IndexJson.read(folder)
        cards = Path(data.cards) if data.cards else None
        moved = source if isinstance(source, Folder) or source is None else Folder.of(source)
        return cls(
            folder, Folder.of(data.source), data.datasets, data.criteria, cards, data.files_sha256 or None, moved
        )

    def source_of(self, dataset: str) -> Folder:
        """The root of a data set's shards: `--source`, its own entry in index.json, or that of the whole index."""
        own = self.datasets[dataset].source
        return self.moved or (Folder.of(own) if own else self.source)

    def find_cards(self, given: Path | None = None) -> Path | None:
        """Return the folder of the user's own cards: `given`, or the one that filter was given.

        Raises:
            ConfigError: the folder that filter was given no longer exists.
        """
        if given is not None or self.cards is None:
            return given
        return existing_cards(self.cards, f"{self.folder}/{INDEX_JSON}")

    @functools.cached_property
    def contents(self) -> IndexFiles:
        """The index files that files.json lists. Raises DataError if it is damaged or belongs to another index.json."""
        return IndexFiles(self.folder, read_files(self.folder, self.files_sha256))

    @functools.cached_property
    def _paths(self) -> dict[str, list[str]]:
        """Data set -> its index files, sorted, after comparing them with the folder in one listing."""
        versions = {name: entry.version for name, entry in self.datasets.items()}
        paths: dict[str, list[str]] = {name: [] for name in versions}
        for path in sorted(self.contents.entries):
            dataset, version = dataset_of(path)
            if versions.get(dataset) == version:
                paths[dataset].append(path)
        sizes = {file.name: file.size for file in self.folder.list_files()}
        for dataset, mine in paths.items():
            wrong = [path for path in mine if sizes.get(path) != self.contents.entries[path].bytes]
            if wrong:
                missing = [path for path in wrong if path not in sizes]
                problem = "missing" if missing else "of another size than filter wrote"
                raise DataError(
                    f"{self.folder}: {len(missing or wrong)} of {len(mine)} index files of {dataset} are {problem}, "
                    f"such as {(missing or wrong)[0]}; {AGAIN}"
                )
            total = sum(self.contents.entries[path].rows for path in mine)
            if total != self.datasets[dataset].summary.seen:
                raise DataError(
                    f"{self.folder}: {INDEX_JSON} counts {self.datasets[dataset].summary.seen} episodes of {dataset}, "
                    f"files.json {total}; {AGAIN}"
                )
        return paths

    def files(self, dataset: str) -> list[str]:
        """Paths of a data set's index files, sorted.

        Raises:
            DataError: files.json is damaged; files are missing, or of another size; their rows do not add up.
        """
        return self._paths[dataset]

    def entry(self, path: str) -> IndexFile:
        """What files.json says of an index file."""
        return self.contents.entry(path)

    def tables(self, dataset: str, columns: Sequence[str]) -> Iterator[tuple[str, pa.Table]]:
        """Yield (file, table with these columns) one source shard at a time."""
        for path in self.files(dataset):
            yield path, self.table(path, columns)

    def table(self, path: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Read one index file. Raises DataError if it is damaged."""
        return self.contents.table(path, columns)


__all__ = [
    "SCHEMA", "Index", "IndexFiles", "count_episodes", "dataset_of", "describe_file", "describe_files", "read_footer",
    "read_table", "split_of", "verify_file", "write_table",
]  # fmt: skip
