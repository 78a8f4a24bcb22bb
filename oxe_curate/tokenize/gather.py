"""Find the frames that an output shard needs in its episodes' records, which are read ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from oxe_curate.index.episodes import Episode
from oxe_curate.index.frame_pool import FramePool, ranges_needed
from oxe_curate.index.records import Record
from oxe_curate.storage import Folder

_AHEAD = 32
"""Episodes that are read ahead."""
_AHEAD_BYTES = 256 << 20
"""Bytes of frames that are requested ahead from an object store; the next half when half of them is used."""

_Item = TypeVar("_Item")
_Ranges = list[tuple[int, int]]


class RecordSource(Protocol):
    """Opens the records that frames are taken from; see `SourceRecords`."""

    def request(self, source: Folder, episode: Episode, ranges: Sequence[tuple[int, int]]) -> None:
        """Begin to read what `open` and the caller will read of a record."""

    def open(self, source: Folder, episode: Episode, ranges: Sequence[tuple[int, int]] = ()) -> Record:
        """An episode's record."""


@dataclass(frozen=True, slots=True, eq=False)
class Wanted(Generic[_Item]):
    """An episode whose frames are needed.

    Attributes:
        item: what the caller knows of it.
        root: of its data set's shards.
        needed: int64 (n,), the steps whose frames are needed.
        bgr: camera roles whose frames are stored as BGR.
    """

    item: _Item
    root: Folder
    episode: Episode
    needed: NDArray[np.int64]
    bgr: Container[str]


def gather(
    wanted: Iterable[Wanted[_Item]], cameras: Sequence[str], records: RecordSource, headers: bool = False
) -> tuple[list[_Item], NDArray[np.int64], dict[str, FramePool]]:
    """Find the frames of some episodes.

    Args:
        wanted: the episodes.
        cameras: roles.
        records: opens their records.
        headers: see `FramePool`.

    Returns:
        The items; int64 (items,), the number of each one's first frame; and the frames by camera role.
    """
    pools = {role: FramePool(role, headers) for role in cameras}
    items: list[_Item] = []
    first: list[int] = []
    for one, ranges in _requested(wanted, cameras, records):
        record = records.open(one.root, one.episode, ranges)
        for role, pool in pools.items():
            base = pool.add(record, one.episode, one.needed, swap=role in one.bgr)
        items.append(one.item)
        first.append(base)
    return items, np.array(first, np.int64), pools


def _requested(
    wanted: Iterable[Wanted[_Item]], cameras: Sequence[str], records: RecordSource
) -> Iterator[tuple[Wanted[_Item], _Ranges]]:
    """Yield each episode and the parts of its shard to read; some are read ahead."""
    waiting: deque[tuple[Wanted[_Item], _Ranges]] = deque()
    ahead = 0
    for one in wanted:
        ranges = [part for role in cameras for part in ranges_needed(one.episode, role, one.needed)]
        records.request(one.root, one.episode, ranges)
        waiting.append((one, ranges))
        ahead += _size(ranges)
        enough = len(waiting) <= _AHEAD if one.root.is_local else ahead <= _AHEAD_BYTES
        while not enough:  # from a store in bursts: neighbours are requested together
            ahead -= _size(waiting[0][1])
            yield waiting.popleft()
            enough = one.root.is_local or not waiting or ahead <= _AHEAD_BYTES // 2
    yield from waiting


def _size(ranges: _Ranges) -> int:
    return sum(length for _, length in ranges)
