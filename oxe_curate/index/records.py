"""The records of source shards that an output shard draws from, compared with the index before they are used.

Local shards are read in small pieces, not mapped: a file that is truncated meanwhile is then an error like any other.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future

import crc32c

from oxe_curate.errors import CorruptError, DataError, StorageError
from oxe_curate.index.episodes import Episode
from oxe_curate.index.source_shards import Looks
from oxe_curate.rlds import tfrecord
from oxe_curate.rlds.remote import ShardBytes
from oxe_curate.rlds.shards import is_array_record, open_shard
from oxe_curate.storage import Folder, explain
from oxe_curate.storage.transfers import submit

_OPEN_FILES = 256
_HELD = 16 << 20  # bytes: a record up to this size is kept while it is used
_CACHED = 256 << 10  # bytes that stay in the processor's cache while they are read and summed
_ADVISE = hasattr(os, "posix_fadvise")

CHANGED = (
    "the file has changed since it was filtered. Restore it, give the folder that has the original with --source, or "
    "run `oxe-curate filter` again"
)


class ShardReader:
    """Reads byte ranges of one source shard.

    Attributes:
        name: for messages.
        remote: whether it is in an object store; bytes that were fetched are kept then.
        size: in bytes.
        known: whether it is still the object that was filtered, by its identity.
    """

    name: str
    remote = False
    known = False
    size: int

    def read(self, offset: int, length: int) -> bytes | memoryview:
        """A part of the shard. Raises DataError if the shard ends before, StorageError if it cannot be read."""
        data = bytearray(max(length, 0))
        self.read_into(offset, memoryview(data))
        return memoryview(data)

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill a buffer from `offset` on. Raises like `read`."""
        raise NotImplementedError

    def prefetch(self, ranges: Sequence[tuple[int, int]], framing: Sequence[tuple[int, int]] = ()) -> None:
        """Begin to read (offset, length) parts, and those of `framing` if the shard is not `known`."""

    def check_unchanged(self) -> None:
        """Raise StorageError if the shard was written to since it was opened."""
        raise NotImplementedError

    def _cut(self, end: int) -> DataError:
        return DataError(f"{self.name}: ends before byte {end}; {CHANGED}")


class _ShardBytesReader(ShardReader):
    """Of an object, or of a compressed file: what was read is kept. An object is opened while others are read."""

    remote = True

    def __init__(self, folder: Folder, path: str, look: str | None) -> None:
        self.name = f"{folder}/{path}"
        self._folder, self._path, self._look = folder, path, look
        self._lock, self._is_open = threading.Lock(), False
        self._asked: list[tuple[Sequence[tuple[int, int]], Sequence[tuple[int, int]]]] = []  # before it was open
        self._opened: Future[ShardBytes] = Future()
        if folder.is_local:
            self._opened.set_result(self._open())
        else:
            self._opened = submit(self._open, first=True)

    def _open(self) -> ShardBytes:
        shard = open_shard(self._folder, self._path)
        with self._lock:
            self._is_open = True
            for ranges, framing in self._asked:
                shard.prefetch_many(self._needed(shard, ranges, framing))
            self._asked.clear()
        return shard

    def _needed(
        self, shard: ShardBytes, ranges: Sequence[tuple[int, int]], framing: Sequence[tuple[int, int]]
    ) -> Sequence[tuple[int, int]]:
        return ranges if self._looks_same(shard) else [*ranges, *framing]

    def _looks_same(self, shard: ShardBytes) -> bool:
        return self._look is not None and shard.identity.startswith(f"{self._look}:")

    @property
    def size(self) -> int:  # type: ignore[override]
        return len(self._opened.result().buffer)

    @property
    def known(self) -> bool:  # type: ignore[override]
        return self._looks_same(self._opened.result())

    def read(self, offset: int, length: int) -> bytes | memoryview:
        if offset < 0 or offset + length > self.size:
            raise self._cut(offset + length)
        return self._opened.result().read(offset, length)

    def read_into(self, offset: int, view: memoryview) -> None:
        view[:] = self.read(offset, len(view))

    def prefetch(self, ranges: Sequence[tuple[int, int]], framing: Sequence[tuple[int, int]] = ()) -> None:
        with self._lock:
            if not self._is_open:  # an error when it is opened appears where it is read
                self._asked.append((ranges, framing))
                return
        shard = self._opened.result()
        shard.prefetch_many(self._needed(shard, ranges, framing))

    def check_unchanged(self) -> None:
        self._opened.result().check_unchanged()


