"""Frames in the source shards of a mixture by reference.

Local files are read with pread, those of a batch after the system was asked for all of them. Of objects in a store, the
frames of a batch are requested together, neighbours by one request. A file that does not look as it did when it was
compared last is compared again before it is read, so a shard that was replaced meanwhile is an error, not other images.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from functools import partial

from oxe_curate.errors import CorruptError, CurateError, DataError, StorageError
from oxe_curate.index.images import is_complete
from oxe_curate.index.source_shards import matches_shard
from oxe_curate.lru import LruCache
from oxe_curate.rlds.array_record import ArrayRecordShard
from oxe_curate.rlds.shards import is_array_record
from oxe_curate.storage import status_identity
from oxe_curate.storage.objects import StoredObject
from oxe_curate.storage.transfers import submit
from oxe_curate.tokenize.sources import ADVICE, MixtureSources
from oxe_curate.train.data.files import LocalFile, open_file_limit

_OPEN_FILES, _OBJECTS, _GS_OBJECTS = 2048, 4096, 64
"""Files and objects that are kept open; an open object of gs:// has a connection of its own."""
_ARRAY_RECORDS = 256 << 20
"""Bytes of decompressed records that are kept: one frame of an array_record file costs its whole episode."""
_AGE = 600
"""Seconds after which an object is opened again, which shows whether it was replaced."""
_GAP, PIECE = 64 << 10, 2 << 20
"""Bytes: frames of an object that are closer than the one are requested together, up to the other."""
_LOCKS = 16
_WRITTEN = "the file is being written to while it is read"

FramePlace = tuple[int, int, int]
"""Number of the source shard, offset and length of a frame."""


class SourceFrames:
    """Reads frames from the source shards of a mixture. Thread-safe.

    Args:
        sources: the shards, with the identities that they had when they were compared.
    """

    def __init__(self, sources: MixtureSources) -> None:
        self._sources = sources
        self._known = [row.identity for row in sources]
        self._opened = [0] * len(sources)  # counts up when a shard must be opened again
        self._files: LruCache[_SourceFile] = LruCache(open_file_limit(_OPEN_FILES))
        self._records: LruCache[tuple[int, bytes]] = LruCache(_ARRAY_RECORDS)
        google = any(row.root.uri.startswith("gs://") for row in sources)
        self._objects: LruCache[StoredObject] = LruCache(_GS_OBJECTS if google else _OBJECTS)
        self._locks, self._opening = ([threading.Lock() for _ in range(_LOCKS)] for _ in range(2))
        self.remote = any(not row.root.is_local for row in sources)

    def begin(self, places: Sequence[FramePlace]) -> BatchFrames:
        """Begin to read the frames of a batch. Raises nothing: errors appear where a frame is used."""
        here = sorted({place for place in places if 0 <= place[0] < len(self._sources)})
        coming: dict[FramePlace, tuple[Future[memoryview], int]] = {}
        for number, group in itertools.groupby(here, key=lambda place: place[0]):
            if self._sources[number].root.is_local:
                with contextlib.suppress(CurateError):
                    self._file(number).prepare(group)
                continue
            for first, stop, joined in _joined(group):
                future = submit(partial(self._fetch, number, first, stop - first))
                coming |= {place: (future, place[1] - first) for place in joined}
        return BatchFrames(self, coming)

    def name(self, number: int) -> str:
        """A source shard, for messages."""
        return str(self._sources[number].name) if 0 <= number < len(self._sources) else f"source {number}"

    def read(self, place: FramePlace) -> bytes | memoryview:
        """Read a frame now; see `BatchFrames.read`."""
        number, offset, length = place
        if not 0 <= number < len(self._sources) or offset < 0 or length <= 0:
            raise DataError("the row refers to no frame; the shard is damaged, run tokenize again")
        if not self._sources[number].root.is_local:
            return self._fetch(number, offset, length)
        for _ in range(2):
            file = self._file(number)
            data = file.read_frame(offset, length)
            if not file.changed():
                break
            self._opened[number] += 1  # touched or replaced: compare it, and read once more
        else:
            raise DataError(f"{_WRITTEN}. {ADVICE}")
        if len(data) != length:
            raise DataError(f"the file ends before byte {offset + length:,}, so it has changed. {ADVICE}")
        return data

    def read_compared(self, place: FramePlace) -> memoryview:
        """Read a frame of an object that looks different, after comparing it with the index. Raises as `read` does."""
        number, offset, length = place
        for _ in range(2):
            self._opened[number] += 1
            self._check(number, self._object(number).identity())
            with contextlib.suppress(_UnknownObjectError):
                return self._fetch(number, offset, length)
        raise DataError(f"{_WRITTEN}. {ADVICE}")

    def _file(self, number: int) -> _SourceFile:
        def open_it() -> tuple[_SourceFile, int]:
            row = self._sources[number]
            try:
                if is_array_record(row.shard.path):
                    file: _SourceFile = _ArrayRecordFile(ArrayRecordShard(row.root, row.shard.path), key, self._records)
                else:
                    file = _SourceFile(row.name)
            except StorageError as error:
                raise DataError(f"{error}. {ADVICE}") from None
            self._check(number, file.identity)
            return file, 1

        key = number, self._opened[number]
        return self._files.get(key, open_it)

    def _check(self, number: int, identity: str) -> None:
        """Compare a shard with the index, unless it looks as it did when it was compared last.

        Raises:
            DataError: it is another file. StorageError: it cannot be read.
        """
        if _looks_same(self._known[number], identity):
            return
        row = self._sources[number]
        with self._locks[number % _LOCKS]:
            if _looks_same(self._known[number], identity):
                return
            same_size = int(identity.partition(":")[0]) == row.shard.bytes
            if not same_size or not matches_shard(row.root, row.shard.path, row.shard):
                raise DataError(f"the file is not the one that was filtered. {ADVICE}")
            self._known[number] = identity

    def _fetch(self, number: int, offset: int, length: int) -> memoryview:
        """Request a part of an object.

        Raises:
            _UnknownObjectError: the object must be compared first, by another thread than those of requests.
            DataError: the object was replaced by a shorter one. StorageError: it cannot be read.
        """
        opened = self._object(number)
        if not _looks_same(self._known[number], opened.identity()):
            raise _UnknownObjectError
        self._known[number] = opened.identity()  # with the version, which listings lack
        if offset + length > opened.size():
            raise DataError(f"the object ends before byte {offset + length:,}, so it has changed. {ADVICE}")
        data = memoryview(bytearray(length))
        try:
            opened.request(offset, data)
        except StorageError:
            self._opened[number] += 1
            if not _looks_same(self._known[number], self._object(number).identity()):
                raise _UnknownObjectError from None  # it was replaced, which is the cause
            raise
        return data

    def _object(self, number: int) -> StoredObject:
        def open_it() -> tuple[StoredObject, int]:
            row = self._sources[number]
            try:
                return row.root.open_object(row.shard.path), 1
            except StorageError as error:
                raise (DataError(f"{error}. {ADVICE}") if "not found" in str(error) else error) from None

        age = int(time.monotonic() + number * 7) // _AGE  # not all at the same moment
        with self._opening[number % _LOCKS]:  # the first requests of an object come at once
            return self._objects.get((number, self._opened[number], age), open_it)


