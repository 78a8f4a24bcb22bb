"""Open a shard: mapped if it is local, else fetched from the object store in ranges on demand.

The whole length of a remote shard is reserved as anonymous memory, of which only the fetched parts are backed by pages,
so the same scanner runs on it as on a mapped file.
"""

from __future__ import annotations

import bisect
import mmap
from dataclasses import dataclass
from typing import Any

from oxe_curate.rlds.tfrecord import Ensure
from oxe_curate.storage import Folder

_SMALLEST, _LARGEST = 256 << 10, 8 << 20
"""Bytes per request: doubled while reads are sequential, reset after a jump over images."""


@dataclass(frozen=True, eq=False)
class ShardBytes:
    """The bytes of an open shard.

    Attributes:
        buffer: the whole file; remote bytes that were not ensured read as zero.
        remote: None for a local file.
    """

    buffer: memoryview
    remote: RemoteShard | None = None

    @property
    def ensure(self) -> Ensure | None:
        """To be called before bytes are read; None for a local file."""
        return self.remote.ensure if self.remote else None

    def read(self, offset: int, length: int) -> memoryview:
        """Return a byte range, fetched if necessary."""
        if self.remote:
            self.remote.ensure(offset, length)
        return self.buffer[offset : offset + length]

    def prefetch(self, offset: int, length: int) -> None:
        """Fetch a byte range now, or let the system read it ahead."""
        if self.remote:
            self.remote.ensure(offset, length)
        else:
            Folder.advise(self.buffer, offset, length)


def open_shard(source: Folder, path: str) -> ShardBytes:
    """Open a shard for random reading. Raises StorageError if it cannot be read."""
    if source.is_local:
        return ShardBytes(source.map(path))
    remote = RemoteShard(source, path)
    return ShardBytes(remote.buffer, remote)


class RemoteShard:
    """The bytes of a remote file, fetched on demand.

    Attributes:
        buffer: the whole file; bytes that were not ensured read as zero.
        bytes_fetched: number of bytes transferred.
    """

    def __init__(self, folder: Folder, path: str) -> None:
        self._name = f"{folder}/{path}"
        self._file: Any = folder.open(path)
        self._size = int(self._file.size())
        self._memory = mmap.mmap(-1, max(self._size, 1))
        self.buffer = memoryview(self._memory)[: self._size]
        self.bytes_fetched = 0
        self._starts: list[int] = []  # fetched intervals: sorted, disjoint
        self._ends: list[int] = []
        self._request = _SMALLEST

    def ensure(self, offset: int, length: int) -> None:
        """Fetch the missing parts of [offset, offset + length), and more while reads are sequential."""
        end = min(offset + length, self._size)
        position = offset
        while position < end:
            i = bisect.bisect_right(self._starts, position) - 1
            if i >= 0 and self._ends[i] > position:
                position = self._ends[i]
                continue
            sequential = i >= 0 and self._ends[i] == position
            self._request = min(self._request * 2, _LARGEST) if sequential else _SMALLEST
            following = self._starts[i + 1] if i + 1 < len(self._starts) else self._size
            stop = min(max(end, position + self._request), following)
            self._fetch(position, stop, i)
            position = stop

    def _fetch(self, start: int, stop: int, before: int) -> None:
        data = self._file.read_at(stop - start, start)
        if len(data) != stop - start:
            raise OSError(f"{self._name}: got {len(data)} of {stop - start} bytes at offset {start}")
        self._memory[start:stop] = data
        self.bytes_fetched += stop - start
        if before >= 0 and self._ends[before] == start:
            self._ends[before] = stop
        else:
            before += 1
            self._starts.insert(before, start)
            self._ends.insert(before, stop)
        if before + 1 < len(self._starts) and self._starts[before + 1] == stop:
            self._ends[before] = self._ends.pop(before + 1)
            self._starts.pop(before + 1)
