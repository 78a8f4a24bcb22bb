"""A shard in an object store, fetched in ranges: ahead of its reader where that is faster than skipping."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np

from oxe_curate.errors import StorageError
from oxe_curate.lru import LruCache
from oxe_curate.rlds.remote import HERE, PAGE, ShardBytes, next_page
from oxe_curate.storage import Folder
from oxe_curate.storage.link import link
from oxe_curate.storage.ranges import join_ranges
from oxe_curate.storage.transfers import LONGEST, transfer

_REMOTE = 16
"""Pages: the least that is fetched of an object; a jump over less is not one."""
_JUMPS, _CLUSTERS = 3, 24
"""Latest jumps by which a shard is judged, and latest long ones of a folder."""
_AHEAD = 2 * LONGEST >> PAGE
"""Pages of an object that are fetched ahead if it is read through (64 MiB), the next half when half is used."""
READ_THROUGH, _MOST = (_AHEAD << PAGE) * 3 // 2, 1 << 30
"""Bytes of memory that an object takes at most while it is read through, and all such objects."""
_MISSING, _COMING, _PASSING, _AGAIN = 0, 1, 3, 4
"""States of a page besides HERE. `_PASSING` ones are fetched only because they are between others. When an `_AGAIN` one
is read, which is here, more is fetched ahead."""
_REQUESTED = bytes.maketrans(bytes((0, 1)), bytes((_PASSING, _COMING)))
_ARRIVED = bytes.maketrans(bytes((_COMING, _PASSING)), bytes((HERE, _MISSING)))


def _no_clusters() -> tuple[deque[int], int]:
    return deque([_REMOTE], _CLUSTERS), 1


_clusters: LruCache[deque[int]] = LruCache(64)
"""Folder -> pages that were needed after each long jump in its shards."""


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
        self._clusters = _clusters.get((folder.uri, path.rpartition("/")[0]), _no_clusters)
        self._next_ahead = len(self._state)  # page: when it or a later one is read, more is fetched ahead
        self._forgotten = len(self._state)  # page: of those before it, only what was needed is kept

    def expect(self, records: int) -> None:
        """See ShardBytes."""
        self._record, self._forgotten = self._size // max(records, 1), 0

    def _load(self, first: int, stop: int) -> None:
        state, requested, failed = self._state, False, None
        with self._changed:
            if state.count(_AGAIN, first, stop):
                state[:] = state.replace(bytes((_AGAIN,)), bytes((HERE,)))
                self._forget(first)
                self._ahead(self._next_ahead)
            while state.count(HERE, first, stop) + state.count(_AGAIN, first, stop) < stop - first:
                if state.count(_COMING, first, stop):
                    self._changed.wait()
                elif failed := requested and self._failed:
                    break
                else:
                    self._failed, requested = None, True
                    self._land(first, stop)
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
            if first - before >= gap // 2:
                self._clusters.append(before - self._landed)
                self._landed = first
                self._forget(before)
        if not self._ahead(first):
            window = max(min(max(*self._clusters.copy(), first - self._landed), gap), _REMOTE)
            self._request(first, min(max(stop, first + window), len(self._state)), first=True)
        elif self._state.count(_MISSING, first, stop) or self._state.count(_PASSING, first, stop):
            self._request(first, stop, first=True)

    def _ahead(self, first: int) -> bool:
        """Fetch what follows a page, if reading through it is faster; whether that was done."""
        gap = link.gap * (5 if self._reserved else 3) // 2  # one step waits for another otherwise; estimates vary
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

    def _forget(self, stop: int) -> None:
        """Give back the memory of pages that were fetched and not needed, two records before `stop` and earlier."""
        first, stop = self._forgotten, stop - (2 * self._record >> PAGE)
        if first >= stop:
            return
        self._forgotten = stop
        unused = np.frombuffer(self._state, np.uint8)[first:stop] == HERE
        unused &= np.frombuffer(self._needed, np.uint8)[first:stop] == 0
        edges = np.flatnonzero(np.diff(unused, prepend=False, append=False)) + first
        for a, b in edges.reshape(-1, 2).tolist():
            if self._region.drop(a << PAGE, b - a << PAGE):
                self._state[a:b] = bytes(b - a)

    def prefetch_many(self, ranges: Iterable[tuple[int, int]]) -> None:
        """See ShardBytes. Short gaps between the ranges are fetched too, and dropped."""
        pages = []
        for offset, length in ranges:
            if length > 0 and offset < self._size:
                first, stop = self._pages(offset, length)
                pages.append((first, stop - first))
        pages.sort()
        with self._changed:
            self._forgotten = len(self._state)
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
        state, end = self._state, min(end, -(-self._size >> PAGE))
        coming = bytearray(max(end - start, 0))
        for page, count in wanted if wanted is not None else [(start, end - start)]:
            coming[page - start : page - start + count] = b"\1" * count
        at = start
        while (at := next_page(state, _MISSING, at, end)) < end:
            stop = next_page(state, _MISSING, at, end, other=True)
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
        while (at := next_page(state, _PASSING, at, last)) < last:
            end = next_page(state, _PASSING, at, last, other=True)
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
        """Whether memory is left for one more, until it is freed; the first is always accepted."""
        size = min(len(shard.buffer), READ_THROUGH)
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
