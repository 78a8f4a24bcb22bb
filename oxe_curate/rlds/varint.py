"""Base-128 varints, as in protobuf and Thrift's compact protocol."""

from __future__ import annotations

from oxe_curate.errors import CorruptError


def read_varint(buffer: memoryview | bytes, position: int) -> tuple[int, int]:
    """Return (value, position after it).

    Raises:
        CorruptError: it is longer than 10 bytes.
        IndexError: the buffer ends inside it.
    """
    byte = buffer[position]
    if byte < 0x80:
        return byte, position + 1
    value, shift = byte & 0x7F, 7
    while shift < 70:
        position += 1
        byte = buffer[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position + 1
        shift += 7
    raise CorruptError(f"byte {position}: a varint of more than 10 bytes")
