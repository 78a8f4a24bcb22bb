"""The episode index: one Parquet file per source shard with one row per episode, kept or dropped; and index.json.

See docs/formats.md. A row has an episode's location, the filter's decision and its reason, the standardised actions
and the locations of its frames, so that every later command needs only the index and the frames.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from oxe_curate.errors import ConfigError, CurateError, DataError
from oxe_curate.index.files import IndexFile, SourceShard, read_files
from oxe_curate.index.index_json import FORMAT, INDEX_JSON, DatasetEntry, IndexJson, Summary, existing_cards
from oxe_curate.index.layout import WRITE_OPTIONS, value_offsets
from oxe_curate.index.table import SCHEMA
from oxe_curate.lru import LruCache
from oxe_curate.sealed import check_seal, seal
from oxe_curate.storage import Folder

_META = b"oxe_curate"
_KEPT = 256 << 20
"""Bytes of index files in an object store that a command keeps in memory."""
_TAIL = 32 << 10  # bytes; a footer has about 10 KB
_AGAIN = "run the same `oxe-curate filter` again (finished files are kept)"


def write_table(
    out: Folder, path: str, table: pa.Table, summary: Summary, fingerprint: str, shard: SourceShard
) -> None:
    """Publish the rows of one source shard; what is known of the shard goes into the file's metadata."""
    out.publish_bytes(path, _encode(table, summary, fingerprint, shard))


def _encode(table: pa.Table, summary: Summary, fingerprint: str, shard: SourceShard) -> bytes:
    """The bytes of an index file: a function of its contents."""
    table = pa.table(table.combine_chunks().columns, schema=SCHEMA)  # with the schema's names for the items of lists
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, table.schema, **WRITE_OPTIONS) as writer:
        writer.write_table(table, row_group_size=max(len(table), 1))
        meta = {
            "format": FORMAT, "fingerprint": fingerprint, "summary": asdict(summary), "shard": asdict(shard),
            "body_sha256": hashlib.sha256(buffer.getbuffer()).hexdigest(),
        }  # fmt: skip
        writer.add_key_value_metadata({_META: json.dumps(seal(meta), sort_keys=True)})
    return buffer.getvalue()


def read_footer(file: Any) -> bytes:
    """The last bytes of an open Parquet file: its footer, the footer's length and the magic number.

    Raises:
        ValueError: the file is too short, or does not end as a Parquet file does.
    """
    size = int(file.size())
    tail = bytes(file.read_at(min(size, _TAIL), max(size - _TAIL, 0)))
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if size < 12 or tail[-4:] != b"PAR1" or length > size - 4:
        raise ValueError("its end is not that of a Parquet file")
    return tail[-length:] if length <= len(tail) else bytes(file.read_at(length, size - length))


@contextmanager
def _damaged(where: str) -> Iterator[None]:
    """Turn whatever pyarrow raises for a damaged file into a DataError."""
    try:
        yield
    except CurateError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError, MemoryError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise DataError(f"{where}: damaged ({reason}); delete it and {_AGAIN}") from None


def describe_file(out: Folder, path: str, whole: bool = False) -> IndexFile:
    """What an index file is, from its footer.

    Args:
        out: the index.
        path: of the file.
        whole: read the whole file, and compare it with what its contents are written as.

    Raises:
        DataError: the file is damaged, or is not an index file of this format.
    """
    with _damaged(f"{out}/{path}"), out.open(path) as file:
        footer, size = read_footer(file), int(file.size())
        metadata = pq.read_metadata(pa.BufferReader(footer))
        meta = json.loads((metadata.metadata or {})[_META])
        if meta["format"] != FORMAT:
            raise ValueError(f"index format {meta['format']}, expected {FORMAT}")
        check_seal(meta, f"{out}/{path}")
        shard, summary = SourceShard(**meta["shard"]), Summary(**meta["summary"])
        if whole:
            data = file.read_at(size, 0)
            table = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read(use_threads=False)
            if _encode(table, summary, meta["fingerprint"], shard) != data:
                raise ValueError("some of its bytes have changed")
        return IndexFile(
            rows=metadata.num_rows, bytes=size, footer_sha256=hashlib.sha256(footer).hexdigest(),
            fingerprint=meta["fingerprint"], shard=shard, summary=summary,
            values_at=value_offsets(metadata, lambda offset, length: bytes(file.read_at(length, offset))),
        )  # fmt: skip