class _LocalReader(ShardReader):
    """Opened when it is needed; `files` closes the file that was opened first if too many are open."""

    def __init__(self, folder: Folder, path: str, files: _OpenFiles) -> None:
        self.name, self._files = f"{folder}/{path}", files
        found = os.fstat(self._files.descriptor(self.name))
        self.size, self._written = found.st_size, found.st_mtime_ns

    def read_into(self, offset: int, view: memoryview) -> None:
        descriptor, end = self._files.descriptor(self.name), offset + len(view)
        if offset < 0:
            raise self._cut(end)
        try:
            while view:
                count = os.preadv(descriptor, [view], offset)
                if not count:
                    raise self._cut(end)
                view, offset = view[count:], offset + count
        except OSError as error:
            raise StorageError(f"{self.name}: {explain(error)}") from error

    def prefetch(self, ranges: Sequence[tuple[int, int]], framing: Sequence[tuple[int, int]] = ()) -> None:
        for offset, length in (*ranges, *framing) if _ADVISE else ():
            os.posix_fadvise(self._files.descriptor(self.name), offset, length, os.POSIX_FADV_WILLNEED)

    def check_unchanged(self) -> None:
        found = os.fstat(self._files.descriptor(self.name))
        if (found.st_size, found.st_mtime_ns) != (self.size, self._written):
            raise StorageError(
                f"{self.name}: was written to while being read. Let whatever writes to it finish, or restore it, and "
                "run the same command again"
            )


class _OpenFiles:
    """File descriptors by name, not too many at a time."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, int] = OrderedDict()

    def descriptor(self, name: str) -> int:
        found = self._open.get(name)
        if found is None:
            try:
                found = self._open[name] = os.open(name, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            except OSError as error:
                raise StorageError(f"{name}: {explain(error)}") from error
            while len(self._open) > _OPEN_FILES:
                os.close(self._open.popitem(last=False)[1])
        return found

    def __del__(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])


class Record:
    """One episode's record: reads parts of it, from memory if it was read as a whole."""

    def __init__(self, reader: ShardReader, start: int = 0, held: memoryview | None = None) -> None:
        self.reader = reader
        self._start, self._data = start, held if held is not None else memoryview(b"")

    def read(self, offset: int, length: int) -> bytes | memoryview:
        """A part of the shard; see `ShardReader.read`. Valid until the next record is opened."""
        at = offset - self._start
        if at >= 0 and at + length <= len(self._data):
            return self._data[at : at + length]
        return self.reader.read(offset, length)


