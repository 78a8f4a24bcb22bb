"""Open a shard and read parts of it on demand, from a disk or an object store.

The whole length of a shard is reserved as memory, of which only the parts that were read are backed by pages. A local
file is read too, not mapped: a mapped file that somebody truncates kills the process without a word.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from functools import partial

from oxe_curate.errors import StorageError
from oxe_curate.rlds.memory import reserve
from oxe_curate.storage import Folder, explain
from oxe_curate.storage.link import link
from oxe_curate.storage.ranges import join_ranges
from oxe_curate.storage.transfers import transfer

PAGE = 12
"""Bits of a page: bytes are read and counted in pages of 4 KiB."""
_LOCAL = 1, 64
"""Pages of a read: the first after a jump over images, and the most while reads are sequential (doubled each time)."""
_REMOTE = 16
"""Pages: the least that is fetched of an object; a jump over less is not one."""
_JUMPS, _CLUSTERS = 3, 8
"""Latest jumps by which a shard is judged, and latest long ones."""
_AHEAD = 32768
"""Pages of an object that are fetched ahead if it is read through: 128 MiB."""
_MOST = 1 << 30
"""Bytes of the objects that are read through at the same time."""
_MISSING, _COMING, HERE, _PASSING, _AGAIN = range(5)
"""States of a page: `_PASSING` ones are fetched only because they are between others; when an `_AGAIN` one is read,
which is here, more is fetched ahead."""
_REQUESTED = bytes.maketrans(bytes((0, 1)), bytes((_PASSING, _COMING)))
_ARRIVED = bytes.maketrans(bytes((_COMING, _PASSING)), bytes((HERE, _MISSING)))


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
        """Say how many records there are, before anything is read: from an object, small ones are read through."""

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
        while (first := _next(state, HERE, first, stop, other=True)) < stop:
            sequential = first > 0 and state[first - 1] == HERE
            self._window = min(self._window * 2, _LOCAL[1]) if sequential else _LOCAL[0]
            end = _next(state, HERE, first, min(max(stop, first + self._window), len(state)))
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


class RemoteShard(ShardBytes):
    """An object, fetched in ranges. Thread-safe.

    What is needed next is only known when what precedes it was read. So a missing range is fetched with as much behind
    it as was needed after earlier jumps; and if all jumps are so short that reading through them takes less time than
    another request (`Link.gap`), what follows is fetched ahead, as far as memory allows.
    """

    remote = True

    def __init__(self, folder: Folder, path: str) -> None:
        self._object = folder.open_object(path)
        super().__init__(self._object.name, self._object.size())
        self.identity = self._object.identity()
        self._changed = threading.Condition()
        self._failed: Exception | None = None
        self._closed = self._reserved = False
        self._record = 1 << 62  # bytes of a record, on average, if that is known
        self._landed = 0  # page: where the last long jump led to
        self._jumps = deque([1 << 62] * _JUMPS, _JUMPS)  # pages that the latest jumps left out
        self._clusters = deque([_REMOTE], _CLUSTERS)  # pages that were needed after each long jump
        self._next_ahead = len(self._state)  # page: when it or a later one is read, more is fetched ahead

    def expect(self, records: int) -> None:
        """See ShardBytes."""
        self._record = self._size // max(records, 1)

    def _load(self, first: int, stop: int) -> None:
        state = self._state
        with self._changed:
            if state.count(_AGAIN, first, stop):
                state[:] = state.replace(bytes((_AGAIN,)), bytes((HERE,)))
                self._ahead(self._next_ahead)
            if state.count(_MISSING, first, stop) or state.count(_PASSING, first, stop):
                self._failed = None
                self._land(first, stop)
            while state.count(_COMING, first, stop):
                self._changed.wait()
            failed = (
                self._failed
                if state.count(HERE, first, stop) + state.count(_AGAIN, first, stop) != stop - first
                else None
            )
        if failed:
            self._fail(failed)

    def _fail(self, error: Exception) -> None:
        if isinstance(error, StorageError):
            self._object.check_unchanged(retries=0)  # if it was replaced, that is the cause
        raise error

    def _land(self, first: int, stop: int) -> None:
        """Request pages that are needed now, and some behind them."""
        before, gap = self._needed.rfind(1, 0, first) + 1, link.gap >> PAGE
        if first - before >= _REMOTE:
            self._jumps.append(first - before)
            if first - before >= gap:
                self._clusters.append(before - self._landed)
                self._landed = first
        if not self._ahead(first):
            window = min(max(*self._clusters, _REMOTE, first - self._landed), max(gap, _REMOTE))
            self._request(first, min(max(stop, first + window), len(self._state)), first=True)
        elif self._state.count(_MISSING, first, stop) or self._state.count(_PASSING, first, stop):
            self._request(first, stop, first=True)

    def _ahead(self, first: int) -> bool:
        """Fetch what follows a page, if reading through it is faster; whether that was done."""
        gap = link.gap
        if self._record >= gap and max(self._jumps) << PAGE >= gap:
            return False
        if not self._reserved:
            self._reserved = _whole.reserve(self)
        if not self._reserved:
            return False
        stop = min(first + _AHEAD, len(self._state))
        self._next_ahead = stop - _AHEAD // 2 if stop < len(self._state) else stop
        self._request(first, stop, first=False)
        return True

    def prefetch_many(self, ranges: Iterable[tuple[int, int]]) -> None:
        """See ShardBytes. Short gaps between the ranges are fetched too, and dropped."""
        pages = []
        for offset, length in ranges:
            if length > 0 and offset < self._size:
                first, stop = self._pages(offset, length)
                pages.append((first, stop - first))
        pages.sort()
        with self._changed:
            runs = join_ranges(pages, max(link.gap >> PAGE, 1), len(self._state))
            at = 0
            for first, length in runs:
                begin = at
                while at < len(pages) and pages[at][0] < first + length:
                    at += 1
                self._request(first, first + length, first=False, wanted=pages[begin:at])

    def _request(self, start: int, end: int, first: bool, wanted: Sequence[tuple[int, int]] | None = None) -> None:
        """Request the missing pages of a range, before everything that waits if `first`.

        What is not `wanted`, (page, pages) ascending, is dropped when it arrives; None: nothing is.
        """
        state = self._state
        coming = bytearray(end - start)
        for page, count in wanted if wanted is not None else [(start, end - start)]:
            coming[page - start : page - start + count] = b"\1" * count
        at = start
        while (at := _next(state, _MISSING, at, end)) < end:
            stop = _next(state, _MISSING, at, end, other=True)
            a, b = coming.find(1, at - start, stop - start), coming.rfind(1, at - start, stop - start)
            if a >= 0:
                a, b = start + a, start + b + 1
                state[a:b] = coming[a - start : b - start].translate(_REQUESTED)
                self._region.written += (b - a) << PAGE
                transfer(partial(self._fetch, a), len(self._span(a, b)), first)
            at = stop
        for page, count in wanted if wanted is not None else [(start, end - start)]:  # that an earlier request passes
            if state.count(_PASSING, page, page + count):
                state[page : page + count] = state[page : page + count].replace(bytes((_PASSING,)), bytes((_COMING,)))

    def _fetch(self, page: int, start: int, stop: int) -> None:
        """Fetch the bytes [start, stop) from a page on."""
        first, last = page + (start >> PAGE), page + (stop + (1 << PAGE) - 1 >> PAGE)
        error: Exception | None = None
        try:
            if self._closed:
                raise StorageError(f"{self.name}: is closed")
            if self._failed is None:
                self._object.request(first << PAGE, self._span(first, last))
        except Exception as failure:
            error = failure
        with self._changed:
            self._failed = self._failed or error
            if self._failed is None:
                self._arrived(first, last)
                self.bytes_fetched += stop - start
            else:
                self._state[first:last] = bytes(last - first)
            self._changed.notify_all()

    def _arrived(self, first: int, last: int) -> None:
        state, at = self._state, first
        while (at := _next(state, _PASSING, at, last)) < last:
            end = _next(state, _PASSING, at, last, other=True)
            self._region.drop(at << PAGE, end - at << PAGE)
            at = end
        state[first:last] = state[first:last].translate(_ARRIVED)
        again = max(first, self._next_ahead)
        if again < last:
            state[again:last] = state[again:last].replace(bytes((HERE,)), bytes((_AGAIN,)))

    def wait(self) -> None:
        """See ShardBytes."""
        with self._changed:
            while self._state.count(_COMING) or self._state.count(_PASSING):
                self._changed.wait()
            failed = self._failed
        if failed:
            self._fail(failed)

    def check_unchanged(self) -> None:
        """See ShardBytes; one request."""
        self._object.check_unchanged()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._closed = True  # what waits in the queue is not fetched any more
        super().__exit__(kind, error, trace)


class _Whole:
    """How much memory the shards take that are fetched as a whole."""

    def __init__(self) -> None:
        self._used, self._lock = 0, threading.RLock()  # a finalizer may run while its thread holds it

    def reserve(self, shard: ShardBytes) -> bool:
        """Whether there is memory for one more, until it is freed; always if there is no other."""
        size = len(shard.buffer)
        with self._lock:
            if self._used and self._used + size > _MOST:
                return False
            self._used += size
        weakref.finalize(shard, self._free, size).atexit = False
        return True

    def _free(self, size: int) -> None:
        with self._lock:
            self._used -= size


_whole = _Whole()


def _next(state: bytearray, value: int, first: int, stop: int, other: bool = False) -> int:
    """The first page in [first, stop) whose state is `value`, or with `other` is not; else `stop`."""
    if not other:
        found = state.find(value, first, stop)
        return found if found >= 0 else stop
    part = state[first:stop]
    return first + len(part) - len(part.lstrip(bytes((value,))))
