"""Rows of a mixture by reference: their numbers from the mixture's shards, their frames from the source shards."""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oxe_curate.errors import CurateError, DataError, StorageError
from oxe_curate.storage import StoreOptions
from oxe_curate.tokenize.folder import MixtureFolder
from oxe_curate.train.data.local import LocalRows
from oxe_curate.train.data.order import Shuffle
from oxe_curate.train.data.rows import Located, RowBlock, SampleFormat
from oxe_curate.train.data.source_frames import BatchFrames, FramePlace, SourceFrames
from oxe_curate.train.data.stream import RemoteRows
from oxe_curate.train.data.stream_order import StreamOrder, lanes

_MIXED = 1 << 20
"""Images whose rows are mixed, where numbers are read by row groups: without the frames they need little memory."""
_AHEAD = 16
"""Frames that are read ahead from an object store, for each request that may be in flight."""
_LOCATORS = 4


class ReferenceRows:
    """The rows of some shards that refer to source shards: a `RowSource`. Image-text rows have their own images.

    Args:
        rows: reads the numbers.
        mixture: a mixture by reference.
        sample_format: the part of a row to read.

    Raises:
        DataError: the list of source shards is damaged.
    """

    def __init__(self, rows: LocalRows | RemoteRows, mixture: MixtureFolder, sample_format: SampleFormat) -> None:
        self._rows, self._format = rows, sample_format
        self._frames = SourceFrames(mixture.sources)
        self._swap = np.array(
            [[role in mixture.swapped.get(name, ()) for role in sample_format.cameras] for name in sample_format.names],
            bool,
        )

    def __len__(self) -> int:
        return len(self._rows)

    def order(self, seed: int, global_batch: int, world: int) -> Shuffle | StreamOrder:
        """See `RowSource`."""
        if isinstance(self._rows, LocalRows):
            return self._rows.order(seed, global_batch, world)
        rows, sizes = self._rows_of(_MIXED), self._rows.sizes
        # row groups are large: as many lanes as keep the rows in memory few
        count = lanes(global_batch, min(len(sizes), 4 * max(rows // int(sizes.max()), 1)))
        return StreamOrder(seed, sizes, count, -(-rows // count))

    def held_out(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """See `RowSource`."""
        return self._rows.held_out(places)

    def claim(self, rows: NDArray[np.int64]) -> Callable[[], list[Located]]:
        """See `RowSource`."""
        return functools.partial(self._locate, self._rows.claim(rows))

    def batches(self, plan: Iterator[NDArray[np.int64]]) -> Generator[Callable[[], list[Located]], None, None]:
        """See `RowSource`; frames in an object store are requested several batches ahead."""
        plan, kept = itertools.tee(plan)
        claims = self._rows.batches(plan)
        batches = (
            (len(rows), functools.partial(self._locate, claim)) for claim, rows in zip(claims, kept, strict=True)
        )
        try:
            yield from self._ahead(batches) if self._frames.remote else (locate for _, locate in batches)
        finally:
            claims.close()

    def _ahead(
        self, batches: Iterator[tuple[int, Callable[[], list[Located]]]]
    ) -> Iterator[Callable[[], list[Located]]]:
        """Threads locate the frames of the coming batches and request them."""
        most = self._rows_of(_AHEAD * StoreOptions.current().requests)
        pool = ThreadPoolExecutor(_LOCATORS, thread_name_prefix="oxe-references")
        waiting: deque[tuple[int, Future[list[Located]]]] = deque()
        ahead, complete = 0, False
        try:
            for rows, locate in batches:
                waiting.append((rows, pool.submit(locate)))
                ahead += rows
                while ahead > most and len(waiting) > 1:
                    ahead -= waiting[0][0]
                    yield waiting.popleft()[1].result
            while waiting:
                yield waiting.popleft()[1].result
            complete = True  # results that were yielded may still be awaited
        finally:
            pool.shutdown(wait=True, cancel_futures=not complete)

    def _rows_of(self, images: int) -> int:
        """The number of rows that have this many images."""
        return max(images // (self._format.window * len(self._format.cameras)), 1)

    def _locate(self, claim: Callable[[], Sequence[Located]]) -> list[Located]:
        return self._with_frames(claim())

    def _with_frames(self, located: Sequence[Located]) -> list[Located]:
        """Begin to read the frames of located rows."""
        places: list[FramePlace] = []
        for block, row in located:
            if not _is_text(block):
                record = block.records[row]
                source = int(record["source"])
                for seen, frames in zip(record["observation_mask"].tolist(), record["frame"].tolist(), strict=True):
                    if seen:
                        places += [(source, offset, length) for offset, length in frames]
        batch = self._frames.begin(places)
        wrapped: dict[int, RowBlock] = {}
        found: list[Located] = []
        for block, row in located:
            if not _is_text(block):
                block = wrapped.get(id(block)) or wrapped.setdefault(
                    id(block), ReferenceBlock(block, batch, self._swap)
                )
            found.append((block, row))
        return found


def _is_text(block: RowBlock) -> bool:
    return len(block.texts) == 2


@dataclass(frozen=True, eq=False)
class ReferenceBlock:
    """A row group whose frames are in source shards: see `RowBlock`.

    Attributes:
        rows: its numbers and texts.
        frames: of the batch.
        swap: bool (data sets, cameras), whether the source stores BGR.
    """

    rows: RowBlock
    frames: BatchFrames
    swap: NDArray[np.bool_]

    @property
    def records(self) -> NDArray[Any]:
        """See `RowBlock`."""
        return self.rows.records

    @property
    def texts(self) -> tuple[Sequence[str], ...]:
        """See `RowBlock`."""
        return self.rows.texts

    def frame(self, row: int, observation: int, camera: int) -> bytes | memoryview:
        """See `RowBlock`."""
        record = self.records[row]
        source = int(record["source"])
        offset, length = record["frame"][observation, camera].tolist()
        try:
            return self.frames.read((source, offset, length))
        except StorageError as error:
            raise StorageError(self._explained(row, str(error))) from None
        except DataError as error:
            raise DataError(self._explained(row, str(error))) from None

    def swapped(self, row: int, camera: int) -> bool:
        """See `RowBlock`."""
        return bool(self.swap[self.records["dataset"][row], camera])

    def damaged(self, row: int, observation: int, camera: int, reason: str) -> DataError:
        """See `RowBlock`."""
        offset, length = self.records["frame"][row, observation, camera].tolist()
        what = f"bytes {offset:,} to {offset + length:,} cannot be decoded ({reason}), so the file is damaged"
        return DataError(self._explained(row, f"{what}; compare it with the original (`oxe-curate filter --verify`)"))

    def where(self, row: int) -> str:
        """See `RowBlock`."""
        return self.rows.where(row)

    def sample_id(self, row: int) -> str:
        """See `RowBlock`."""
        return self.rows.sample_id(row)

    def _explained(self, row: int, text: str) -> str:
        """A message that names the source shard, the sample and its row."""
        name = self.frames.name(int(self.records["source"][row]))
        try:
            sample = f"sample {self.sample_id(row)}, "
        except CurateError:  # the mixture is damaged, too
            sample = ""
        return f"{text if name in text else f'{name}: {text}'} (needed for {sample}{self.where(row)})"
