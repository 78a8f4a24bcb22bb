"""Files and folders that appear complete or not at all: written under a temporary name, synced, renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = ".oxe-tmp-"
"""Prefix of unfinished files and folders; `sweep` removes those of a killed run."""


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path next to `target`, to be written; it replaces `target` unless the block fails."""
    temporary = target.with_name(f"{TEMPORARY}{os.getpid()}-{target.name}")
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a new temporary folder next to `target`; it replaces `target` unless the block fails.

    Everything is synced to the disk first, so that what is there after a power cut is complete.
    """
    temporary = target.with_name(f"{TEMPORARY}{os.getpid()}-{target.name}")
    remove(temporary)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        flush(temporary)
        remove(target)
        temporary.rename(target)
        flush(target.parent, recursive=False)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def flush(path: Path, recursive: bool = True) -> None:
    """Sync a file or folder to the disk, so that a rename after this survives a power cut."""
    for inner in path.rglob("*") if recursive and path.is_dir() else ():
        _sync(inner)
    _sync(path)


def remove(path: Path) -> None:
    """Remove a file or folder; a folder is renamed first, so that half of one is never taken for the whole."""
    if not path.exists():
        return
    if path.is_file():
        path.unlink()
        return
    if not path.name.startswith(TEMPORARY):
        path = path.rename(path.with_name(f"{TEMPORARY}old-{path.name}"))
    shutil.rmtree(path)


def sweep(folder: Path) -> None:
    """Remove temporary files and folders that a killed run left directly in a folder."""
    for stray in folder.glob(f"{TEMPORARY}*"):
        remove(stray)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
