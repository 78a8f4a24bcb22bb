"""sources.parquet: the source shards whose frames a mixture by reference names, and whether they are still the same.

A row of such a mixture holds the number of its source shard here, and the byte range of each frame in it. The root of
a data set can be replaced when its shards have moved; what identifies a shard is its contents, as the index knows them.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from oxe_curate.errors import CurateError, DataError, StorageError
from oxe_curate.index.files import SourceShard
from oxe_curate.index.source_shards import list_shards, matches_shard, read_looks
from oxe_curate.index.store import Index
from oxe_curate.progress import Bar
from oxe_curate.storage import Folder, StoredFile

SOURCES = "sources.parquet"
REFERENCE = "reference"
"""The manifest's `images` of a mixture by reference."""
_LOCAL_READERS, _REMOTE_READERS = 8, 64  # shards whose framing is read at once
_SCHEMA = pa.schema(
    [
        ("dataset", pa.string()),
        ("root", pa.string()),
        ("path", pa.string()),
        ("bytes", pa.int64()),
        ("records", pa.int64()),
        ("digest", pa.string()),
        ("identity", pa.string()),
    ]
)
ADVICE = (
    "Restore the files, or give the folder that has them with --source; if the data changed, run `oxe-curate filter` "
    "and `oxe-curate tokenize` again"
)


@dataclass(frozen=True, slots=True)
class ReferencedShard:
    """A source shard that a mixture draws from.

    Attributes:
        dataset: the mixture's name of its data set.
        root: of the data set's shards.
        shard: its path below the root and its contents, as the index describes them.
        identity: in a listing, when its contents were last compared; "" if they never were.
    """

    dataset: str
    root: Folder
    shard: SourceShard
    identity: str = ""

    @property
    def name(self) -> str:
        """The file, for messages."""
        return f"{self.root}/{self.shard.path}"

    @property
    def folder(self) -> str:
        """The folder below the root that lists it."""
        return self.shard.path.rpartition("/")[0]


@dataclass(frozen=True)
class MixtureSources(Sequence[ReferencedShard]):
    """The source shards of a mixture; a row's `source` is the index of one."""

    rows: tuple[ReferencedShard, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: Any) -> Any:
        return self.rows[number]

    def moved(self, root: Folder) -> MixtureSources:
        """The same shards below another root, which holds all data sets."""
        return MixtureSources(tuple(replace(row, root=root) for row in self.rows))

    def identified(self, other: MixtureSources) -> MixtureSources:
        """The same shards with the identities that `other` has of them, of a later comparison."""
        known = {(row.name, row.shard): row.identity for row in other}
        return self._with({row.name: known.get((row.name, row.shard), row.identity) for row in self.rows})

    def find(self) -> dict[str, StoredFile]:
        """The files ("root/path" -> file), by one listing per folder.

        Raises:
            DataError: shards are missing, or have another size. StorageError: a folder cannot be listed.
        """
        found = list_shards((row.root, row.folder) for row in self.rows)
        missing = [row for row in self.rows if row.name not in found]
        resized = [row for row in self.rows if row.name in found and found[row.name].size != row.shard.bytes]
        if missing or resized:
            raise self._different(missing, resized)
        return found

    def compare(self, progress: bool = False) -> MixtureSources:
        """Compare the shards with what is on disk, by one listing per folder.

        A shard whose identity in the listing is the recorded one counts as unchanged. Of others, the size and the
        framing of all records are compared with the index.

        Args:
            progress: whether to show a progress bar while framings are read.

        Returns:
            The shards with their identities now.

        Raises:
            DataError: shards are missing, or have changed. StorageError: they cannot be read.
        """
        found = self.find()
        unknown = {row.name: row for row in self.rows if row.identity != found[row.name].identity}
        if changed := _changed(list(unknown.values()), progress):
            raise self._different([], changed, contents=True)
        return self._with({name: file.identity for name, file in found.items()})

    def _with(self, identities: Mapping[str, str]) -> MixtureSources:
        return MixtureSources(tuple(replace(row, identity=identities[row.name]) for row in self.rows))

    def _different(
        self, missing: Sequence[ReferencedShard], other: Sequence[ReferencedShard], contents: bool = False
    ) -> DataError:
        """The error that names the first of the shards that are missing or differ, and counts them."""
        first, count = (missing or other)[0], len(self.rows)
        if missing:
            what = "not found"
            if len(missing) == count > 1:
                what += f", and neither is any other of the {count:,} source shards"
        elif contents:
            what = f"its records are not those that were filtered ({first.shard.records:,} records were recorded)"
        else:
            what = f"its size differs from the {first.shard.bytes:,} bytes that were filtered"
        others = len(missing) + len(other) - 1
        if others and len(missing) < count:
            what += f"; {others:,} more of {count:,} source shards are missing or have changed"
        return DataError(f"{first.name}: {what}. The mixture refers to frames in this file. {ADVICE}")


