"""The numbers of some rows of index files, read by byte range: an output shard needs few rows of each file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from oxe_curate.errors import StorageError
from oxe_curate.storage import Folder, explain

_GAP = 512  # bytes: closer ranges are read together
_REQUESTS = 16  # in flight, to an object store

Ranges = Sequence[tuple[int, int]]
"""(offset, length) of parts of a file."""


def read_ranges(folder: Folder, wanted: Sequence[tuple[str, Ranges]]) -> list[list[bytes]]:
    """Read parts of some files.

    Args:
        folder: of the files.
        wanted: (path, its parts) of each file.

    Returns:
        The bytes of each part, file by file; fewer than asked for where a file ends before.

    Raises:
        StorageError: a file cannot be read.
    """
    if folder.is_local:
        return [_read_local(folder, path, parts) for path, parts in wanted]
    jobs = [(path, start, stop) for path, parts in wanted for start, stop in _runs(parts)]
    with ThreadPoolExecutor(_REQUESTS, thread_name_prefix="oxe-index") as pool:
        read = iter(list(pool.map(lambda job: folder.read_bytes(job[0], job[1], job[2] - job[1]), jobs)))
    return [_cut(parts, lambda _start, _length: next(read)) for _, parts in wanted]


def _read_local(folder: Folder, path: str, parts: Ranges) -> list[bytes]:
    name = folder.path(path)
    try:
        descriptor = os.open(name, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        try:
            return _cut(parts, lambda start, length: os.pread(descriptor, length, start))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StorageError(f"{name}: {explain(error)}") from error


def _runs(parts: Ranges) -> Iterable[tuple[int, int]]:
    """(start, stop) of the pieces to read, ascending."""
    start = stop = -1
    for offset, length in sorted(parts):
        if start >= 0 and offset - stop > _GAP:
            yield start, stop
            start = -1
        if start < 0:
            start, stop = offset, offset
        stop = max(stop, offset + length)
    if start >= 0:
        yield start, stop


def _cut(parts: Ranges, read: Callable[[int, int], bytes]) -> list[bytes]:
    """Read the pieces and cut the parts out of them."""
    found: list[bytes] = [b""] * len(parts)
    ascending = sorted(range(len(parts)), key=lambda i: parts[i])
    at = 0
    for start, stop in _runs(parts):
        data = read(start, stop - start)
        while at < len(ascending) and parts[ascending[at]][0] + parts[ascending[at]][1] <= stop:
            offset, length = parts[ascending[at]]
            found[ascending[at]] = data[offset - start : offset - start + length]
            at += 1
    return found