class SourceRecords:
    """Opens each source shard once, and checks each record before its frames are used.

    Args:
        check: whether to compare the data of every record with its checksum; None: of local shards, and of a record
            in an object store if at least half of it is fetched anyway.
        looks: what the shards looked like when they were filtered. The framing of a record in an object that still
            looks so is not compared: far from the frames, it would cost another request.
    """

    def __init__(self, check: bool | None = None, looks: Looks | None = None) -> None:
        self._check, self._looks = check, looks or {}
        self._readers: dict[tuple[str, str], ShardReader] = {}
        self._files = _OpenFiles()
        self._asked: list[tuple[int, int]] = []  # of `_asking`, an object: not requested yet
        self._framing: list[tuple[int, int]] = []
        self._asking: ShardReader | None = None
        self._buffer = bytearray()  # kept, since the system clears new memory

    def request(self, source: Folder, episode: Episode, ranges: Sequence[tuple[int, int]]) -> None:
        """Begin to read what `open` and the caller will read of a record; see there.

        Requests to an object are held back until another shard is asked for, a record is opened or `flush` is called,
        so that episodes that are close to each other share one.
        """
        reader = self._reader(source, episode.shard)
        offset, length = episode.record
        framing = [(offset - tfrecord.HEADER, tfrecord.HEADER), (offset + length, tfrecord.FOOTER)]
        parts = [(offset, length)] if self._checks(reader, length, ranges) else [*ranges]
        if not reader.remote:
            return reader.prefetch(parts, framing)
        if reader is not self._asking:
            self.flush()
        self._asking = reader
        self._asked += parts
        self._framing += framing
        return None

    def flush(self) -> None:
        """Make the requests that are held back."""
        if self._asking is not None and self._asked:
            self._asking.prefetch(self._asked, self._framing)
            self._asked, self._framing = [], []

    def _checks(self, reader: ShardReader, length: int, ranges: Sequence[tuple[int, int]]) -> bool:
        if self._check is not None:
            return self._check
        return not reader.remote or 2 * sum(size for _, size in ranges) >= length

    def check_unchanged(self) -> None:
        """Raise StorageError if a shard was written to since it was opened; one request per object, several at once."""
        checks = [submit(reader.check_unchanged) for reader in self._readers.values() if reader.remote]
        for reader in self._readers.values():
            if not reader.remote:
                reader.check_unchanged()
        for check in checks:
            check.result()

    def open(self, source: Folder, episode: Episode, ranges: Sequence[tuple[int, int]] = ()) -> Record:
        """An episode's record, after comparing its framing (and data, see above) with the index.

        Args:
            source: root of the data set's shards.
            episode: of the index.
            ranges: (offset, length) of the parts of the shard that will be read anyway.

        Raises:
            DataError: the shard is not the one that was filtered. CorruptError: the record's data is damaged.
            StorageError: the shard cannot be read.
        """
        self.flush()
        reader = self._reader(source, episode.shard)
        offset, length = episode.record
        if not reader.known and not self._same_framing(reader, offset, length, episode.record_crc):
            raise DataError(f"{reader.name}: another record is where {episode.id} was; {CHANGED}")
        if not self._checks(reader, length, ranges):
            return Record(reader)
        held = self._scratch(min(length, _HELD))
        crc, at, step = 0, 0, min(_CACHED, _HELD)
        for start in range(0, length, step):
            piece = held[at : at + min(step, length - start)]
            reader.read_into(offset + start, piece)
            crc = crc32c.crc32c(piece, crc)
            at = at + len(piece) if length <= _HELD else 0
        if tfrecord.mask(crc) != episode.record_crc:
            raise CorruptError(
                f"{reader.name}: {episode.id}: the data of its record fails the checksum, so the file is damaged. "
                "Download it again; --no-check-records skips this check"
            )
        return Record(reader, offset, held) if length <= _HELD else Record(reader)

    def _same_framing(self, reader: ShardReader, offset: int, length: int, crc: int) -> bool:
        head = reader.read(offset - tfrecord.HEADER, tfrecord.HEADER)
        return tfrecord.same_framing(head, reader.read(offset + length, tfrecord.FOOTER), length, crc)

    def _reader(self, source: Folder, path: str) -> ShardReader:
        key = source.uri, path
        if key not in self._readers:
            local = source.is_local and not is_array_record(path)
            look = self._looks.get(f"{source}/{path}")
            self._readers[key] = (
                _LocalReader(source, path, self._files) if local else _ShardBytesReader(source, path, look)
            )
        return self._readers[key]

    def _scratch(self, length: int) -> memoryview:
        if len(self._buffer) < length:
            self._buffer = bytearray(length)
        return memoryview(self._buffer)[:length]
