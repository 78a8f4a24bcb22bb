"""array_record files, read as the TFRecord files with the same records, each decompressed when it is needed.

The index holds byte ranges of frames, which a compressed file does not have. So a shard here is the TFRecord file with
the same records: its layout follows from their lengths, which the headers of the file's chunks give. Files of Riegeli,
which array_record builds on: https://github.com/google/riegeli/blob/master/doc/riegeli_records_file_format.md.
"""

from __future__ import annotations

import os
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oxe_curate.errors import CorruptError, DataError, StorageError
from oxe_curate.rlds.foreign import ARRAY_RECORD, HEAD, ForeignFileError, foreign
from oxe_curate.rlds.remote import HERE, PAGE, LocalShard, ShardBytes
from oxe_curate.rlds.tfrecord import FOOTER, HEADER, frame_record
from oxe_curate.storage import Folder

_SIGNATURE = 64  # bytes: the first block header and an empty chunk
_BLOCK, _BLOCK_HEADER = 1 << 16, 24
_CHUNK = struct.Struct("<8xQ8xQQ")
"""Hash, size of the data, its hash, type (the lowest byte) and number of records, size of the decoded data."""


class ArrayRecordShard(LocalShard):
    """The TFRecord file with the records of an array_record file; each record is decompressed when it is needed.

    Raises:
        StorageError: it is in an object store, or cannot be opened.
        DataError: the package array-record is missing.
        CorruptError: it is not an array_record file, or is damaged.
    """

    def __init__(self, folder: Folder, path: str) -> None:
        if not folder.is_local:
            raise StorageError(
                f"{folder}/{path}: array_record shards are read from a disk only; copy the data set there"
            )
        self._open(folder, path)
        self._reader, self._starts = self._lengths(str(folder.path(path)))
        ShardBytes.__init__(self, self.name, int(self._starts[-1]))
        self._read_already = np.zeros(len(self._starts) - 1, bool)

    def _lengths(self, file: str) -> tuple[Any, NDArray[np.int64]]:
        """The reader, and where each record's frame begins in the TFRecord file, and the last one ends."""
        head = os.pread(self._descriptor, HEAD, 0)
        if not head.startswith(ARRAY_RECORD):
            raise ForeignFileError(f"{self.name} {foreign(head) or 'is not an array_record file: download it again'}")
        try:
            from array_record.python.array_record_module import ArrayRecordReader
        except ImportError as error:
            raise DataError(
                f"{self.name}: needs the package array-record (`pip install array-record`): {error}"
            ) from None
        try:
            reader = ArrayRecordReader(file, "readahead_buffer_size:0,max_parallelism:0")
            if not reader.ok():
                raise ValueError("its footer is missing")
            lengths = self._walk(reader.num_records())
            if lengths is None:
                lengths = [len(record) for record in reader.read_all()]
        except (RuntimeError, ValueError, IndexError, struct.error) as error:
            raise CorruptError(f"{self.name}: cannot be read as array_record (truncated?): {_line(error)}") from None
        return reader, np.cumsum([0, *(HEADER + length + FOOTER for length in lengths)])

    def _walk(self, count: int) -> list[int] | None:
        """The lengths of all records by the headers of their chunks; None if a chunk has several records."""
        position, lengths = _SIGNATURE, list[int]()
        while len(lengths) < count:
            size, kind, decoded = _CHUNK.unpack(self._plain(position, _CHUNK.size))
            records = kind >> 8
            if kind & 0xFF in b"rt":
                if records != 1:
                    return None
                lengths.append(decoded)
            position = _after(position, _CHUNK.size + size)
        return lengths

    def _plain(self, position: int, length: int) -> bytes:
        """Bytes of the file without the header that each block begins with."""
        data = os.pread(self._descriptor, length + _BLOCK_HEADER, position)
        cut = -position % _BLOCK
        if cut < length:
            data = data[:cut] + data[cut + _BLOCK_HEADER :]
        return data[:length]

    def _load(self, first: int, stop: int) -> None:
        part = self._span(first, stop)
        begin = first << PAGE
        held = slice(
            max(int(np.searchsorted(self._starts, begin, "right")) - 1, 0),
            int(np.searchsorted(self._starts, begin + len(part))),
        )
        for i in (np.flatnonzero(~self._read_already[held]) + held.start).tolist():
            framed = self._framed(i)
            self.buffer[self._starts[i] : self._starts[i + 1]] = framed
            self._read_already[i] = True
            self.bytes_fetched += len(framed)
            self._region.written += len(framed)
        self._state[first:stop] = bytes((HERE,)) * (stop - first)

    def framed_record(self, offset: int) -> tuple[int, bytes]:
        """The record that has the byte `offset` of the TFRecord file, with its framing: its start and its bytes.

        Unlike `read`, this keeps nothing. Not thread-safe.

        Raises:
            CorruptError: the record cannot be read.
        """
        i = self.record_number(offset)
        return int(self._starts[i]), self._framed(i)

    def record_number(self, offset: int) -> int:
        """The number of the record that has the byte `offset` of the TFRecord file; of the last one beyond its end."""
        return min(max(int(np.searchsorted(self._starts, offset, "right")) - 1, 0), len(self._starts) - 2)

    def _framed(self, i: int) -> bytes:
        try:
            (data,) = self._reader.read([i])
        except (RuntimeError, ValueError, IndexError) as error:
            self.check_unchanged()
            raise CorruptError(f"record {i} of the array_record file cannot be read: {_line(error)}") from None
        framed = frame_record(data)
        if len(framed) != self._starts[i + 1] - self._starts[i]:
            raise CorruptError(f"record {i} of the array_record file has {len(data)} bytes, not those of its header")
        return framed


def _after(position: int, length: int) -> int:
    """The position after `length` bytes of chunks, which block headers interrupt (Riegeli's AddWithOverhead)."""
    usable = _BLOCK - _BLOCK_HEADER
    return position + length + (length + (position + usable - 1) % _BLOCK) // usable * _BLOCK_HEADER


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
