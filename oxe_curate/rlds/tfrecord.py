"""TFRecord framing: the location of each record, with masked CRC32C checks.

A record is: uint64 length, uint32 masked CRC of those 8 bytes, the data, uint32 masked CRC of the data, little-endian
(https://www.tensorflow.org/tutorials/load_data/tfrecord). The length's CRC is always checked, since a wrong length
hides all later records; the data's CRC only on request, since that reads every byte.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import crc32c

from oxe_curate.errors import CorruptError
from oxe_curate.rlds.foreign import HEAD, ForeignFileError, foreign, is_json

HEADER = 12
FOOTER = 4
_header = struct.Struct("<QI")
_crc = struct.Struct("<I")
_framing = struct.Struct("<QII")

Ensure = Callable[[int, int], None]
"""Called with (offset, length) before bytes are read: a remote reader fetches them then."""


def masked_crc(data: bytes | memoryview) -> int:
    """CRC32C rotated right by 15 bits plus a constant, as TFRecord stores it."""
    return mask(crc32c.crc32c(data))


def mask(crc: int) -> int:
    """TFRecord's form of a CRC32C; see `masked_crc`."""
    return int(((crc >> 15) | (crc << 17)) + 0xA282EAD8 & 0xFFFFFFFF)


def frame_record(data: bytes) -> bytes:
    """Frame one TFRecord: uint64 length, its masked CRC, the data, its masked CRC; all little-endian."""
    length = struct.pack("<Q", len(data))
    return b"".join((length, struct.pack("<I", masked_crc(length)), data, struct.pack("<I", masked_crc(data))))


def same_framing(head: bytes | memoryview, tail: bytes | memoryview, length: int, crc: int) -> bool:
    """Whether the bytes before and after a record's data are those of a record of this length and data checksum.

    Args:
        head: `HEADER` bytes.
        tail: `FOOTER` bytes.
        length: of the data.
        crc: the masked CRC of the data.
    """
    return _header.unpack(head) == (length, masked_crc(head[:8])) and _crc.unpack(tail) == (crc,)


@dataclass(eq=False)
class Framing:
    """What surrounds the records of a shard: it identifies the contents at the cost of one page per record.

    Attributes:
        crcs: the masked CRC of each record's data, as stored after it (not compared with the data).
    """

    crcs: list[int] = field(default_factory=list)
    _hash: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=16), repr=False)

    def add(self, length: int, length_crc: int, data_crc: int) -> None:
        """Add the next record."""
        self.crcs.append(data_crc)
        self._hash.update(_framing.pack(length, length_crc, data_crc))

    @property
    def digest(self) -> str:
        """BLAKE2b-128 over (length, its CRC, the data's CRC) of every record so far, in order."""
        return str(self._hash.hexdigest())


def records(
    buffer: memoryview, ensure: Ensure | None = None, framing: Framing | None = None
) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) of each record's data.

    Args:
        buffer: the shard.
        ensure: for a shard whose bytes are fetched on demand.
        framing: collects each record's framing when the next one is asked for, after its data was read.

    Raises:
        CorruptError: a length fails its CRC or exceeds the file; the message names the record and its byte offset.
            Records before it have been yielded; later ones cannot be found.
        ForeignFileError: the file is not a TFRecord file but one of another kind that is recognised.
    """
    position, size, number = 0, len(buffer), 0
    while position < size:
        if size - position < HEADER + FOOTER:
            _check_kind(buffer, position, ensure)
            raise CorruptError(f"record {number} at byte {position}: the file ends inside its header (truncated?)")
        if ensure:
            ensure(position, HEADER)
        length, crc = _header.unpack_from(buffer, position)
        if masked_crc(buffer[position : position + 8]) != crc:
            _check_kind(buffer, position, ensure)
            raise CorruptError(f"record {number} at byte {position}: its length fails the checksum")
        start = position + HEADER
        if start + length + FOOTER > size:
            raise CorruptError(
                f"record {number} at byte {position}: {length} bytes announced, {size - start} left (truncated?)"
            )
        yield start, length
        position = start + length + FOOTER
        number += 1
        if framing is not None:
            if ensure:
                ensure(position - FOOTER, FOOTER)
            framing.add(length, crc, _crc.unpack_from(buffer, position - FOOTER)[0])


def _check_kind(buffer: memoryview, position: int, ensure: Ensure | None) -> None:
    """Raise ForeignFileError if the first record fails because the file is something else."""
    head = min(len(buffer), HEAD)
    if position == 0:
        if ensure:
            ensure(0, head)
        data = bytes(buffer[:head])
        if what := foreign(data) or ("is JSON, not a shard: download the file again" if is_json(data) else ""):
            raise ForeignFileError(f"the file {what}")


def check_framing(buffer: memoryview, offset: int, length: int, crc: int, ensure: Ensure | None = None) -> None:
    """Check that a record is where it was, with the same length and the same checksum of its data.

    Args:
        buffer: the shard.
        offset: of the record's data, as `records` yielded it.
        length: of the record's data.
        crc: the masked CRC of the data, as `Framing` recorded it.
        ensure: for a shard whose bytes are fetched on demand.

    Raises:
        CorruptError: the shard is not the one that was recorded.
    """
    start, end = offset - HEADER, offset + length
    if start < 0 or end + FOOTER > len(buffer):
        raise CorruptError(f"the file ends before the record at byte {offset}, so it has changed")
    if ensure:
        ensure(start, HEADER)
        ensure(end, FOOTER)
    if not same_framing(buffer[start:offset], buffer[end : end + FOOTER], length, crc):
        raise CorruptError(f"the record at byte {offset} is not the one that was recorded, so the file has changed")


def check_data(buffer: memoryview, offset: int, length: int) -> None:
    """Compare a record's data with its CRC. Raises CorruptError if they differ."""
    (expected,) = _crc.unpack_from(buffer, offset + length)
    if masked_crc(buffer[offset : offset + length]) != expected:
        raise CorruptError("its data fails the checksum")
