"""The interface of row readers, and the choice between them: random access on a local disk, row groups elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from oxe_curate.tokenize.folder import MixtureFolder
from oxe_curate.train.data.local import MEMORY, LocalRows
from oxe_curate.train.data.references import ReferenceRows
from oxe_curate.train.data.rows import Located, SampleFormat
from oxe_curate.train.data.shards import ShardFile
from oxe_curate.train.data.stream import RemoteRows

Claim = Callable[[], Sequence[Located]]
"""Locates the rows of a batch when it is called, in any thread."""


class RowOrder(Protocol):
    """The order of training samples: an endless sequence of positions, a pure function of the seed."""

    def rows(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows at positions of the sequence, int64 (n,)."""

    def positions(
        self, start: int, step: int, rank: int, world: int, batch_size: int, accumulation: int
    ) -> NDArray[np.int64]:
        """Positions of one rank's micro-batch, int64 (batch_size,); see `order.batch_positions`."""


class RowSource(Protocol):
    """The rows of some shards, numbered in shard order."""

    def __len__(self) -> int:
        """Number of rows."""

    def order(self, seed: int, global_batch: int, world: int) -> RowOrder:
        """The order of training samples."""

    def held_out(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows at places of the fixed validation order, int64 (n,)."""

    def claim(self, rows: NDArray[np.int64]) -> Claim:
        """A batch of any rows.

        Raises:
            DataError, StorageError: when the result is called: a shard is damaged or cannot be read.
        """

    def batches(self, plan: Iterator[NDArray[np.int64]]) -> Generator[Claim, None, None]:
        """Claims of consecutive batches; may read ahead in `plan`. Close it to stop the reading."""


def open_rows(
    mixture: MixtureFolder,
    shards: Sequence[ShardFile],
    sample_format: SampleFormat,
    memory: int = MEMORY,
    row_groups: bool | None = None,
) -> RowSource:
    """Open the rows of some shards.

    Args:
        mixture: the folder.
        shards: files as the manifest lists them.
        sample_format: the part of a row to read.
        memory: bytes of numbers to keep, with random access.
        row_groups: read whole row groups; None: only where the mixture is in an object store.

    Raises:
        DataError: a shard is missing, damaged, or differs from the manifest.
    """
    rows: LocalRows | RemoteRows
    if row_groups or not mixture.folder.is_local:
        rows = RemoteRows(mixture, shards, sample_format)
    else:
        rows = LocalRows(mixture, shards, sample_format, memory)
    return ReferenceRows(rows, mixture, sample_format) if sample_format.reference else rows
