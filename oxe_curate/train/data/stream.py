"""Mixture shards in an object store: whole row groups, read ahead, in the order of `stream_order.py`."""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from oxe_curate.errors import DataError, StorageError
from oxe_curate.lru import LruCache
from oxe_curate.storage import explain
from oxe_curate.tokenize.folder import MixtureFolder
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
from oxe_curate.train.data.stream_order import StreamOrder, lanes

_BUFFER = 8192
"""Images of all processes that are mixed; as many again are read ahead."""
_READERS, _OPEN_FILES = 8, 64
_PAUSES = (1.0, 4.0, 16.0)  # seconds between retries, after those of Arrow itself
_CACHE = 1 << 30  # bytes of row groups kept for reads in any order
_Value = TypeVar("_Value")


class RemoteRows:
    """The rows of some shards in an object store, in shard order: a `RowSource`.

    Args:
        mixture: the folder.
        shards: files as the manifest lists them.
        sample_format: the part of a row to read.
        ahead: rows of this process that `batches` reads ahead.

    Raises:
        DataError: a shard is missing or damaged. StorageError: the store cannot be read.
    """

    def __init__(
        self, mixture: MixtureFolder, shards: Sequence[ShardFile], sample_format: SampleFormat, ahead: int = _BUFFER
    ) -> None:
        self.sample_format, self.ahead = sample_format, ahead
        self._folder = mixture.folder
        self._shards = [shard for shard in shards if shard.rows]
        self._files: LruCache[Any] = LruCache(_OPEN_FILES)
        self._blocks: LruCache[RemoteBlock] = LruCache(_CACHE)
        with ThreadPoolExecutor(4 * _READERS, thread_name_prefix="oxe-footers") as pool:
            starts = list(pool.map(self._group_starts, range(len(self._shards))))
        rows = np.cumsum([0, *(shard.rows for shard in self._shards)])
        self._starts = np.concatenate([*(s + first for s, first in zip(starts, rows, strict=False)), rows[-1:]])
        self._shard_of = np.repeat(np.arange(len(starts)), [len(s) for s in starts])
        self._first_group = np.cumsum([0, *(len(s) for s in starts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def sizes(self) -> NDArray[np.int64]:
        """int64 (g,): rows of each row group."""
        return np.diff(self._starts)

    def order(self, seed: int, global_batch: int, world: int) -> StreamOrder:
        """See `RowSource`; also sets how far `batches` of this process reads ahead."""
        rows = max(_BUFFER // (self.sample_format.window * len(self.sample_format.cameras)), 1)
        count = lanes(global_batch, len(self.sizes))
        self.ahead = -(-rows // world)
        return StreamOrder(seed, self.sizes, count, -(-rows // count))

    def held_out(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """See `RowSource`: shard order, to read each row group once; tokenize has shuffled the rows."""
        return places

    def claim(self, rows: NDArray[np.int64]) -> Callable[[], list[Located]]:
        """See `RowSource`; the row groups used last are kept."""

        def read() -> list[Located]:
            found: list[Located] = []
            for row, group in zip(rows.tolist(), self._group_of(rows).tolist(), strict=True):
                block = self._blocks.get(group, functools.partial(self._sized, group))
                found.append((block, row - int(self._starts[group])))
            return found

        return read

    def batches(self, plan: Iterator[NDArray[np.int64]]) -> Generator[Callable[[], list[Located]], None, None]:
        """See `RowSource`; threads read row groups ahead, and each is dropped after its last use."""
        pool = ThreadPoolExecutor(_READERS, thread_name_prefix="oxe-stream")
        coming: deque[tuple[NDArray[np.int64], NDArray[np.int64]]] = deque()
        reading: dict[int, Future[RemoteBlock]] = {}
        last_use: dict[int, int] = {}
        rows_ahead = seen = given = 0
        complete = False
        try:
            for rows in plan:
                groups = self._group_of(rows)
                for group in groups.tolist():
                    last_use[group] = seen
                    if group not in reading:
                        reading[group] = pool.submit(self._fetch, group)
                coming.append((rows, groups))
                seen, rows_ahead = seen + 1, rows_ahead + len(rows)
                if rows_ahead > self.ahead:
                    yield self._give(*coming[0], reading, last_use, given)
                    given, rows_ahead = given + 1, rows_ahead - len(coming.popleft()[0])
            while coming:
                yield self._give(*coming.popleft(), reading, last_use, given)
                given += 1
            complete = True  # claims that were yielded may still wait for their row groups
        finally:
            pool.shutdown(wait=True, cancel_futures=not complete)

    def _give(
        self,
        rows: NDArray[np.int64],
        groups: NDArray[np.int64],
        reading: dict[int, Future[RemoteBlock]],
        last_use: dict[int, int],
        number: int,
    ) -> Callable[[], list[Located]]:
        """A batch that waits for its row groups; those of no later batch are dropped here."""
        waited = [reading[group] for group in groups.tolist()]
        places = (rows - self._starts[groups]).tolist()
        for group in np.unique(groups).tolist():
            if last_use[group] == number:
                del reading[group], last_use[group]
        return lambda: [(future.result(), place) for future, place in zip(waited, places, strict=True)]

    def _group_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(self._starts, rows, side="right") - 1

    def _group_starts(self, number: int) -> NDArray[np.int64]:
        shard = self._shards[number]
        if (found := self._folder.size(shard.name)) != shard.size:
            raise DataError(f"{self._name(number)}: {found} bytes, but the manifest lists {shard.size}. {REPAIR}")
        return group_starts(_with_retries(lambda: self._open(number))[1], shard.rows, self._name(number))

    def _name(self, number: int) -> str:
        return f"{self._folder}/{self._shards[number].name}"

    def _open(self, number: int) -> tuple[Any, Any]:
        """An open shard and its footer, both thread-safe."""

        def read() -> tuple[tuple[Any, Any], int]:
            file = self._folder.open(self._shards[number].name)
            try:
                return (file, pq.read_metadata(file)), 1
            except (OSError, *DAMAGED) as error:
                raise DataError(f"{self._name(number)}: its footer is damaged ({error}). {REPAIR}") from None

        opened: tuple[Any, Any] = self._files.get(number, read)
        return opened

    def _table(self, group: int, columns: Sequence[str]) -> Any:
        number = int(self._shard_of[group])
        name, local = self._name(number), group - int(self._first_group[number])
        shard = self._shards[number]

        def read() -> Any:
            file, footer = self._open(number)
            # a reader is not thread-safe
            reader = pq.ParquetFile(
                file, metadata=footer, pre_buffer=True, read_dictionary=dictionary(shard.text),
                page_checksum_verification=self.sample_format.reference,  # else images would be summed, too
            )  # fmt: skip
            return reader.read_row_group(local, list(columns), use_threads=False)

        try:
            return checked_columns(_with_retries(read), columns, name)
        except DAMAGED as error:
            raise DataError(f"{name}: row group {local}: {error}. {REPAIR}") from None
        except OSError as error:
            raise StorageError(f"{name}: row group {local} cannot be read: {explain(error)}") from error

    def _sized(self, group: int) -> tuple[RemoteBlock, int]:
        block = self._fetch(group)
        return block, block.records.nbytes + sum(len(images) for images in block.images)

    def _fetch(self, group: int) -> RemoteBlock:
        """Read a row group with its images."""
        number = int(self._shard_of[group])
        text = self._shards[number].text
        cameras = ["image"] if text else [] if self.sample_format.reference else self.sample_format.images()
        listed = not text and self.sample_format.stored_window > 1
        leaves = [image_leaf(camera, listed) for camera in cameras]
        table = self._table(group, [*(TEXT_COLUMNS if text else self.sample_format.columns()), *leaves])
        try:
            if text:
                records = np.zeros(len(table), TEXT_RECORD)
                texts: tuple[Sequence[str], ...] = (TextColumn(table["question"]), TextColumn(table["answer"]))
                mask = np.ones((len(table), 1), bool)
            else:
                records, instructions = read_records(table, self.sample_format)
                texts, mask = (instructions,), stored_observations(table, self.sample_format)
            window = records["frame"].shape[1]
            images = []
            for camera, name in enumerate(cameras):
                places, data = _binary(table[name], mask)
                records["frame"][:, :, camera] = places[:, mask.shape[1] - window :]
                images.append(data)
        except (DataError, *DAMAGED) as error:
            raise DataError(f"{self._name(number)}: row group {group}: {error}. {REPAIR}") from None
        first = int(self._starts[group] - self._starts[self._first_group[number]])
        where = f"{self._name(number)}: row"
        return RemoteBlock(records, texts, images, where, first, functools.partial(self._table, group))


@dataclass(frozen=True, eq=False)
class RemoteBlock:
    """A row group with its images: see `RowBlock`. `images`: the concatenated encoded images of each camera."""

    records: NDArray[Any]
    texts: tuple[Sequence[str], ...]
    images: Sequence[memoryview]
    name: str
    first: int
    table: Callable[[Sequence[str]], Any]

    def frame(self, row: int, observation: int, camera: int) -> memoryview:
        """See `RowBlock`."""
        start, length = self.records["frame"][row, observation, camera].tolist()
        return self.images[camera][start : start + length]

    def swapped(self, row: int, camera: int) -> bool:
        """See `RowBlock`."""
        return False

    def damaged(self, row: int, observation: int, camera: int, reason: str) -> DataError:
        """See `RowBlock`."""
        return damaged_copy(self, row, reason)

    def where(self, row: int) -> str:
        """See `RowBlock`."""
        return f"{self.name} {self.first + row}"

    def sample_id(self, row: int) -> str:
        """See `RowBlock`."""
        return str(self.table(["sample_id"])["sample_id"][row].as_py())


def _with_retries(read: Callable[[], _Value]) -> _Value:
    """Retry failed reads of the store a few times."""
    for pause in _PAUSES:
        try:
            return read()
        except (OSError, StorageError):
            time.sleep(pause)
    return read()


def _binary(column: Any, mask: NDArray[np.bool_]) -> tuple[NDArray[np.int64], memoryview]:
    """An image column -> offsets and lengths, int64 (n, W, 2), and the bytes they point into."""
    array = column.combine_chunks()
    if pa.types.is_list(array.type):
        array = array.flatten()
    encoded = array.field("bytes")
    valid = np.asarray(encoded.is_valid()) & np.asarray(array.is_valid())
    if len(valid) != mask.size or not valid[mask.ravel()].all():
        raise DataError(f"expected {mask.sum()} images in its pages, got {valid.sum()}")
    _, offsets, data = encoded.buffers()
    edges = np.frombuffer(offsets, np.int32)[encoded.offset : encoded.offset + len(encoded) + 1].astype(np.int64)
    places = np.stack((edges[:-1], np.diff(edges)), axis=-1)
    return places.reshape(*mask.shape, 2), memoryview(data or b"").cast("B")
