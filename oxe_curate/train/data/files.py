"""Local files that threads read at random offsets."""

from __future__ import annotations

import os
import resource
import weakref

from oxe_curate.errors import StorageError
from oxe_curate.storage import explain

_ADVISE = hasattr(os, "posix_fadvise")


def open_file_limit(most: int) -> int:
    """How many files a cache may keep open: `most`, or half of what the system allows this process."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most if soft == resource.RLIM_INFINITY else max(min(most, soft // 2), 1)


class LocalFile:
    """An open file. The descriptor is closed with the last reference, so no thread reads a reused descriptor.

    Raises:
        StorageError: it cannot be opened.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        try:
            self._descriptor = os.open(name, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise StorageError(f"{name}: {explain(error)}") from error
        weakref.finalize(self, os.close, self._descriptor)
        if _ADVISE:
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_RANDOM)

    def advise(self, start: int, size: int) -> None:
        """Ask the system to read a part ahead."""
        if _ADVISE:
            os.posix_fadvise(self._descriptor, start, size, os.POSIX_FADV_WILLNEED)

    def read(self, offset: int, length: int) -> bytes:
        """Read a part of the file; shorter at the end of the file. Raises StorageError."""
        try:
            return os.pread(self._descriptor, length, offset)
        except OSError as error:
            raise StorageError(f"{self.name}: {explain(error)}") from error

    def status(self) -> os.stat_result:
        """What the system says of the open file now."""
        return os.fstat(self._descriptor)
