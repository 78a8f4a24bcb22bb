"""Objects of a store: open ones, read by range with retries, and whole ones, written."""

from __future__ import annotations

import io
import os
import re
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pyarrow as pa

from oxe_curate.errors import StorageError
from oxe_curate.storage.attempts import attempt
from oxe_curate.storage.link import link
from oxe_curate.storage.transfers import transfer_all


class StoredObject(io.RawIOBase):
    """An open object, read by range. Thread-safe but for `seek` and `read`.

    Args:
        name: for messages.
        system: its pyarrow file system.
        path: inside the file system.
        retries: of opening it, if not as usual.

    Raises:
        StorageError: it cannot be opened.
    """

    def __init__(self, name: str, system: Any, path: str, retries: int | None = None) -> None:
        super().__init__()
        self.name = name
        self._system, self._path = system, path
        self._file, facts = attempt(name, lambda: _opened(system, path), retries=retries)
        self._facts = {key.lower(): value.decode(errors="replace") for key, value in facts.items()}
        self._size = int(self._facts["size"] if "size" in self._facts else self._file.size())
        self._position = 0

    def size(self) -> int:
        """Size in bytes when it was opened."""
        return self._size

    def identity(self) -> str:
        """See `Folder.identity`; no further request."""
        text = self._facts.get("updated") or self._facts.get("last-modified")
        moment = datetime.fromisoformat(text.replace("Z", "+00:00")) if text else None
        seconds = int(moment.timestamp()) if moment else 0
        return f"{self._size}:{seconds}:{self._facts.get('generation') or self._facts.get('etag', '')}"

    def check_unchanged(self, retries: int | None = None) -> None:
        """Raise StorageError if the object was replaced or removed since it was opened; one request."""
        before, now = self.identity(), StoredObject(self.name, self._system, self._path, retries).identity()
        if before != now:
            raise StorageError(
                f"{self.name}: was replaced while being read (size, time and version were {before}, now {now}). "
                "Run the same command again when nothing writes to it"
            )

    def request(self, offset: int, into: memoryview) -> None:
        """Fill `into` with the bytes from `offset` on, by one request, repeated if it fails. The range is in the file.

        Raises:
            StorageError: see `attempt`.
        """
        attempt(self.name, lambda: self._fill(offset, into), size=len(into))

    def _fill(self, offset: int, into: memoryview) -> None:
        """One try. A body that ends early is an error, about which pyarrow's S3 client says nothing."""
        mark, start = os.urandom(1), time.monotonic()
        count = self._receive(offset, into, mark)
        if into[-1:] == mark:  # not written, or one time in 256 written with that very byte: another mark tells
            mark = bytes((mark[0] ^ 1,))
            count = self._receive(offset, into, mark)
            count -= count == len(into) and into[-1:] == mark
        if count != len(into):
            raise OSError(f"the answer ended early, at {count} of {len(into)} bytes")
        link.note(count, time.monotonic() - start)

    def _receive(self, offset: int, into: memoryview, mark: bytes) -> int:
        """Put `mark` where the last byte goes, and read. The count that is returned may be too high."""
        into[-1:] = mark
        try:
            return int(self._file.get_stream(offset, len(into)).readinto(into))
        except OSError as error:  # the client puts the server's explanation where the object's bytes would be
            if code := re.search(rb"<Error>\s*<Code>(\w+)</Code>", into[:512]):
                raise OSError(f"{error} ExceptionName: {code[1].decode()}") from error
            raise

    def read_into(self, ranges: Sequence[tuple[int, memoryview]]) -> None:
        """Fill several (offset, memory), several requests at once; long ones are read in parts."""
        transfer_all([
            (lambda start, stop, at=offset, into=into: self.request(at + start, into[start:stop]), len(into))  # type: ignore[misc]
            for offset, into in ranges
        ])  # fmt: skip

    def read_at(self, length: int, offset: int) -> bytearray:
        """Read a range; shorter at the end of the file."""
        found = bytearray(max(0, min(length, self._size - offset)))
        if found:
            self.read_into([(offset, memoryview(found))])
        return found

    # what pyarrow.PythonFile needs

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """See `io.IOBase.seek`."""
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def tell(self) -> int:
        """The position of `read`."""
        return self._position

    def read(self, length: int = -1) -> bytes:
        """Read from the position on."""
        data = self.read_at(self._size if length is None or length < 0 else length, self._position)
        self._position += len(data)
        return bytes(data)


def _opened(system: Any, path: str) -> tuple[Any, Any]:
    """An open object and its metadata. A gs:// file begins a download of all of it, at the first call of any method."""
    file = system.open_input_file(path)
    try:
        return file, file.metadata() or {}
    except ValueError as error:  # if that download fails, the file only says that it is closed
        system.open_input_stream(path).close()  # fails likewise, and says why
        raise OSError(str(error)) from error


def as_arrow(opened: StoredObject) -> Any:
    """An open object as a pyarrow file, whose reads are repeated if they fail."""
    return pa.PythonFile(opened, mode="r")


def write_object(name: str, system: Any, path: str, data: Any) -> None:
    """Write an object, complete or not at all. Raises StorageError."""

    def write() -> None:
        with system.open_output_stream(path) as sink:
            sink.write(data)

    attempt(name, write, size=len(data))
