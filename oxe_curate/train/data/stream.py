"""Mixture shards in an object store: whole row groups ahead of their use, mixed in a bounded buffer.

The order is a pure function of (seed, epoch) and the row groups' sizes, as on a local disk, so that a run resumes at
any sample. An epoch's row groups stand in a shuffled line; the line is cut into equal lanes; a lane is drawn pool by
pool, each pool's rows shuffled; and samples are taken from the lanes in turn. A process's share of a step comes from
its own lanes, so that processes read (nearly) only what they use.
"""

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
from oxe_curate.mixture.sampling import splitmix64
from oxe_curate.storage import explain
from oxe_curate.tokenize.folder import MixtureFolder
from oxe_curate.train.data.local import MEND, ShardName, Texts, checked_columns, group_starts, image_leaf
from oxe_curate.train.data.order import shuffled
from oxe_curate.train.data.rows import TEXT_COLUMNS, TEXT_RECORD, Form, Located, numbers, stored_observations

BUFFER = 8192
"""Images of all processes together that are mixed; as many again are read ahead."""
LANES = 64
_READERS, _OPEN_FILES = 8, 64
_PAUSES = (1.0, 4.0, 16.0)  # seconds between attempts, after those that Arrow makes by itself
_CACHE = 1 << 30  # bytes of row groups kept for reads in an order of their own
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
Value = TypeVar("Value")
_GROUPS, _POOLS = 21, 22  # purposes of hashes


