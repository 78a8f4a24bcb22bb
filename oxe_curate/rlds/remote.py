"""A shard on an object store, read in ranges as the scanner asks for them.

The shard's whole length is reserved as anonymous memory, of which only the fetched parts are ever backed by pages, so
that the same scanner runs on it as on a mapped file.
"""

from __future__ import annotations

import bisect
import mmap
from typing import Any

from oxe_curate.storage import Folder

SMALLEST, LARGEST = 256 << 10, 8 << 20
"""Bytes a request asks for: it doubles while the reading is sequential and falls back after a jump over images."""


class RemoteShard:
    """The bytes of a remote file, fetched on demand.

    Attributes:
        buffer: the whole file; bytes that were not ensured read as zero.
        bytes_fetched: how much was transferred.
    """

    def __init__(self, folder: Folder, path: str) -> None:
        self._name = f"{folder}/{path}"
        self._file: Any = folder.open(path)
        self._size = int(self._file.size())
        self._memory = mmap.mmap(-1, max(self._size, 1))
        self.buffer = memoryview(self._memory)[: self._size]
        self.bytes_fetched = 0
        self._starts: list[int] = []  # fetched intervals: sorted, apart from one another
        self._ends: list[int] = []
        self._request = SMALLEST

    def ensure(self, offset: int, length: int) -> None:
        """Fetch what is missing of [offset, offset + length), and some more while the reading is sequential."""
        end = min(offset + length, self._size)
        position = offset
        while position < end:
            i = bisect.bisect_right(self._starts, position) - 1
            if i >= 0 and self._ends[i] > position:
                position = self._ends[i]
                continue
            sequential = i >= 0 and self._ends[i] == position
            self._request = min(self._request * 2, LARGEST) if sequential else SMALLEST
            following = self._starts[i + 1] if i + 1 < len(self._starts) else self._size
            stop = min(max(end, position + self._request), following)
            self._fetch(position, stop, i)
            position = stop

    def _fetch(self, start: int, stop: int, before: int) -> None:
        data = self._file.read_at(stop - start, start)
        if len(data) != stop - start:
            raise OSError(f"{self._name}: {len(data)} bytes came of {stop - start} at {start}")
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
