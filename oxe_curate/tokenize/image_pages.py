"""Pages of images put into the file that pyarrow writes, without copying the images through pyarrow.

pyarrow writes the row groups with empty images. Of each page of images, the header and the levels are kept, the empty
values are replaced by the images, and the footer's positions and sizes are moved accordingly. The file is the same,
byte for byte, as if pyarrow had written all of it; that took as long as everything else together.

Field numbers are those of parquet.thrift.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from oxe_curate.tokenize.thrift import I64, ThriftStruct, read_struct, write_struct

_DICTIONARY_PAGE, _PLAIN = 2, 0
_LENGTH = 4  # bytes before each value
_TAIL = 8  # length of the footer, and the magic number


class Sink(Protocol):
    """Takes the bytes of a file."""

    def write(self, data: Any) -> Any:
        """Append some bytes."""


@dataclass(frozen=True, eq=False)
class ImagePage:
    """The images of a row group's column.

    Attributes:
        values: uint8 (b,), as Parquet's PLAIN encoding has them: each after its length, a uint32.
        present: number of images.
        levels: the same, with those that are null.
    """

    values: NDArray[np.uint8]
    present: int
    levels: int


class ImagePages:
    """A file for pyarrow to write to, into which pages of images are put.

    Args:
        sink: takes the bytes of the finished file.
        leaves: the dotted paths of the file's leaf columns, in order.
    """

    closed = False

    def __init__(self, sink: Sink, leaves: Sequence[str]) -> None:
        self._sink, self._leaves = sink, leaves
        self._held = bytearray()
        self._position = 0  # in the file as pyarrow knows it, of what is held
        self._inserted: list[tuple[int, int, int]] = []  # start of a page, bytes more than pyarrow knows, of images

    def write(self, data: bytes) -> int:
        """Keep some bytes until their row group, or the footer, is complete."""
        self._held += data
        return len(data)

    def flush(self) -> None:
        """Nothing: the sink is flushed by its owner."""

    def close(self) -> None:
        """Nothing: the sink is closed by its owner."""

    def end_row_group(self, rows: int, pages: Mapping[str, ImagePage]) -> None:
        """To be called after pyarrow wrote a row group, with empty images.

        Args:
            rows: of the row group.
            pages: leaf column -> its images. Columns before the last of them are flat, or `path` next to `bytes`.
        """
        held, place = bytes(self._held), 0
        if not self._position:
            self._sink.write(held[:4])  # the magic number
            place = 4
        todo = len(pages) if rows else 0
        for leaf in self._leaves if todo else ():
            page = pages.get(leaf)
            image = page or pages.get(f"{leaf.removesuffix('path')}bytes")
            left = image.levels if image else rows
            while left:
                header, body = read_struct(held, place)
                end = body + header[3][1]
                if header[1][1] != _DICTIONARY_PAGE:
                    left -= header[5][1][1][1]
                if page:
                    self._insert(page, header, held[body:end], self._position + place, body - place)
                    todo -= 1
                else:
                    self._sink.write(held[place:end])
                place = end
            if not todo:
                break
        self._sink.write(held[place:])
        self._position += len(held)
        self._held.clear()

    def _insert(self, page: ImagePage, header: ThriftStruct, body: bytes, start: int, header_size: int) -> None:
        values, empty = page.values, _LENGTH * page.present
        levels = body[: len(body) - empty]
        assert header[5][1][2][1] == _PLAIN
        assert not any(body[len(levels) :])
        size = len(levels) + len(values)
        header[2][1] = header[3][1] = size
        if 4 in header:
            crc = zlib.crc32(values.data, zlib.crc32(levels))
            header[4][1] = crc - (1 << 32) if crc >> 31 else crc
        written = write_struct(header)
        self._sink.write(written + levels)
        self._sink.write(values.data)
        more = len(written) + size - header_size - len(body)
        self._inserted.append((start, more, len(values) - empty))

    def finish(self) -> None:
        """To be called after the writer was closed: write the footer, moved if images were put in."""
        held = bytes(self._held)
        if not self._inserted:
            self._sink.write(held)
            return
        footer, end = read_struct(held)
        assert end == len(held) - _TAIL
        starts = np.array([start for start, *_ in self._inserted], np.int64)
        added = np.concatenate(([0], np.cumsum([more for _, more, _ in self._inserted], dtype=np.int64)))
        pages = {start: (more, images) for start, more, images in self._inserted}
        for group in footer[4][1][1]:
            total = 0
            for chunk in group[1][1][1]:
                total += _move(chunk, starts, added, pages)
            for number in (2, 6):  # total_byte_size, total_compressed_size
                if number in group:
                    group[number][1] += total
            _shift(group, 5, starts, added)
        written = write_struct(footer)
        self._sink.write(written + len(written).to_bytes(4, "little") + held[-4:])


def _move(
    chunk: ThriftStruct,
    starts: NDArray[np.int64],
    added: NDArray[np.int64],
    pages: Mapping[int, tuple[int, int]],
) -> int:
    """Correct a ColumnChunk; return how many bytes it has more than pyarrow knows."""
    meta: ThriftStruct = chunk[3][1]
    more, images = pages.get(meta[9][1], (0, 0))
    meta[6][1] += more  # total_uncompressed_size
    meta[7][1] += more
    if images and 16 in meta and 1 in meta[16][1]:  # size_statistics.unencoded_byte_array_data_bytes
        assert meta[16][1][1][0] == I64
        meta[16][1][1][1] += images
    _shift(chunk, 2, starts, added)
    for number in (9, 11):  # data_page_offset, dictionary_page_offset
        _shift(meta, number, starts, added)
    return more


def _shift(fields: ThriftStruct, number: int, starts: NDArray[np.int64], added: NDArray[np.int64]) -> None:
    """Move a position in the file by what was inserted before it."""
    if number in fields and fields[number][1] > 0:
        fields[number][1] += int(added[np.searchsorted(starts, fields[number][1])])
