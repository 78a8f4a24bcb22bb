"""A Parquet file's checksum of itself, in its own footer: it covers every byte, page headers and the footer included.

Page checksums cover the pages' bodies only. The checksum is a CRC32C of the file with zeros in place of the checksum.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import crc32c

from oxe_curate.errors import DataError
from oxe_curate.storage import Folder

CHECKSUM_KEY = b"oxe_curate_crc32c"
PLACEHOLDER = b"00000000"
"""Eight hexadecimal digits, written first as the value of `CHECKSUM_KEY` in the file's metadata."""

_BEFORE = CHECKSUM_KEY + b"\x18\x08"  # Thrift's compact protocol: field 2, a string of 8 bytes
_TAIL = 64 << 10
_PIECE = 4 << 20
_CACHED = 256 << 10  # bytes that stay in the processor's cache while they are summed, hashed and written


@dataclass(frozen=True, slots=True)
class FileHashes:
    """What identifies a file.

    Attributes:
        size: in bytes.
        footer_sha256: of the footer, its length and the magic number.
        sha256: of the whole file; "" if only the footer was read.
        identity: `Folder.identity` of a file that was hashed while it was written; "" of one that was read.
    """

    size: int
    footer_sha256: str
    sha256: str = ""
    identity: str = field(default="", compare=False)


class ChecksumSink:
    """A file to write Parquet to, which fills in the checksum at the end and hashes what it writes.

    Args:
        sink: takes the bytes, with `write`.
    """

    closed = False

    def __init__(self, sink: Any) -> None:
        self._sink, self._crc, self._size, self._digest = sink, 0, 0, hashlib.sha256()
        self._tail: io.BytesIO | None = None

    def write(self, data: Any) -> int:
        """Pass on some bytes."""
        if self._tail is not None:
            return self._tail.write(data)
        view = memoryview(data)
        for start in range(0, len(view), _CACHED):
            piece = view[start : start + _CACHED]
            self._crc = crc32c.crc32c(piece, self._crc)
            self._pass_on(piece)
        return len(view)

    def _pass_on(self, data: Any) -> None:
        self._digest.update(data)
        self._sink.write(data)
        self._size += len(data)

    def begin_footer(self) -> None:
        """To be called after the last row group, before the writer is closed."""
        self._tail = io.BytesIO()

    def finish(self) -> FileHashes:
        """To be called after the writer was closed: write the footer with the checksum; return the file's hashes."""
        assert self._tail is not None
        tail = self._tail.getvalue()
        place = _place(tail)
        assert place is not None
        value = b"%08x" % crc32c.crc32c(tail, self._crc)
        tail = tail[:place] + value + tail[place + len(value) :]
        self._pass_on(tail)
        return FileHashes(self._size, hashlib.sha256(_footer(tail)).hexdigest(), self._digest.hexdigest())

    def flush(self) -> None:
        """Nothing: the sink is flushed by its owner."""

    def close(self) -> None:
        """Nothing: the sink is closed by its owner."""


def _footer(end: bytes) -> bytes:
    """The footer, its length and the magic number, of the end of a file that has all of it."""
    return end[-(int.from_bytes(end[-8:-4], "little") + 8) :]


def _place(tail: bytes) -> int | None:
    """Where the checksum's digits are in the end of a file."""
    at = tail.rfind(_BEFORE)
    return None if at < 0 else at + len(_BEFORE)


def hash_file(out: Folder, path: str, whole: bool = True) -> FileHashes:
    """Hash a Parquet file that was written through `ChecksumSink`, and compare it with its checksum if `whole`.

    Raises:
        DataError: the file is damaged, or has no checksum. StorageError: it cannot be read.
    """
    size = out.size(path)
    footer = read_tail(out, path, size)
    footer_sha256 = hashlib.sha256(footer).hexdigest()
    place = _place(footer)
    if place is None:
        raise DataError(f"{out}/{path}: has no checksum")
    if not whole:
        return FileHashes(size, footer_sha256)
    recorded, start = footer[place : place + len(PLACEHOLDER)], size - len(footer)
    digest, crc, read = hashlib.sha256(), 0, 0
    for piece in _pieces(out, path, size):
        digest.update(piece)
        read += len(piece)
        if read > start + place:  # the piece has a part of the checksum
            piece = _blank(piece, start + place - (read - len(piece)))
        crc = crc32c.crc32c(piece, crc)
    if read != size or b"%08x" % crc != recorded:
        raise DataError(f"{out}/{path}: damaged (its checksum does not match)")
    return FileHashes(size, footer_sha256, digest.hexdigest())


def read_tail(out: Folder, path: str, size: int) -> bytes:
    """The footer of a Parquet file of `size` bytes, its length and the magic number. Raises DataError, StorageError."""
    tail = out.read_bytes(path, max(size - _TAIL, 0), min(size, _TAIL))
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if size < 12 or tail[-4:] != b"PAR1" or length > size - 4:
        raise DataError(f"{out}/{path}: damaged (its end is not that of a Parquet file)")
    return tail[-length:] if length <= len(tail) else out.read_bytes(path, size - length, length)


def _pieces(out: Folder, path: str, size: int) -> Iterator[bytes]:
    if not out.is_local:
        for start in range(0, size, _PIECE):
            yield out.read_bytes(path, start, min(_PIECE, size - start))
        return
    with out.path(path).open("rb", buffering=0) as file:
        while piece := file.read(_PIECE):
            yield piece


def _blank(piece: bytes, at: int) -> bytes:
    """The piece with the placeholder from `at` on, which may begin or end outside it."""
    first, last = max(at, 0), min(at + len(PLACEHOLDER), len(piece))
    return piece if last <= first else piece[:first] + PLACEHOLDER[: last - first] + piece[last:]
