"""Re-encoded frames in an unnamed temporary file, so that memory does not grow with the output shard."""

from __future__ import annotations

import os
import tempfile
import weakref
from pathlib import Path

from oxe_curate.errors import StorageError
from oxe_curate.storage import explain

_BUFFER = 1 << 20


class Spool:
    """Bytes that are appended once and read in any order.

    Args:
        folder: local folder for the file, which has no name; None: the system's.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._where = str(folder or tempfile.gettempdir())
        try:
            self._file = tempfile.TemporaryFile(dir=folder, buffering=_BUFFER)  # noqa: SIM115 (closed with the spool)
        except OSError as error:
            raise self._failure(error) from error
        weakref.finalize(self, self._file.close)
        self._size = 0

    def add(self, data: bytes) -> int:
        """Append some bytes; return their offset. Raises StorageError, such as for a full disk."""
        try:
            self._file.write(data)
        except OSError as error:
            raise self._failure(error) from error
        self._size += len(data)
        return self._size - len(data)

    def read(self, offset: int, length: int) -> memoryview:
        """Bytes that were added."""
        view = memoryview(bytearray(length))
        self.read_into(offset, view)
        return view

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view` with the bytes from `offset` on."""
        try:
            self._file.flush()
            while view and (count := os.preadv(self._file.fileno(), [view], offset)):
                view, offset = view[count:], offset + count
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> StorageError:
        return StorageError(f"{self._where}: temporary file for re-encoded frames: {explain(error)}")