class BatchFrames:
    """The frames of a batch, some of which have been requested.

    Args:
        frames: reads the others.
        coming: place -> the part of the object that has the frame, and where the frame begins in it.
    """

    def __init__(self, frames: SourceFrames, coming: dict[FramePlace, tuple[Future[memoryview], int]]) -> None:
        self._frames, self._coming = frames, coming

    def read(self, place: FramePlace) -> bytes | memoryview:
        """A frame.

        Raises:
            DataError: the shard has changed, or there is no image. StorageError: it cannot be read. The messages do not
            name the shard.
        """
        try:
            data = self._read(place)
        except _UnknownObjectError:
            data = self._frames.read_compared(place)
        if not is_complete(data):
            raise DataError(
                f"bytes {place[1]:,} to {place[1] + place[2]:,} are not a complete JPEG or PNG image, so the file is "
                f"damaged or has changed. {ADVICE}"
            )
        return data

    def name(self, number: int) -> str:
        """See `SourceFrames.name`."""
        return self._frames.name(number)

    def _read(self, place: FramePlace) -> bytes | memoryview:
        if place not in self._coming:
            return self._frames.read(place)
        part, start = self._coming[place]
        return part.result()[start : start + place[2]]


class _UnknownObjectError(Exception):
    """An object does not look as it did when it was compared last."""


class _SourceFile(LocalFile):
    """A TFRecord file."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._then = self.status()

    @property
    def identity(self) -> str:
        """See `Folder.identity`."""
        return status_identity(self._then)

    def changed(self) -> bool:
        """Whether it was written to or removed since it was opened."""
        now = self.status()
        return not now.st_nlink or (now.st_size, now.st_mtime_ns) != (self._then.st_size, self._then.st_mtime_ns)

    def prepare(self, places: Iterator[FramePlace]) -> None:
        """Ask the system to read frames ahead."""
        for _, offset, length in places:
            self.advise(offset, length)

    def read_frame(self, offset: int, length: int) -> bytes:
        """A part of the file; shorter at its end."""
        return self.read(offset, length) if offset + length <= self._then.st_size else b""


class _ArrayRecordFile(_SourceFile):
    """An array_record file: a record is decompressed for its frames, and kept for a while under `key`."""

    def __init__(self, shard: ArrayRecordShard, key: tuple[int, int], records: LruCache[tuple[int, bytes]]) -> None:
        super().__init__(shard.name)
        self._shard, self._key, self._records, self._lock = shard, key, records, threading.Lock()

    def prepare(self, places: Iterator[FramePlace]) -> None:
        """Nothing can be read ahead."""

    def read_frame(self, offset: int, length: int) -> bytes:
        """A part of the TFRecord file with the same records."""

        def decompress() -> tuple[tuple[int, bytes], int]:
            with self._lock:
                start, data = self._shard.framed_record(offset)
            return (start, data), len(data)

        try:
            start, data = self._records.get((*self._key, self._shard.record_number(offset)), decompress)
        except CorruptError as error:
            raise DataError(f"{error}. {ADVICE}") from None
        return data[offset - start : offset - start + length]


def _looks_same(known: str, identity: str) -> bool:
    """Whether an identity is the known one, which may come from a listing and then lack an object's version."""
    return known == identity or (bool(known) and identity.startswith(f"{known}:"))


def _joined(places: Iterator[FramePlace]) -> Iterator[tuple[int, int, list[FramePlace]]]:
    """Group the frames of an object, in order, that one request should fetch: its range, and the frames in it."""
    group: list[FramePlace] = []
    first = stop = 0
    for place in places:
        _, offset, length = place
        if group and (offset > stop + _GAP or offset + length - first > PIECE):
            yield first, stop, group
            group = []
        if not group:
            first = stop = offset
        group.append(place)
        stop = max(stop, offset + length)
    if group:
        yield first, stop, group
