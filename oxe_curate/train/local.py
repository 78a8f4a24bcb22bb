"""Mixture shards on a local disk: any row at any time, its images by byte offset.

Row groups' numbers are read when first wanted and kept, up to a bound on memory; images are read with pread, so that
neither a slow disk nor a decoder holds the interpreter's lock. Nothing is written to disk.
"""

from __future__ import annotations

import functools
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from oxe_curate.errors import CurateError, DataError, StorageError
from oxe_curate.storage import explain
from oxe_curate.train import pages
from oxe_curate.train.mixture_folder import MixtureFolder
from oxe_curate.train.rows import TEXT_COLUMNS, TEXT_RECORD, Block, Form, numbers

MEMORY = 4 << 30
"""Bytes of numbers that a process keeps: 40 million rows of one image and one action, or a million of windows."""
_OPEN_FILES = 256
_ADVISE = hasattr(os, "posix_fadvise")

Value = TypeVar("Value")


class Cache(Generic[Value]):
    """The values used last, up to a total size. Safe among threads; two may make the same value at once."""

    def __init__(self, limit: int) -> None:
        self._limit, self._total = limit, 0
        self._entries: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], tuple[Value, int]]) -> Value:
        """The value of `key`; made, with its size, if it is not there."""
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key][0]
        value, size = make()
        with self._lock:
            if key not in self._entries:
                self._entries[key] = value, size
                self._total += size
                while self._total > self._limit and len(self._entries) > 1:
                    self._total -= self._entries.popitem(last=False)[1][1]
        return value


@dataclass(frozen=True)
class ShardName:
    """A shard by the manifest: its name, rows and bytes, and whether it holds image-text rows."""

    name: str
    rows: int
    size: int
    text: bool


class LocalRows:
    """The rows of a split, robot rows before image-text rows; `blocks[i]` finds the row group of any of them.

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
        self._starts = np.cumsum([0, *(shard.rows for shard in self._shards)])
        self._groups: dict[int, NDArray[np.int64]] = {}
        self._files: Cache[_File] = Cache(_OPEN_FILES)
        self._blocks: Cache[LocalBlock] = Cache(memory)
        self._texts: dict[str, str] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def locate(self, row: int) -> tuple[Block, int]:
        """The block that holds a row, and the row's place in it. Safe among threads.

        Raises:
            DataError: the shard is damaged; names it. StorageError: it cannot be read.
        """
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        place = row - int(self._starts[number])
        if number not in self._groups:
            self._groups[number] = self._file(number).group_starts(self._shards[number].rows)
        starts = self._groups[number]
        group = int(np.searchsorted(starts, place, side="right")) - 1
        block = self._blocks.get((number, group), functools.partial(self._load, number, group))
        return block, place - int(starts[group])

    def _file(self, number: int) -> _File:
        shard = self._shards[number]
        return self._files.get(number, lambda: (_File(f"{self._folder}/{shard.name}"), 1))

    def _load(self, number: int, group: int) -> tuple[LocalBlock, int]:
        shard = self._shards[number]
        file = self._file(number)
        try:
            if shard.text:
                table = file.table(group, TEXT_COLUMNS)
                records = np.zeros(len(table), TEXT_RECORD)
                texts: tuple[Any, ...] = (Texts(table["question"]), Texts(table["answer"]))
                size = records.nbytes + table.nbytes
                places = [file.images(group, "image", len(records), 1, None)]
            else:
                table = file.table(group, self.form.columns())
                records, instructions = numbers(table, self.form)
                texts = ([self._texts.setdefault(text, text) for text in instructions],)
                size = records.nbytes + 8 * len(records)
                places = [file.robot_images(group, role, records, self.form) for role in self.form.cameras]
        except DataError as error:
            raise DataError(f"{file.name}: row group {group}: {error}. {_MEND}") from None
        for camera, (offsets, lengths) in enumerate(places):
            records["frame"]["offset"][:, :, camera] = offsets
            records["frame"]["length"][:, :, camera] = lengths
        first = int(self._groups[number][group])
        return LocalBlock(records, texts, functools.partial(self._file, number), group, first), size


class Texts(Sequence[str]):
    """A column of texts as they lie in Arrow's memory."""

    def __init__(self, column: Any) -> None:
        self._column = column.combine_chunks()

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, row: Any) -> Any:
        return self._column[row].as_py() or ""


@dataclass(frozen=True, eq=False)
class LocalBlock:
    """A row group: see `rows.Block`. `file` opens its shard; `first` is the shard's number of its first row."""

    records: NDArray[Any]
    texts: tuple[Sequence[str], ...]
    file: Callable[[], _File]
    group: int
    first: int

    def frame(self, row: int, observation: int, camera: int) -> bytes:
        """Read an encoded image. Raises StorageError, DataError for a file that has become shorter."""
        place = self.records["frame"][row, observation, camera]
        return self.file().read_exactly(int(place["offset"]), int(place["length"]))

    def where(self, row: int) -> str:
        """The shard and the row in it."""
        return f"{self.file().name}: row {self.first + row}"

    def sample_id(self, row: int) -> str:
        """Read the group's ids."""
        return str(self.file().table(self.group, ["sample_id"])["sample_id"][row].as_py())


