"""Files and folders that appear complete or not at all: written under a temporary name, synced, renamed.

A temporary name says which process on which machine writes it: several may write into one folder, and `sweep` removes
only what no living process is writing.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from oxe_curate.process import labelled, process_label

TEMPORARY = ".oxe-tmp-"
"""Prefix of unfinished files and folders."""
LOCK = ".oxe-lock"
"""File in an output folder that a command holds while it writes there; its name may continue."""
_KEPT = f"{TEMPORARY}kept-"  # folders that hold what is being replaced, under its own name
_PART = ".part"
_NAME_BYTES = 255
_SYNCS = 8  # at once
_FOREIGN_SECONDS = 3600.0  # without a change: how old a temporary file of another machine must be to be removed
_NO_SYNC = {errno.EINVAL, errno.EBADF, errno.EACCES, errno.EPERM, errno.ENOTSUP, errno.EISDIR}


def is_internal(name: str) -> bool:
    """Whether a file or folder of this name is temporary or a lock, and never data."""
    return name.startswith((TEMPORARY, LOCK))


@contextmanager
def atomic_file(target: Path, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary path next to `target`, to be written; it replaces `target` unless the block fails.

    The file is synced to the disk before it gets its name, and the name after that; without `sync` neither, so that
    after a power cut the file may be missing or damaged.
    """
    temporary = temporary_path(target)
    try:
        yield temporary
        if sync:
            flush(temporary)
        temporary.replace(target)
        if sync:
            flush(target.parent, recursive=False)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_files(targets: Sequence[Path]) -> Iterator[list[Path]]:
    """`atomic_file` of many: all are synced at once, which takes hardly longer than one, before any gets its name."""
    temporary = [temporary_path(target) for target in targets]
    try:
        yield temporary
        flush_all(temporary)
        for path, target in zip(temporary, targets, strict=True):
            path.replace(target)
        flush_all({target.parent for target in targets})
    finally:
        for path in temporary:
            path.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a new temporary folder next to `target`; it replaces `target` unless the block fails.

    Everything is synced to the disk first, so that what is there after a power cut is complete.
    """
    make_folders(target.parent)
    recover(target.parent)
    temporary = temporary_path(target)
    temporary.mkdir()
    try:
        yield temporary
        flush(temporary)
        replace_folder(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def temporary_path(target: Path, prefix: str = TEMPORARY) -> Path:
    """A name next to `target` that no other process, thread or machine uses, and no pattern like *.parquet matches."""
    label = f"{prefix}{process_label()}-{os.urandom(4).hex()}-".encode()
    name = (label + os.fsencode(target.name))[: _NAME_BYTES - len(_PART)]
    return target.with_name(name.decode(errors="ignore") + _PART)


def replace_folder(new: Path, target: Path) -> None:
    """Rename a finished folder to `target`. What was there is removed after that; a crash never loses both."""
    if not target.exists():
        new.rename(target)
        flush(target.parent, recursive=False)
        return
    kept = temporary_path(target, _KEPT)
    kept.mkdir()
    try:
        target.rename(kept / target.name)
        new.rename(target)
        flush(target.parent, recursive=False)
    finally:
        _put_back(kept)
        shutil.rmtree(kept, ignore_errors=True)


def recover(folder: Path) -> None:
    """Give back their names to folders directly in `folder` that a killed `replace_folder` had moved away."""
    for kept in folder.glob(f"{_KEPT}*"):
        if _is_abandoned(kept):
            _put_back(kept)


def _put_back(kept: Path) -> None:
    """Give the old folder its name again if there is no new one; otherwise mark it as worthless."""
    for old in kept.iterdir():
        if not old.name.startswith(TEMPORARY):
            name = kept.parent / old.name
            old.rename(old.with_name(f"{TEMPORARY}old") if name.exists() else name)


def flush(path: Path, recursive: bool = True) -> None:
    """Sync a file or folder to the disk, so that a rename after this survives a power cut."""
    for inner in path.rglob("*") if recursive and path.is_dir() else ():
        _sync(inner)
    _sync(path)


def flush_all(paths: Iterable[Path]) -> None:
    """Sync files and folders, without what is in them, at once: the disk writes its journal once for many."""
    listed = list(paths)
    with ThreadPoolExecutor(min(len(listed), _SYNCS) or 1) as pool:
        list(pool.map(_sync, listed))


def make_folders(path: Path) -> None:
    """Create a folder and its missing parents, and sync their names to the disk."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        flush(folder.parent, recursive=False)


def remove(path: Path) -> None:
    """Remove a file or folder; a folder is renamed first, so that half of one is never taken for the whole."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    if not path.name.startswith(TEMPORARY):
        path = path.rename(temporary_path(path))
    shutil.rmtree(path)


def sweep(folder: Path, recursive: bool = False) -> None:
    """Remove temporary files and folders that killed processes left in a folder, and finish what they replaced.

    Those of a living process of this machine are kept, and those of another machine while they are younger than an
    hour.
    """
    for where, folders, files in os.walk(folder):
        recover(Path(where))
        for name in [name for name in (*folders, *files) if name.startswith(TEMPORARY)]:
            if _is_abandoned(Path(where, name)):
                remove(Path(where, name))
        folders[:] = [name for name in folders if recursive and not name.startswith(TEMPORARY)]


def _is_abandoned(stray: Path) -> bool:
    process = labelled(stray.name.removeprefix(_KEPT).removeprefix(TEMPORARY))
    if process is None:
        return True  # of an earlier version
    runs = process.runs()
    if runs is not None:
        return not runs
    try:
        changed = max(path.stat().st_mtime for path in (stray, *stray.rglob("*")))
    except OSError:
        return False  # it is being changed
    return time.time() - changed > _FOREIGN_SECONDS


def _sync(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        return  # such as a folder that may be written but not read
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)
