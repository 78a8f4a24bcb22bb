"""Mixture shards on a local disk: any row at any time, its images by byte offset.

Row groups' numbers are read when first wanted and kept, up to a bound on memory; images are read with pread, so that
neither a slow disk nor a decoder holds the interpreter's lock. Nothing is written to disk.
"""

from __future__ import annotations

import os
import threading
import weakref
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from oxe_curate.errors import DataError, StorageError
from oxe_curate.lru import LruCache
from oxe_curate.storage import explain
from oxe_curate.tokenize.folder import MixtureFolder
from oxe_curate.train.data import pages
from oxe_curate.train.data.rows import TEXT_COLUMNS, TEXT_RECORD, Form, Located, numbers, stored_observations

MEMORY = 4 << 30
"""Bytes of numbers that a process keeps: 65 million rows of one image and one action, or 4 million windows of 12."""
_OPEN_FILES, _FOOTERS = 256, 64
MEND = "Remove that shard and run tokenize again: it makes the ones that are missing"
_ADVISE = hasattr(os, "posix_fadvise")


@dataclass(frozen=True)
class ShardName:
    """A shard by the manifest: its name, rows and bytes, and whether it holds image-text rows."""

    name: str
    rows: int
    size: int
    text: bool


class LocalRows:
    """The rows of some shards, in their order, any of them at any time. Safe among threads.

    Args:
        mixture: a local folder.
        shards: names, rows and sizes, by the manifest.
        form: what of a row is wanted.
        memory: bytes of numbers kept; row groups used longest ago go first.

    Raises:
        DataError: a shard is missing or its size is not the manifest's.
    """

    def __init__(self, mixture: MixtureFolder, shards: Sequence[ShardName], form: Form, memory: int = MEMORY) -> None:
        self.form = form
        self._folder = mixture.folder
        self._shards = [shard for shard in shards if shard.rows]
        for shard in self._shards:
            _check_size(f"{self._folder}/{shard.name}", self._folder.path(shard.name), shard.size)
        self._starts = [0, *accumulate(shard.rows for shard in self._shards)]
        self._groups: dict[int, list[int]] = {}
        self._files: LruCache[_File] = LruCache(_OPEN_FILES)
        self._footers: LruCache[_Footer] = LruCache(_FOOTERS)
        self._blocks: LruCache[LocalBlock] = LruCache(memory)
        self._texts: dict[str, str] = {}

    def __len__(self) -> int:
        return self._starts[-1]

    def locate(self, row: int) -> tuple[LocalBlock, int]:
        """The row group that holds a row, and the row's place in it.

        Raises:
            DataError: the shard is damaged; names it. StorageError: it cannot be read.
        """
        number = bisect_right(self._starts, row) - 1
        place = row - self._starts[number]
        starts = self._groups.get(number)
        if starts is None:
            found = self._footer(number).group_starts(self._shards[number].rows)
            starts = self._groups[number] = found.tolist()
        group = bisect_right(starts, place) - 1
        block = self._blocks.get((number, group), lambda: self._load(number, group))
        return block, place - starts[group]

    def claim(self, rows: NDArray[np.int64]) -> Callable[[], list[Located]]:
        """Rows to be located when the result is called, in whatever thread."""
        return lambda: [self.locate(row) for row in rows.tolist()]

    def batches(self, plan: Iterator[NDArray[np.int64]]) -> Generator[Callable[[], list[Located]], None, None]:
        """Claim one batch of rows after another."""
        for rows in plan:
            yield self.claim(rows)

    def _file(self, number: int) -> _File:
        return self._files.get(number, lambda: (_File(f"{self._folder}/{self._shards[number].name}"), 1))

    def _footer(self, number: int) -> _Footer:
        return self._footers.get(number, lambda: (_Footer(f"{self._folder}/{self._shards[number].name}"), 1))

    def _load(self, number: int, group: int) -> tuple[LocalBlock, int]:
        text = self._shards[number].text
        footer = self._footer(number)
        table = footer.table(group, TEXT_COLUMNS if text else self.form.columns())
        try:
            if text:
                records = np.zeros(len(table), TEXT_RECORD)
                texts: tuple[Any, ...] = (Texts(table["question"]), Texts(table["answer"]))
                size = records.nbytes + table.nbytes
                columns, mask = ["image"], np.ones((len(table), 1), bool)
            else:
                records, instructions = numbers(table, self.form)
                texts = ([self._texts.setdefault(text, text) for text in instructions],)
                size = records.nbytes + 8 * len(records)
                columns = [f"image_{role}" for role in self.form.cameras]
                mask = stored_observations(table, self.form)
            window = records["frame"].shape[1]
            for camera, column in enumerate(columns):
                found = self._images(number, group, column, mask)
                records["frame"][:, :, camera] = found[:, mask.shape[1] - window :]
        except DataError as error:
            raise DataError(f"{footer.name}: row group {group}: {error}. {MEND}") from None
        return LocalBlock(self, number, group, self._groups[number][group], records, texts), size

    def _images(self, number: int, group: int, column: str, mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Offsets and lengths of an image column, int64 (n, W, 2) for a mask (n, W); zeros where it is False."""
        file = self._file(number)
        start, size, levels = self._footer(number).chunk(group, column, list_of=mask.shape[1] > 1)
        file.advise(start, size)  # one read of the whole group instead of one for each image's length
        found = np.zeros((*mask.shape, 2), np.int64)
        found[mask] = np.stack(pages.value_offsets(file.read, start, size, int(mask.sum()), levels), axis=-1)
        return found


class Texts(Sequence[str]):
    """A column of texts as they lie in Arrow's memory; null reads as "".

    Args:
        column: chunked string array.
    """

    def __init__(self, column: Any) -> None:
        self._column = column.combine_chunks()

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, row: Any) -> Any:
        return self._column[int(row)].as_py() or ""


@dataclass(frozen=True, eq=False)
class LocalBlock:
    """A row group: see `rows.Block`. `first` is the shard's number of its first row."""

    source: LocalRows
    number: int
    group: int
    first: int
    records: NDArray[Any]
    texts: tuple[Sequence[str], ...]

    def frame(self, row: int, observation: int, camera: int) -> bytes:
        """Read an encoded image. Raises StorageError, or DataError for a file that has become shorter."""
        offset, length = self.records["frame"][row, observation, camera].tolist()
        return self.source._file(self.number).read_exactly(offset, length)

    def where(self, row: int) -> str:
        """The shard and the row in it."""
        return f"{self.source._footer(self.number).name}: row {self.first + row}"

    def sample_id(self, row: int) -> str:
        """Read the group's ids."""
        return str(self.source._footer(self.number).table(self.group, ["sample_id"])["sample_id"][row].as_py())


class _File:
    """An open shard. Its descriptor closes with the last reference, so that no thread reads another file by it."""

    def __init__(self, name: str) -> None:
        self.name = name
        try:
            self._descriptor = os.open(name, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise StorageError(f"{name}: {explain(error)}") from error
        weakref.finalize(self, os.close, self._descriptor)
        if _ADVISE:
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_RANDOM)

    def advise(self, start: int, size: int) -> None:
        """Let the system read a part ahead."""
        if _ADVISE:
            os.posix_fadvise(self._descriptor, start, size, os.POSIX_FADV_WILLNEED)

    def read(self, offset: int, length: int) -> bytes:
        """A part of the file, shorter at its end."""
        try:
            return os.pread(self._descriptor, length, offset)
        except OSError as error:
            raise StorageError(f"{self.name}: {explain(error)}") from error

    def read_exactly(self, offset: int, length: int) -> bytes:
        """A part of the file."""
        data = self.read(offset, length)
        if len(data) != length:
            raise DataError(f"{self.name}: ends before byte {offset + length}: it was changed. {MEND}")
        return data


class _Footer:
    """A shard's Parquet metadata, some 11 kB a row group, and its columns of numbers and texts."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        try:
            self._parquet = pq.ParquetFile(name, memory_map=True)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{name}: its footer is damaged ({error}). {MEND}") from None

    def group_starts(self, rows: int) -> NDArray[np.int64]:
        """int64 (groups,): the first row of each row group."""
        return group_starts(self._parquet.metadata, rows, self.name)

    def table(self, group: int, columns: Sequence[str]) -> Any:
        """Columns of a row group."""
        try:
            with self._lock:  # Arrow promises no safety among threads for one reader
                table = self._parquet.read_row_group(group, list(columns), use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.name}: row group {group}: {error}. {MEND}") from None
        return checked_columns(table, columns, self.name)

    def chunk(self, group: int, column: str, list_of: bool) -> tuple[int, int, tuple[int, int]]:
        """Where an image column's chunk begins, its bytes, and its largest repetition and definition level."""
        metadata = self._parquet.metadata
        leaf = image_leaf(column, list_of)
        names = [metadata.schema.column(i).path for i in range(len(metadata.schema))]
        if leaf not in names:
            raise DataError(f"has no column {leaf!r}")
        number = names.index(leaf)
        chunk, levels = metadata.row_group(group).column(number), metadata.schema.column(number)
        if chunk.compression != "UNCOMPRESSED":
            raise DataError(f"{column} is compressed")
        start, size = chunk.data_page_offset, chunk.total_compressed_size
        return start, size, (levels.max_repetition_level, levels.max_definition_level)


def image_leaf(column: str, list_of: bool) -> str:
    """The Parquet path of an image column's bytes."""
    return f"{column}.list.element.bytes" if list_of else f"{column}.bytes"


def group_starts(metadata: Any, rows: int, name: str) -> NDArray[np.int64]:
    """int64 (groups,): the first row of each row group. Raises DataError unless the shard holds `rows` rows."""
    if metadata.num_rows != rows:
        raise DataError(f"{name}: holds {metadata.num_rows} rows, the manifest says {rows}. {MEND}")
    sizes = np.array([metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)], np.int64)
    return np.cumsum(sizes) - sizes


def checked_columns(table: Any, columns: Sequence[str], name: str) -> Any:
    """The table, if it has the columns asked for, which Arrow leaves out without a word. Raises DataError."""
    roots = {column.partition(".")[0] for column in columns}
    if missing := roots - set(table.column_names):
        raise DataError(f"{name}: has no column {sorted(missing)[0]!r}. {MEND}")
    return table


def _check_size(name: str, path: Path, size: int) -> None:
    try:
        found = path.stat().st_size
    except OSError as error:
        raise DataError(f"{name}: {explain(error)}. {MEND}") from None
    if found != size:
        raise DataError(f"{name}: has {found} bytes, the manifest says {size}. {MEND}")


def split_shards(mixture: MixtureFolder, *splits: str) -> list[ShardName]:
    """The shards of some splits ("train", "validation", "text"), by the manifest."""
    told = mixture.manifest["outputs"]
    try:
        return [
            ShardName(name, int(told[name]["rows"]), int(told[name]["bytes"]), split == "text")
            for split in splits
            for name in mixture.shards(split)
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{mixture.folder}/manifest.json: damaged ({error}). {MEND}") from None