_MEND = "Run tokenize again: it keeps the shards that are whole"


class _File:
    """An open shard. Its descriptor closes with the last reference, so that no thread reads another file by it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        try:
            self._raw = open(name, "rb", buffering=0)  # noqa: SIM115, PTH123 (lives as long as this object)
        except OSError as error:
            raise StorageError(f"{name}: {explain(error)}") from error
        if _ADVISE:
            os.posix_fadvise(self._raw.fileno(), 0, 0, os.POSIX_FADV_RANDOM)

    @functools.cached_property
    def parquet(self) -> Any:
        """The footer, read when a row group is first wanted."""
        try:
            return pq.ParquetFile(self.name, memory_map=True)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.name}: its footer is damaged ({error}). {_MEND}") from None

    def read(self, offset: int, length: int) -> bytes:
        """A part of the file, shorter at its end."""
        try:
            return os.pread(self._raw.fileno(), length, offset)
        except OSError as error:
            raise StorageError(f"{self.name}: {explain(error)}") from error

    def read_exactly(self, offset: int, length: int) -> bytes:
        """A part of the file."""
        data = self.read(offset, length)
        if len(data) != length:
            raise DataError(f"{self.name}: ends before byte {offset + length}; it was changed. {_MEND}")
        return data

    def group_starts(self, rows: int) -> NDArray[np.int64]:
        """int64 (groups,): the first row of each row group."""
        metadata = self.parquet.metadata
        if metadata.num_rows != rows:
            raise DataError(f"{self.name}: holds {metadata.num_rows} rows, the manifest says {rows}. {_MEND}")
        sizes = np.array([metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)], np.int64)
        return np.cumsum(sizes) - sizes

    def table(self, group: int, columns: Sequence[str]) -> Any:
        """Columns of a row group."""
        parquet = self.parquet
        try:
            with self._lock:  # Arrow promises no safety among threads for one reader
                table = parquet.read_row_group(group, list(columns), use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise DataError(str(error)) from None
        if missing := set(columns) - set(table.column_names):
            raise DataError(f"has no column {sorted(missing)[0]!r}")
        return table

    def robot_images(
        self, group: int, role: str, records: NDArray[Any], form: Form
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Offsets and lengths (n, W) of a camera's images; zeros for padding."""
        stored = form.stored_window
        if stored == 1:
            return self.images(group, f"image_{role}", len(records), 1, None)
        mask = np.asarray(self.table(group, ["observation_mask"])["observation_mask"].combine_chunks().flatten())
        offsets, lengths = self.images(group, f"image_{role}", len(records), stored, mask)
        return offsets[:, stored - form.window :], lengths[:, stored - form.window :]

    def images(
        self, group: int, column: str, rows: int, window: int, mask: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Offsets and lengths, int64 (rows, window), of a column; zeros where mask (rows * window) is False."""
        leaf = f"{column}.bytes" if window == 1 else f"{column}.list.element.bytes"
        schema = self.parquet.metadata.schema
        names = [schema.column(i).path for i in range(len(schema))]
        if leaf not in names:
            raise DataError(f"has no column {leaf!r}")
        chunk = self.parquet.metadata.row_group(group).column(names.index(leaf))
        if chunk.compression != "UNCOMPRESSED":
            raise DataError(f"{column} is compressed")
        levels = schema.column(names.index(leaf))
        start, size = chunk.data_page_offset, chunk.total_compressed_size
        if _ADVISE:  # one read of the whole group instead of one for each image's length
            os.posix_fadvise(self._raw.fileno(), start, size, os.POSIX_FADV_WILLNEED)
        used = np.ones(rows * window, bool) if mask is None else np.asarray(mask, bool)
        found = pages.value_offsets(
            self.read, start, size, int(used.sum()), (levels.max_repetition_level, levels.max_definition_level)
        )
        spread = np.zeros((2, rows * window), np.int64)
        spread[:, used] = found
        return spread[0].reshape(rows, window), spread[1].reshape(rows, window)


def _check_size(name: str, path: Any, size: int) -> None:
    try:
        found = path.stat().st_size
    except OSError as error:
        raise DataError(f"{name}: {explain(error)}. {_MEND}") from None
    if found != size:
        raise DataError(f"{name}: has {found} bytes, the manifest says {size}. {_MEND}")


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
        raise CurateError(f"{mixture.folder}/manifest.json: damaged ({error}). {_MEND}") from None
