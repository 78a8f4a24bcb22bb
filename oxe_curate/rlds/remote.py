"""Open a shard and read parts of it on demand: local files, and what they have in common with objects of a store.

The whole length of a shard is reserved as memory, of which only the parts that were read are backed by pages. A local
file is read too, not mapped: a mapped file that somebody truncates kills the process without a word.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable

from oxe_curate.errors import StorageError
from oxe_curate.rlds.memory import reserve
from oxe_curate.storage import Folder, explain

PAGE = 12
"""Bits of a page: bytes are read and counted in pages of 4 KiB."""
_LOCAL = 1, 64
"""Pages of a read: the first after a jump over images, and the most while reads are sequential (doubled each time)."""
HERE = 2
"""The state of a page that is in memory. 0: it is not."""


class ShardBytes:
    """The bytes of an open shard. Leaving its context checks that the file is still the one that was opened.

    Attributes:
        name: for messages.
        remote: whether it is in an object store.
        buffer: the whole file; bytes that were not ensured may be anything.
        bytes_fetched: bytes read or transferred so far.
        identity: of an object when it was opened, see `Folder.identity`.
    """

    remote = False
    identity = ""

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self._size = size
        self.buffer, self._region = reserve(size)
        self.bytes_fetched = 0
        pages = (size >> PAGE) + 1
        self._state, self._needed = bytearray(pages), bytearray(pages)
        self._window = 0

    @property
    def file_size(self) -> int:
        """Bytes of the stored file, which differ from those of the buffer if it is compressed."""
        return self._size

    @property
    def bytes_needed(self) -> int:
        """Bytes of the pages of 4 KiB that were asked for: the same for a local file as for an object."""
        return min(self._needed.count(1) << PAGE, self._size)

    def ensure(self, offset: int, length: int) -> None:
        """Read a byte range that will be used now, unless it has been; and more while reads are sequential.

        Raises:
            StorageError: it cannot be read, or the file has become shorter.
        """
        if length <= 0 or offset >= self._size:
            return
        first = offset >> PAGE
        if offset + length <= first + 1 << PAGE:  # in one page: the most frequent case
            self._needed[first] = 1
            if self._state[first] != HERE:
                self._load(first, first + 1)
            return
        first, stop = self._pages(offset, length)
        self._needed[first:stop] = b"\1" * (stop - first)
        if self._state.count(HERE, first, stop) != stop - first:
            self._load(first, stop)

    def read(self, offset: int, length: int) -> memoryview:
        """Return a byte range, read if necessary."""
        self.ensure(offset, length)
        return self.buffer[offset : offset + length]

    def prefetch(self, offset: int, length: int) -> None:
        """Read a byte range that will be used."""
        self.ensure(offset, length)

    def prefetch_many(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Begin to read (offset, length) ranges; call `wait`, or `ensure` for a part, before the bytes are used.

        They do not count as needed. Ranges of an object that are close to each other are fetched together, and all are
        in flight at once, as far as the options allow. A local file is read now.
        """
        for offset, length in ranges:
            if length > 0 and offset < self._size:
                first, stop = self._pages(offset, length)
                self._load(first, stop)

    def _pages(self, offset: int, length: int) -> tuple[int, int]:
        return offset >> PAGE, (min(offset + length, self._size) - 1 >> PAGE) + 1

    def expect(self, records: int) -> None:
        """Say how many records there are, and that one thread reads them once, in order, through `ensure`.

        Small records in an object are read through then, and what was not needed of it is dropped.
        """

    def wait(self) -> None:
        """Return when everything that was asked for has been read."""

    def check_unchanged(self) -> None:
        """Raise StorageError if the file was changed, replaced or shortened since it was opened."""
        raise NotImplementedError

    def __enter__(self) -> ShardBytes:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None or (issubclass(kind, Exception) and not issubclass(kind, StorageError)):
            self.check_unchanged()  # before another error is reported: this would be its cause

    def _load(self, first: int, stop: int) -> None:
        """Read pages [first, stop) and mark them in `_state`."""
        raise NotImplementedError

    def _span(self, first: int, stop: int) -> memoryview:
        return self.buffer[first << PAGE : min(stop << PAGE, self._size)]


class LocalShard(ShardBytes):
    """A local file, read with pread: a page or two after a jump, more while reads are sequential."""

    def __init__(self, folder: Folder, path: str) -> None:
        self._open(folder, path)
        super().__init__(self.name, self._opened.st_size)

    @property
    def file_size(self) -> int:
        """See ShardBytes."""
        return self._opened.st_size

    def _open(self, folder: Folder, path: str) -> None:
        self.name = f"{folder}/{path}"
        try:
            self._descriptor = os.open(folder.path(path), os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise StorageError(f"{self.name}: {explain(error)}") from error
        weakref.finalize(self, os.close, self._descriptor)
        self._opened = os.fstat(self._descriptor)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # read-ahead would read the images

    def _load(self, first: int, stop: int) -> None:
        state = self._state
        if stop - first == 1 and (first == 0 or state[first - 1] != HERE):  # a jump, the most frequent case
            self._window = _LOCAL[0]
            self._read(first, stop)
            state[first] = HERE
            return
        while (first := next_page(state, HERE, first, stop, other=True)) < stop:
            sequential = first > 0 and state[first - 1] == HERE
            self._window = min(self._window * 2, _LOCAL[1]) if sequential else _LOCAL[0]
            end = next_page(state, HERE, first, min(max(stop, first + self._window), len(state)))
            self._read(first, end)
            state[first:end] = bytes((HERE,)) * (end - first)
            first = end

    def _read(self, first: int, stop: int) -> None:
        part, at = self._span(first, stop), first << PAGE
        while part:
            try:
                count = os.preadv(self._descriptor, [part], at)
            except OSError as error:
                raise StorageError(f"{self.name}: {explain(error)}") from error
            if count == 0:
                self.check_unchanged()
                raise StorageError(f"{self.name}: cannot be read beyond byte {at} of {self._size}")
            part, at = part[count:], at + count
            self.bytes_fetched += count
            self._region.written += count

    def check_unchanged(self) -> None:
        """See ShardBytes."""
        now, then = os.fstat(self._descriptor), self._opened
        advice = "Let whatever writes to it finish, or restore it, and run the same command again"
        if now.st_size != then.st_size:
            how = "truncated" if now.st_size < then.st_size else "extended"
            raise StorageError(
                f"{self.name}: was {how} while being read (had {then.st_size} bytes, now {now.st_size}). {advice}"
            )
        if now.st_mtime_ns != then.st_mtime_ns:
            raise StorageError(f"{self.name}: was written to while being read. {advice}")


def next_page(state: bytearray, value: int, first: int, stop: int, other: bool = False) -> int:
    """The first page in [first, stop) whose state is `value`, or with `other` is not; else `stop`."""
    if not other:
        found = state.find(value, first, stop)
        return found if found >= 0 else stop
    part = state[first:stop]
    return first + len(part) - len(part.lstrip(bytes((value,))))