def compare_sources(
    index: Index, shards: Sequence[ReferencedShard], progress: bool = False
) -> tuple[MixtureSources, tuple[str, ...]]:
    """Compare source shards with what is on disk, as far as their folders are there.

    Args:
        index: that describes them; it knows how they looked when they were filtered.
        shards: to compare.
        progress: whether to show a progress bar.

    Returns:
        The shards with their identities, and a warning for each data set whose folder is not there.

    Raises:
        DataError: shards are missing, or have changed. StorageError: they cannot be read.
    """
    looks = read_looks(index.folder)
    folders = {name.rpartition("/")[0] for name in list_shards((shard.root, shard.folder) for shard in shards)}
    there = [f"{shard.root}/{shard.folder}" in folders for shard in shards]
    known = [replace(s, identity=looks.get(s.name, "")) for s, found in zip(shards, there, strict=True) if found]
    compared = iter(MixtureSources(tuple(known)).compare(progress))
    rows = tuple(next(compared) if found else shard for shard, found in zip(shards, there, strict=True))
    absent = sorted({f"{s.root}/{s.folder}" for s, found in zip(shards, there, strict=True) if not found})
    if not absent:
        return MixtureSources(rows), ()
    more = f" and {len(absent) - 1} other folders of data sets were" if len(absent) > 1 else " was"
    line = (
        f"{absent[0]}{more} not found, so their shards were not compared with the index. Training compares them before "
        "it reads them; if they have moved, give their folder with --source there."
    )
    return MixtureSources(rows), (line,)


def _changed(rows: Sequence[ReferencedShard], progress: bool) -> list[ReferencedShard]:
    """Those whose records are not framed as the index says."""
    readers = _LOCAL_READERS if all(row.root.is_local for row in rows) else _REMOTE_READERS
    total = sum(row.shard.bytes for row in rows)
    with ThreadPoolExecutor(readers) as pool, Bar("compare sources", total, enabled=progress) as bar:
        futures = [pool.submit(matches_shard, row.root, row.shard.path, row.shard) for row in rows]
        changed = []
        try:
            for row, future in zip(rows, futures, strict=True):
                if not future.result():
                    changed.append(row)
                bar.add(row.shard.bytes)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        return changed


def write_sources(out: Folder, sources: Sequence[ReferencedShard]) -> None:
    """Publish sources.parquet: a function of the rows."""
    columns = [
        [row.dataset for row in sources],
        [row.root.uri for row in sources],
        [row.shard.path for row in sources],
        [row.shard.bytes for row in sources],
        [row.shard.records for row in sources],
        [row.shard.digest for row in sources],
        [row.identity for row in sources],
    ]
    buffer = io.BytesIO()
    table = pa.table([pa.array(c, f.type) for c, f in zip(columns, _SCHEMA, strict=True)], schema=_SCHEMA)
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    out.publish_bytes(SOURCES, buffer.getvalue())


def read_sources(folder: Folder, source: Folder | None = None) -> MixtureSources:
    """Read sources.parquet.

    Args:
        folder: the mixture.
        source: root that replaces those of all data sets.

    Raises:
        DataError: the file is missing or damaged.
    """
    where = f"{folder}/{SOURCES}"
    try:
        data = folder.read_bytes(SOURCES)
        table = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True).read(use_threads=False)
        if table.schema.remove_metadata() != _SCHEMA:
            raise ValueError("it has other columns")
        rows = []
        for entry in table.to_pylist():
            shard = SourceShard(**{key: entry[key] for key in ("path", "bytes", "records", "digest")})
            if None in entry.values() or shard.path.startswith("/") or ".." in shard.path.split("/"):
                raise ValueError(f"expected a path below the root, got {shard.path!r}")
            rows.append(ReferencedShard(entry["dataset"], Folder.of(entry["root"]), shard, entry["identity"]))
        found = MixtureSources(tuple(rows))
        return found if source is None else found.moved(source)
    except StorageError as error:
        raise DataError(f"{error}. Copy the folder again, or run tokenize again") from None
    except CurateError:
        raise
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise DataError(f"{where}: damaged ({error}). Copy the folder again, or run tokenize again") from None
