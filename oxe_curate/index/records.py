"""The records of source shards that an output shard draws from, compared with the index before they are used.

Local shards are read in small pieces, not mapped: a file that is truncated meanwhile is then an error like any other.
"""

from __future__ import annotations

import os
import weakref

import crc32c

from oxe_curate.errors import CorruptError, DataError, StorageError
from oxe_curate.index.episodes import Episode
from oxe_curate.lru import LruCache
from oxe_curate.rlds import tfrecord
from oxe_curate.rlds.remote import ShardBytes, open_shard
from oxe_curate.storage import Folder, explain

_OPEN_FILES = 256
_HELD = 16 << 20  # bytes: a record up to this size is read at once
_PIECE = 4 << 20
_ADVISE = hasattr(os, "posix_fadvise")


class ShardReader:
    """Reads byte ranges of one source shard.

    Attributes:
        name: for messages.
        remote: whether it is in an object store; bytes that were fetched are kept then.
        size: in bytes.
    """

    def __init__(self, folder: Folder, path: str, files: LruCache[_File]) -> None:
        self.name, self._files = f"{folder}/{path}", files
        self.remote = not folder.is_local
        self._fetched: ShardBytes | None = open_shard(folder, path) if self.remote else None
        self.size = len(self._fetched.buffer) if self._fetched else self._file().size

    def read(self, offset: int, length: int) -> bytes | memoryview:
        """A part of the shard. Raises DataError if the shard ends before, StorageError if it cannot be read."""
        data = self._fetched.read(offset, length) if self._fetched else self._file().read(offset, length)
        if offset < 0 or len(data) != length:
            raise DataError(f"{self.name}: ends before byte {offset + length}; {CHANGED}")
        return data

    def prefetch(self, offset: int, length: int) -> None:
        """Fetch a part now, or let the system read it ahead."""
        if self._fetched:
            self._fetched.prefetch(offset, length)
        else:
            self._file().advise(offset, length)

    def _file(self) -> _File:
        return self._files.get(self.name, lambda: (_File(self.name), 1))


CHANGED = (
    "the file has changed since it was filtered. Restore it, give the folder that has the original with --source, or "
    "run `oxe-curate filter` again"
)


class _File:
    """An open local file. The descriptor is closed with the last reference."""

    def __init__(self, name: str) -> None:
        self._name = name
        try:
            self._descriptor = os.open(name, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise StorageError(f"{name}: {explain(error)}") from error
        weakref.finalize(self, os.close, self._descriptor)
        self.size = os.fstat(self._descriptor).st_size

    def advise(self, start: int, size: int) -> None:
        if _ADVISE:
            os.posix_fadvise(self._descriptor, start, size, os.POSIX_FADV_WILLNEED)

    def read(self, offset: int, length: int) -> bytes:
        try:
            data = os.pread(self._descriptor, length, max(offset, 0))
            while len(data) < length and (more := os.pread(self._descriptor, length - len(data), offset + len(data))):
                data += more
            return data
        except OSError as error:
            raise StorageError(f"{self._name}: {explain(error)}") from error


class Record:
    """One episode's record: reads parts of it, from memory if it was read as a whole."""

    def __init__(self, reader: ShardReader, held: tuple[int, bytes | memoryview] = (0, b"")) -> None:
        self.reader = reader
        self._start, self._data = held[0], memoryview(held[1])

    def read(self, offset: int, length: int) -> bytes | memoryview:
        """A part of the shard; see `ShardReader.read`."""
        at = offset - self._start
        if at >= 0 and at + length <= len(self._data):
            return self._data[at : at + length]
        return self.reader.read(offset, length)


class SourceRecords:
    """Opens each source shard once, and checks each record before its frames are used.

    Args:
        check: whether to compare the data of every record with its checksum; None: of local shards, and of a record
            in an object store if at least half of it is fetched anyway.
    """

    def __init__(self, check: bool | None = None) -> None:
        self._check = check
        self._readers: dict[tuple[str, str], ShardReader] = {}
        self._files: LruCache[_File] = LruCache(_OPEN_FILES)

    def open(self, source: Folder, episode: Episode, fetched: int) -> Record:
        """An episode's record, after comparing its framing (and data, see above) with the index.

        Args:
            source: root of the data set's shards.
            episode: of the index.
            fetched: bytes of the record that will be read anyway.

        Raises:
            DataError: the shard is not the one that was filtered. CorruptError: the record's data is damaged.
            StorageError: the shard cannot be read.
        """
        key = source.uri, episode.shard
        if key not in self._readers:
            self._readers[key] = ShardReader(source, episode.shard, self._files)
        reader = self._readers[key]
        _check_framing(reader, episode)
        offset, length = episode.record
        check = (not reader.remote or 2 * fetched >= length) if self._check is None else self._check
        if not check:
            return Record(reader)
        reader.prefetch(offset, length)
        crc, piece = 0, _HELD if length <= _HELD else _PIECE
        data: bytes | memoryview = b""
        for start in range(offset, offset + length, piece):
            data = reader.read(start, min(piece, offset + length - start))
            crc = crc32c.crc32c(data, crc)
        if tfrecord.mask(crc) != episode.record_crc:
            raise CorruptError(
                f"{reader.name}: {episode.id}: the data of its record fails the checksum, so the file is damaged. "
                "Download it again; --no-check-records skips this check"
            )
        return Record(reader, (offset, data)) if length <= _HELD else Record(reader)


def _check_framing(reader: ShardReader, episode: Episode) -> None:
    offset, length = episode.record
    head = reader.read(offset - tfrecord.HEADER, tfrecord.HEADER)
    tail = reader.read(offset + length, tfrecord.FOOTER)
    if not tfrecord.same_framing(head, tail, length, episode.record_crc):
        raise DataError(f"{reader.name}: another record is where {episode.id} was; {CHANGED}")