def lanes(global_batch: int, groups: int) -> int:
    """How many lanes: the largest divisor of the global batch that is at most 64 and a quarter of the row groups."""
    most = max(1, min(LANES, groups // 4, global_batch))
    return next(n for n in range(most, 0, -1) if global_batch % n == 0)


@dataclass(frozen=True, eq=False)
class StreamOrder:
    """Which row stands at which position.

    Attributes:
        seed: of the run.
        sizes: int64 (g,), rows of each row group, in the order of the shards.
        lanes: how many. The order depends on it, and with `lanes()` on the global batch, not on how that is divided.
        pool: rows of a lane that are mixed.
    """

    seed: int
    sizes: NDArray[np.int64]
    lanes: int
    pool: int

    @functools.cached_property
    def n(self) -> int:
        """Rows in an epoch."""
        return int(self.sizes.sum())

    def rows(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows at positions of the endless sequence, int64 (n,)."""
        out = np.empty(len(positions), np.int64)
        for number, position in enumerate(positions.tolist()):
            epoch, i = divmod(position, self.n)
            if i >= self.n // self.lanes * self.lanes:  # what the lanes leave over stands at the line's end
                out[number] = self._line(epoch, np.array([i]))[0]
                continue
            place, lane = divmod(i, self.lanes)
            # the lanes' pools end at different times, so that reading is spread evenly
            t, within = divmod(place + self.pool - self._first(lane), self.pool)
            if t == 0:
                within = place
            out[number] = self._pool(epoch, lane, t)[within]
        return out

    def positions(
        self, start: int, step: int, rank: int, world: int, batch_size: int, accumulation: int
    ) -> NDArray[np.int64]:
        """Positions that one rank's micro-batch takes; see `order.batch_positions`, from which the division differs:

        the samples of an optimizer step are sorted by lane before the processes take equal parts.
        """
        optimizer_step, part = divmod(step, accumulation)
        total = world * batch_size * accumulation
        step_positions = start + optimizer_step * total + np.arange(total, dtype=np.int64)
        lane = step_positions % self.n % self.lanes
        mine = step_positions[np.argsort(lane, kind="stable")].reshape(world, accumulation, batch_size)
        return np.asarray(mine[rank, part])

    def _first(self, lane: int) -> int:
        """Rows of a lane's first pool."""
        return -(-self.pool * (lane + 1) // self.lanes)

    @functools.lru_cache(maxsize=4 * LANES)  # noqa: B019 (there is one order a run)
    def _pool(self, epoch: int, lane: int, t: int) -> NDArray[np.int64]:
        """The rows of a lane's t-th pool, as they are drawn."""
        length = self.n // self.lanes
        stop = min(self._first(lane) + t * self.pool, length)
        start = max(0, self._first(lane) + (t - 1) * self.pool)
        rows = self._line(epoch, lane * length + np.arange(start, stop, dtype=np.int64))
        with np.errstate(over="ignore"):
            key = np.array([self.seed, _POOLS, epoch, lane, t], np.uint64)
            mixed = functools.reduce(lambda a, b: splitmix64(np.atleast_1d(a ^ b)), key)
            keys = splitmix64(mixed + np.arange(len(rows), dtype=np.uint64) * _GAMMA)
        return rows[np.argsort(keys, kind="stable")]

    def _line(self, epoch: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows at places of the epoch's line of row groups."""
        groups, starts, first = self._groups(epoch)
        at = np.searchsorted(starts, places, side="right") - 1
        return np.asarray(first[groups[at]] + places - starts[at])

    @functools.lru_cache(maxsize=3)  # noqa: B019
    def _groups(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """The epoch's order of row groups, where each begins in the line, and each group's first row."""
        groups = shuffled(self.seed + (_GROUPS << 32), epoch, len(self.sizes), np.arange(len(self.sizes)))
        drawn = self.sizes[groups]
        return groups, np.cumsum(drawn) - drawn, np.cumsum(self.sizes) - self.sizes


class RemoteRows:
    """The rows of some shards in an object store, in their order.

    Args:
        mixture: the folder.
        shards: names, rows and sizes, by the manifest.
        form: what of a row is wanted.
        ahead: rows of this process that `batches` looks ahead.

    Raises:
        DataError: a shard is missing or damaged; names it. StorageError: the store cannot be read.
    """

    def __init__(self, mixture: MixtureFolder, shards: Sequence[ShardName], form: Form, ahead: int = BUFFER) -> None:
        self.form, self.ahead = form, ahead
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

    def claim(self, rows: NDArray[np.int64]) -> Callable[[], list[Located]]:
        """Rows to be read when the result is called. The row groups read last are kept."""

        def read() -> list[Located]:
            found: list[Located] = []
            for row, group in zip(rows.tolist(), self._group_of(rows).tolist(), strict=True):
                block = self._blocks.get(group, functools.partial(self._sized, group))
                found.append((block, row - int(self._starts[group])))
            return found

        return read

    def batches(self, plan: Iterator[NDArray[np.int64]]) -> Generator[Callable[[], list[Located]], None, None]:
        """Claim one batch of rows after another, reading row groups ahead in threads and dropping them after use."""
        pool = ThreadPoolExecutor(_READERS, thread_name_prefix="oxe-stream")
        coming: deque[tuple[NDArray[np.int64], NDArray[np.int64]]] = deque()
        reading: dict[int, Future[RemoteBlock]] = {}
        last_use: dict[int, int] = {}
        rows_ahead = seen = given = 0
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
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _give(
        self,
        rows: NDArray[np.int64],
        groups: NDArray[np.int64],
        reading: dict[int, Future[RemoteBlock]],
        last_use: dict[int, int],
        number: int,
    ) -> Callable[[], list[Located]]:
        """A batch that waits for its row groups; those that no later one wants are forgotten here."""
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
            raise DataError(f"{self._name(number)}: has {found} bytes, the manifest says {shard.size}. {MEND}")
        return group_starts(patiently(lambda: self._open(number))[1], shard.rows, self._name(number))

    def _name(self, number: int) -> str:
        return f"{self._folder}/{self._shards[number].name}"

    def _open(self, number: int) -> tuple[Any, Any]:
        """An open shard and its footer; both serve several threads at once."""

        def read() -> tuple[tuple[Any, Any], int]:
            file = self._folder.open(self._shards[number].name)
            try:
                return (file, pq.read_metadata(file)), 1
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"{self._name(number)}: its footer is damaged ({error}). {MEND}") from None

        opened: tuple[Any, Any] = self._files.get(number, read)
        return opened

    def _table(self, group: int, columns: Sequence[str]) -> Any:
        number = int(self._shard_of[group])
        name, local = self._name(number), group - int(self._first_group[number])

        def read() -> Any:
            file, footer = self._open(number)
            reader = pq.ParquetFile(file, metadata=footer, pre_buffer=True)  # a reader serves one thread
            return reader.read_row_group(local, list(columns), use_threads=False)

        try:
            return checked_columns(patiently(read), columns, name)
        except pa.ArrowException as error:
            raise DataError(f"{name}: row group {local}: {error}. {MEND}") from None
        except OSError as error:
            raise StorageError(f"{name}: row group {local} cannot be read: {explain(error)}") from error

    def _sized(self, group: int) -> tuple[RemoteBlock, int]:
        block = self._fetch(group)
        return block, block.records.nbytes + sum(len(images) for images in block.images)

    def _fetch(self, group: int) -> RemoteBlock:
        """Read a row group, its images included."""
        number = int(self._shard_of[group])
        text = self._shards[number].text
        cameras = ["image"] if text else [f"image_{role}" for role in self.form.cameras]
        listed = not text and self.form.stored_window > 1
        leaves = [image_leaf(camera, listed) for camera in cameras]
        table = self._table(group, [*(TEXT_COLUMNS if text else self.form.columns()), *leaves])
        try:
            if text:
                records = np.zeros(len(table), TEXT_RECORD)
                texts: tuple[Sequence[str], ...] = (Texts(table["question"]), Texts(table["answer"]))
                mask = np.ones((len(table), 1), bool)
            else:
                records, instructions = numbers(table, self.form)
                texts, mask = (instructions,), stored_observations(table, self.form)
            window = records["frame"].shape[1]
            images = []
            for camera, name in enumerate(cameras):
                places, data = _binary(table[name], mask)
                records["frame"][:, :, camera] = places[:, mask.shape[1] - window :]
                images.append(data)
        except DataError as error:
            raise DataError(f"{self._name(number)}: row group {group}: {error}. {MEND}") from None
        first = int(self._starts[group] - self._starts[self._first_group[number]])
        where = f"{self._name(number)}: row"
        return RemoteBlock(records, texts, images, where, first, functools.partial(self._table, group))


@dataclass(frozen=True, eq=False)
class RemoteBlock:
    """A row group with its images: see `rows.Block`. `images`: each camera's encoded images, one after another."""

    records: NDArray[Any]
    texts: tuple[Sequence[str], ...]
    images: Sequence[memoryview]
    name: str
    first: int
    table: Callable[[Sequence[str]], Any]

    def frame(self, row: int, observation: int, camera: int) -> memoryview:
        """An encoded image."""
        start, length = self.records["frame"][row, observation, camera].tolist()
        return self.images[camera][start : start + length]

    def where(self, row: int) -> str:
        """The shard and the row in it."""
        return f"{self.name} {self.first + row}"

    def sample_id(self, row: int) -> str:
        """Read the group's ids."""
        return str(self.table(["sample_id"])["sample_id"][row].as_py())


def patiently(read: Callable[[], Value]) -> Value:
    """Try again, a few times, what a store or the network refused."""
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
        raise DataError(f"its pages hold {valid.sum()} images instead of {mask.sum()}")
    _, offsets, data = encoded.buffers()
    edges = np.frombuffer(offsets, np.int32)[encoded.offset : encoded.offset + len(encoded) + 1].astype(np.int64)
    places = np.stack((edges[:-1], np.diff(edges)), axis=-1)
    return places.reshape(*mask.shape, 2), memoryview(data or b"").cast("B")
