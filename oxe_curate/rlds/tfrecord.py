"""TFRecord framing: the location of each record, with masked CRC32C checks.

A record is: uint64 length, uint32 masked CRC of those 8 bytes, the data, uint32 masked CRC of the data, little-endian
(https://www.tensorflow.org/tutorials/load_data/tfrecord). The length's CRC is always checked, since a wrong length
hides all later records; the data's CRC only on request, since that reads every byte.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import crc32c

from oxe_curate.errors import CorruptError

HEADER = 12
FOOTER = 4
_header = struct.Struct("<QI")
_crc = struct.Struct("<I")

Ensure = Callable[[int, int], None]
"""Called with (offset, length) before bytes are read: a remote reader fetches them then."""


def masked_crc(data: bytes | memoryview) -> int:
    """CRC32C rotated right by 15 bits plus a constant, as TFRecord stores it."""
    crc = crc32c.crc32c(data)
    return int(((crc >> 15) | (crc << 17)) + 0xA282EAD8 & 0xFFFFFFFF)


def records(buffer: memoryview, ensure: Ensure | None = None) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) of each record's data.

    Raises:
        CorruptError: a length fails its CRC or exceeds the file; the message names the record and its byte offset.
            Records before it have been yielded; later ones cannot be found.
    """
    position, size, number = 0, len(buffer), 0
    while position < size:
        if size - position < HEADER + FOOTER:
            raise CorruptError(f"record {number} at byte {position}: the file ends inside its header (truncated?)")
        if ensure:
            ensure(position, HEADER)
        length, crc = _header.unpack_from(buffer, position)
        if masked_crc(buffer[position : position + 8]) != crc:
            raise CorruptError(f"record {number} at byte {position}: its length fails the checksum")
        start = position + HEADER
        if start + length + FOOTER > size:
            raise CorruptError(
                f"record {number} at byte {position}: {length} bytes announced, {size - start} left (truncated?)"
            )
        yield start, length
        position = start + length + FOOTER
        number += 1


def check_data(buffer: memoryview, offset: int, length: int) -> None:
    """Compare a record's data with its CRC. Raises CorruptError if they differ."""
    (expected,) = _crc.unpack_from(buffer, offset + length)
    if masked_crc(buffer[offset : offset + length]) != expected:
        raise CorruptError("its data fails the checksum")
