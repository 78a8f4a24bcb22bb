"""The pages of a Parquet column chunk, found from their headers: where each page's values are in the file.

Layout (parquet-format, "Data Pages" and "Encodings"): a column chunk is a sequence of pages; a page is a header in
Thrift's compact protocol, then repetition and definition levels, then the values.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

from oxe_curate.errors import CorruptError, DataError
from oxe_curate.rlds.varint import read_varint

ReadBytes = Callable[[int, int], bytes | memoryview]
"""(offset, length) -> that part of a file; shorter at its end."""

_DATA_PAGE, _DATA_PAGE_V2, _PLAIN = 0, 3, 0
_HEADER_BYTES = 256  # a data page's header without statistics takes about 30
_LENGTH = struct.Struct("<I")


def plain_pages(read: ReadBytes, start: int, size: int, levels: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Yield (first byte of the values, first byte after them) of each page of an uncompressed, PLAIN column chunk.

    Args:
        read: reads a part of the file.
        start: offset of the first page of the chunk.
        size: of the chunk in bytes.
        levels: maximum repetition and definition level of the column.

    Raises:
        DataError: a page is damaged or not PLAIN; the message names no file.
    """
    place, end = start, start + size
    while place < end:
        header, body, skipped = _page(read(place, min(_HEADER_BYTES, end - place)))
        place += header
        at, place = place, place + body
        if body < 0 or place > end:
            raise DataError("a page reaches past the end of its column")
        if skipped is None:  # version 1: each kind of levels starts with its length
            for level in levels:
                if level:
                    length = read(at, 4)
                    at += 4 + (_LENGTH.unpack(length)[0] if len(length) == 4 else body)
        else:
            at += skipped
        if at > place:
            raise DataError("a page is damaged: its levels reach past its end")
        yield at, place


def _page(header: bytes | memoryview) -> tuple[int, int, int | None]:
    """Sizes of the header, of the body, and of the levels in the body (None where the levels have their own length).

    Field numbers are those of parquet.thrift's PageHeader, DataPageHeader and DataPageHeaderV2.
    """
    try:
        fields, size = _struct(header, 0)
        kind, body = fields[1], fields[3]
        if kind == _DATA_PAGE and fields[5][2] == _PLAIN:
            return size, body, None
        if kind == _DATA_PAGE_V2 and fields[8][4] == _PLAIN:
            return size, body, fields[8][5] + fields[8][6]
    except (CorruptError, IndexError, KeyError, TypeError, ValueError, RecursionError):
        raise DataError("a page header is damaged") from None
    raise DataError("its values are not PLAIN-encoded")


def _struct(data: bytes | memoryview, place: int) -> tuple[dict[int, Any], int]:
    """Parse a Thrift struct: field number -> bool, int or struct; other types (in no page header) raise ValueError.

    Binary fields, which only statistics have, are skipped.
    """
    fields: dict[int, Any] = {}
    number = 0
    while (byte := data[place]) != 0:
        place += 1
        delta, kind = byte >> 4, byte & 15
        if delta:
            number += delta
        else:
            value, place = read_varint(data, place)
            number = (value >> 1) ^ -(value & 1)
        if kind in (1, 2):  # true, false
            fields[number] = kind == 1
        elif kind in (4, 5, 6):  # i16, i32, i64, as zigzag varints
            value, place = read_varint(data, place)
            fields[number] = (value >> 1) ^ -(value & 1)
        elif kind == 8:
            length, place = read_varint(data, place)
            place += length
        elif kind == 12:
            fields[number], place = _struct(data, place)
        else:
            raise ValueError(f"Thrift type {kind}")
    return fields, place + 1
