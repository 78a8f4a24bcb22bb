"""Mixture shards on a local disk: any row at any time, its images by byte offset.

The numbers of a row group are read at first use and kept, up to a memory limit. Images are read with pread, so that
neither a slow disk nor a decoder holds the interpreter lock. Nothing is written to disk.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from oxe_curate.errors import DataError
from oxe_curate.lru import LruCache
from oxe_curate.storage import explain
from oxe_curate.tokenize.folder import MixtureFolder
from oxe_curate.train.data import pages
from oxe_curate.train.data.files import LocalFile
from oxe_curate.train.data.order import Shuffle, shuffled
from oxe_curate.train.data.rows import (
    TEXT_COLUMNS,
    TEXT_RECORD,
    Located,
    SampleFormat,
    damaged_copy,
    dictionary,
    read_records,
    stored_observations,
)
from oxe_curate.train.data.shards import (
    DAMAGED,
    REPAIR,
    ShardFile,
    TextColumn,
    checked_columns,
    group_starts,
    image_leaf,
)

MEMORY = 4 << 30
"""Bytes of numbers that a process keeps: 65 million rows of one image and one action, or 4 million windows of 12."""
_OPEN_FILES, _FOOTERS = 256, 64


class LocalRows:
    """The rows of some shards, in shard order, with random access: a `RowSource`. Thread-safe.

    Args:
        mixture: a local folder.
        shards: files as the manifest lists them.
        sample_format: the part of a row to read.
        memory: bytes of numbers to keep; the least recently used row groups are dropped first.

    Raises:
        DataError: a shard is missing, or its size differs from the manifest.
    """

    def __init__(
        self, mixture: MixtureFolder, shards: Sequence[ShardFile], sample_format: SampleFormat, memory: int = MEMORY
    ) -> None:
        self.sample_format = sample_format
        self._folder = mixture.folder
        self._shards = [shard for shard in shards if shard.rows]
        for shard in self._shards:
            _check_size(f"{self._folder}/{shard.name}", self._folder.path(shard.name), shard.size)
        self._starts = [0, *accumulate(shard.rows for shard in self._shards)]
        self._groups: dict[int, list[int]] = {}
        self._files: LruCache[LocalFile] = LruCache(_OPEN_FILES)
        self._footers: LruCache[_Footer] = LruCache(_FOOTERS)
        self._blocks: LruCache[LocalBlock] = LruCache(memory)
        self._texts: dict[str, str] = {}

    def __len__(self) -> int:
        return self._starts[-1]

    def order(self, seed: int, global_batch: int, world: int) -> Shuffle:
        """See `RowSource`."""
        return Shuffle(seed, len(self))

    def held_out(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """See `RowSource`: a fixed shuffle."""
        return shuffled(0, 0, len(self), places)

    def locate(self, row: int) -> tuple[LocalBlock, int]:
        """The row group of a row, and the index in it.

        Raises:
            DataError: the shard is damaged. StorageError: it cannot be read.
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
        """See `RowSource`."""
        return lambda: [self.locate(row) for row in rows.tolist()]

    def batches(self, plan: Iterator[NDArray[np.int64]]) -> Generator[Callable[[], list[Located]], None, None]:
        """See `RowSource`."""
        for rows in plan:
            yield self.claim(rows)

    def _file(self, number: int) -> LocalFile:
        return self._files.get(number, lambda: (LocalFile(f"{self._folder}/{self._shards[number].name}"), 1))

    def _footer(self, number: int) -> _Footer:
        shard = self._shards[number]
        return self._footers.get(number, lambda: (_Footer(f"{self._folder}/{shard.name}", shard.text), 1))

    def _load(self, number: int, group: int) -> tuple[LocalBlock, int]:
        text = self._shards[number].text
        footer = self._footer(number)
        table = footer.table(group, TEXT_COLUMNS if text else self.sample_format.columns())
        try:
            if text:
                records = np.zeros(len(table), TEXT_RECORD)
                texts: tuple[Any, ...] = (TextColumn(table["question"]), TextColumn(table["answer"]))
                size = records.nbytes + table.nbytes
                columns, mask = ["image"], np.ones((len(table), 1), bool)
            else:
                records, instructions = read_records(table, self.sample_format, self._texts)
                texts, size = (instructions,), records.nbytes + 8 * len(records)
                columns = [] if self.sample_format.reference else self.sample_format.images()
                mask = stored_observations(table, self.sample_format)
            window = records["frame"].shape[1]
            for camera, column in enumerate(columns):
                found = self._images(number, group, column, mask)
                records["frame"][:, :, camera] = found[:, mask.shape[1] - window :]
        except (DataError, *DAMAGED) as error:
            raise DataError(f"{footer.name}: row group {group}: {error}. {REPAIR}") from None
        return LocalBlock(self, number, group, self._groups[number][group], records, texts), size

    def _images(self, number: int, group: int, column: str, mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Offsets and lengths of an image column, int64 (n, W, 2), for a mask (n, W); zeros where it is False."""
        file = self._file(number)
        start, size, levels = self._footer(number).chunk(group, column, list_of=mask.shape[1] > 1)
        file.advise(start, size)  # one read of the whole group instead of one per image
        found = np.zeros((*mask.shape, 2), np.int64)
        found[mask] = np.stack(pages.image_offsets(file.read, start, size, int(mask.sum()), levels), axis=-1)
        return found


@dataclass(frozen=True, eq=False)
class LocalBlock:
    """A row group: see `RowBlock`. `first` is the index of its first row in the shard."""

    source: LocalRows
    number: int
    group: int
    first: int
    records: NDArray[Any]
    texts: tuple[Sequence[str], ...]

    def frame(self, row: int, observation: int, camera: int) -> bytes:
        """Read an encoded image. Raises StorageError, or DataError if the file became shorter."""
        offset, length = self.records["frame"][row, observation, camera].tolist()
        file = self.source._file(self.number)
        data = file.read(offset, length)
        if len(data) != length:
            raise DataError(f"{file.name}: ends before byte {offset + length}; the file was changed. {REPAIR}")
        return data

    def swapped(self, row: int, camera: int) -> bool:
        """See `RowBlock`."""
        return False

    def damaged(self, row: int, observation: int, camera: int, reason: str) -> DataError:
        """See `RowBlock`."""
        return damaged_copy(self, row, reason)

    def where(self, row: int) -> str:
        """See `RowBlock`."""
        return f"{self.source._footer(self.number).name}: row {self.first + row}"

    def sample_id(self, row: int) -> str:
        """See `RowBlock`."""
        return str(self.source._footer(self.number).table(self.group, ["sample_id"])["sample_id"][row].as_py())


class _Footer:
    """The Parquet metadata of a shard, about 11 kB per row group; reads columns of numbers and texts."""

    def __init__(self, name: str, text: bool) -> None:
        self.name = name
        self._lock = threading.Lock()
        try:
            self._parquet = pq.ParquetFile(name, read_dictionary=dictionary(text), page_checksum_verification=True)
        except (OSError, *DAMAGED) as error:
            raise DataError(f"{name}: its footer is damaged ({error}). {REPAIR}") from None

    def group_starts(self, rows: int) -> NDArray[np.int64]:
        """int64 (groups,): the first row of each row group."""
        return group_starts(self._parquet.metadata, rows, self.name)

    def table(self, group: int, columns: Sequence[str]) -> Any:
        """Columns of a row group."""
        try:
            with self._lock:  # a reader is not thread-safe
                table = self._parquet.read_row_group(group, list(columns), use_threads=False)
        except (OSError, *DAMAGED) as error:
            raise DataError(f"{self.name}: row group {group}: {error}. {REPAIR}") from None
        return checked_columns(table, columns, self.name)

    def chunk(self, group: int, column: str, list_of: bool) -> tuple[int, int, tuple[int, int]]:
        """Start and size of an image column's chunk, and its maximum repetition and definition level."""
        metadata = self._parquet.metadata
        leaf = image_leaf(column, list_of)
        names = [metadata.schema.column(i).path for i in range(len(metadata.schema))]
        if leaf not in names:
            raise DataError(f"no column {leaf!r}")
        number = names.index(leaf)
        chunk, levels = metadata.row_group(group).column(number), metadata.schema.column(number)
        if chunk.compression != "UNCOMPRESSED":
            raise DataError(f"{column} is compressed")
        start, size = chunk.data_page_offset, chunk.total_compressed_size
        return start, size, (levels.max_repetition_level, levels.max_definition_level)


def _check_size(name: str, path: Path, size: int) -> None:
    try:
        found = path.stat().st_size
    except OSError as error:
        raise DataError(f"{name}: {explain(error)}. {REPAIR}") from None
    if found != size:
        raise DataError(f"{name}: {found} bytes, but the manifest lists {size}. {REPAIR}")
