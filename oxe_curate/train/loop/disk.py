"""Errors of the disk as StorageError."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from oxe_curate.errors import StorageError
from oxe_curate.storage import explain


@contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """Raise what the system refuses inside as a StorageError about `where`."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        raise storage_error(where, error) or error from error


def storage_error(where: Path, error: BaseException) -> StorageError | None:
    """The StorageError for a failed write, also where torch or safetensors wrapped the system's error."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno:
            return StorageError(f"{where}: {explain(seen)}")
        if match := re.search(r"os error (\d+)", str(seen)):
            return StorageError(f"{where}: {explain(OSError(int(match[1]), os.strerror(int(match[1]))))}")
        seen = seen.__cause__ or seen.__context__
    if isinstance(error, RuntimeError) and re.search(r"PytorchStreamWriter|unexpected pos|write", str(error)):
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        known = shutil.disk_usage(where.parent).free < 1 << 24
        return StorageError(f"{where}: {explain(full) if known else f'cannot be written: {error}'}")
    return None
