"""Offsets of the values of a PLAIN, uncompressed binary column in a Parquet file, found from the page headers.

A trainer can then read any image by offset and length, in any order, without decoding its row group. A value is its
length (uint32) and its bytes.
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from oxe_curate.errors import DataError
from oxe_curate.index.pages import ReadBytes, plain_pages

_LENGTH = struct.Struct("<I")


def image_offsets(
    read: ReadBytes, start: int, size: int, values: int, levels: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find every value of a column chunk.

    Args:
        read: reads a part of the file.
        start: offset of the first page of the chunk.
        size: of the chunk in bytes.
        values: number of values, without nulls.
        levels: maximum repetition and definition level of the column.

    Returns:
        int64 (values,): offset of each value's bytes in the file, and their lengths.

    Raises:
        DataError: the pages have another number of values, are damaged or not PLAIN; the message names no file.
    """
    offsets: list[int] = []
    lengths: list[int] = []
    for at, stop in plain_pages(read, start, size, levels):
        while at + 4 <= stop:
            found = read(at, 4)
            if len(found) != 4:
                raise DataError("the file ends inside a page")
            (length,) = _LENGTH.unpack(found)
            offsets.append(at + 4)
            lengths.append(length)
            at += 4 + length
        if at != stop:
            raise DataError("a page is damaged: the sizes of its images do not add up")
    if len(offsets) != values:
        raise DataError(f"expected {values} images in its pages, got {len(offsets)}")
    return np.array(offsets, np.int64), np.array(lengths, np.int64)
