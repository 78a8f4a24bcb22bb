"""Errors of files and object stores, explained."""

from __future__ import annotations

import errno

from oxe_curate.errors import StorageError


class explained:  # noqa: N801 (reads as a phrase: `with explained(name):`)
    """Turn an OSError in the block into a StorageError that names the file and says what to do."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise StorageError(f"{self.name}: {explain(error)}") from error


def explain(error: OSError) -> str:
    """Explain an operating system error and what to do."""
    advice = {
        errno.ENOSPC: "the disk is full. Free some space and run the same command again; finished work is kept",
        errno.EDQUOT: "disk quota exceeded. Free some space and run the same command again; finished work is kept",
        errno.ENOENT: "file or folder not found",
        errno.EACCES: "permission denied",
        errno.EPERM: "permission denied",
        errno.EROFS: "the file system is read-only",
        errno.ENOTDIR: "a parent of the path is a file, not a folder",
        errno.EISDIR: "is a folder, not a file",
    }
    known = advice.get(error.errno or 0)
    return known or (error.strerror or str(error).splitlines()[0] if str(error) else type(error).__name__)