def describe_files(out: Folder, paths: Sequence[str]) -> dict[str, IndexFile]:
    """`describe_file` of many files at a time."""
    with ThreadPoolExecutor(4 if out.is_local else 32) as pool:
        return dict(zip(paths, pool.map(lambda path: describe_file(out, path), paths), strict=True))


def verify_file(out: Folder, path: str, entry: IndexFile) -> None:
    """Read a whole index file and compare it with files.json. Raises DataError if they differ."""
    if describe_file(out, path, whole=True).footer_sha256 != entry.footer_sha256:
        raise DataError(_changed(out, path))


def _changed(out: Folder, path: str) -> str:
    return f"{out}/{path}: changed after filter wrote it (its footer differs from files.json); delete it and {_AGAIN}"


def read_table(
    out: Folder, path: str, entry: IndexFile, columns: Sequence[str] | None = None, keep: LruCache[bytes] | None = None
) -> pa.Table:
    """Read an index file, or some of its columns, comparing the footer and every page read with their checksums.

    Args:
        out: the index.
        path: of the file.
        entry: what files.json says of it.
        columns: None for all.
        keep: whole files that were read before; such a file is read whole.

    Raises:
        DataError: the file is damaged, or is not the one that files.json describes.
    """

    def whole() -> tuple[bytes, int]:
        data = out.read_bytes(path)
        return data, len(data)

    kept = None if keep is None else pa.BufferReader(keep.get((path, entry.footer_sha256), whole))
    with _damaged(f"{out}/{path}"), kept or out.open(path) as file:
        if int(file.size()) != entry.bytes:
            raise DataError(_changed(out, path))
        footer = read_footer(file)
        if hashlib.sha256(footer).hexdigest() != entry.footer_sha256:
            raise DataError(_changed(out, path))
        # parsing the footer costs more than reading it again, except over a network
        metadata = None if out.is_local else pq.read_metadata(pa.BufferReader(footer))
        # pq.read_table would import pyarrow.dataset, which takes 0.2 s
        parquet = pq.ParquetFile(file, metadata=metadata, page_checksum_verification=True)
        table = parquet.read(columns=None if columns is None else list(columns), use_threads=False)
        return table.replace_schema_metadata()


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
        keep: keeps whole files of an object store in memory, for a command that reads them several times; else None.
    """

    folder: Folder
    entries: Mapping[str, IndexFile]
    keep: LruCache[bytes] | None = None

    @classmethod
    def to_read_again(cls, folder: Folder, entries: Mapping[str, IndexFile]) -> IndexFiles:
        """For a command that reads files several times."""
        return cls(folder, entries, None if folder.is_local else LruCache(_KEPT))

    def with_entries(self, entries: Mapping[str, IndexFile]) -> IndexFiles:
        """The same folder after files have changed."""
        return IndexFiles(self.folder, entries, self.keep)

    def entry(self, path: str) -> IndexFile:
        """What files.json says of an index file. Raises DataError if it is not in the index."""
        if path not in self.entries:
            raise DataError(f"{self.folder}/{path}: not in files.json; {_AGAIN}")
        return self.entries[path]

    def table(self, path: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Read one index file. Raises DataError if it is damaged or changed."""
        return read_table(self.folder, path, self.entry(path), columns, self.keep)


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
                    f"such as {(missing or wrong)[0]}; {_AGAIN}"
                )
            total = sum(self.contents.entries[path].rows for path in mine)
            if total != self.datasets[dataset].summary.seen:
                raise DataError(
                    f"{self.folder}: {INDEX_JSON} counts {self.datasets[dataset].summary.seen} episodes of {dataset}, "
                    f"files.json {total}; {_AGAIN}"
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
