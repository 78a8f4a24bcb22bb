"""One interface to local folders, gs:// and s3://, on pyarrow.fs.

A `Folder` is a picklable name; its file system is opened once per process. Files are written to a temporary name and
renamed, so that a file that exists is complete.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from oxe_curate.atomic import atomic_file, atomic_files, flush_all, is_internal, make_folders, sweep
from oxe_curate.errors import StorageError
from oxe_curate.storage.attempts import attempt
from oxe_curate.storage.explain import explained
from oxe_curate.storage.objects import StoredObject, as_arrow, write_object
from oxe_curate.storage.options import StoreOptions
from oxe_curate.storage.systems import file_system

_WHOLE = 4 << 20  # bytes: a smaller object is read by one request
_PAGES = 20  # a listing has as much time as this many requests


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file in a listing.

    Attributes:
        name: relative to the listed folder.
        size: in bytes.
        mtime_ns: nanoseconds since 1970; object stores count whole seconds.
        identity: see `Folder.identity`; of an object, as much as the listing has: size and time.
    """

    name: str
    size: int
    mtime_ns: int
    identity: str


@dataclass(frozen=True)
class Folder:
    """A local folder or an object-store prefix (`gs://bucket/prefix`, `s3://bucket/prefix`).

    All methods take paths relative to the folder, with "/" between parts. Failures raise StorageError.
    """

    uri: str

    @classmethod
    def of(cls, uri: str | Path) -> Folder:
        """Name a folder; local paths are made absolute, so that workers with another working directory agree."""
        text = os.fspath(uri)
        if text.startswith("file://"):
            text = text.removeprefix("file://")
        scheme, found, rest = text.partition("://")
        if found:
            return cls(f"{scheme}://{rest.rstrip('/')}")
        return cls(str(Path(text).expanduser().absolute()))

    def __str__(self) -> str:
        return self.uri

    @property
    def is_local(self) -> bool:
        """Whether it is on a file system of this machine."""
        return "://" not in self.uri

    def sub(self, relative: str) -> Folder:
        """A subfolder."""
        return Folder(f"{self.uri}/{relative}") if relative else self

    def path(self, relative: str = "") -> Path:
        """The path of a file in a local folder."""
        return Path(self.uri, relative)

    def _full(self, relative: str, listing: bool = False) -> tuple[Any, str]:
        system, base = file_system(self.uri, StoreOptions.current(), listing)
        return system, f"{base}/{relative}".rstrip("/") if relative else base

    def _name(self, relative: str) -> str:
        return f"{self.uri}/{relative}".rstrip("/")

    def exists(self, relative: str = "") -> bool:
        """Whether a file or folder of this name exists."""
        return bool(self._info(relative).type != fs.FileType.NotFound)

    def size(self, relative: str) -> int:
        """Size of a file in bytes; StorageError if it is missing."""
        info = self._info(relative)
        if info.type != fs.FileType.File:
            raise StorageError(f"{self.uri}/{relative}: file not found")
        return int(info.size)

    def modified(self, relative: str) -> float:
        """When a file was last written, in seconds by the clock of the storage; StorageError if it is missing."""
        info = self._info(relative)
        if info.type != fs.FileType.File:
            raise StorageError(f"{self.uri}/{relative}: file not found")
        return self.path(relative).stat().st_mtime if self.is_local else float(info.mtime.timestamp())

    def _info(self, relative: str) -> Any:
        if self.is_local:  # without opening a file system
            path = self.path(relative)
            kind = fs.FileType.Directory if path.is_dir() else fs.FileType.File if path.exists() else None
            return fs.FileInfo(
                str(path),
                kind or fs.FileType.NotFound,
                size=path.stat().st_size if kind == fs.FileType.File else None,
            )
        system, full = self._full(relative)
        return attempt(self._name(relative), lambda: system.get_file_info(full))

    def list(self, relative: str = "", recursive: bool = False) -> Iterator[tuple[str, bool, int]]:
        """Yield (path relative to this folder, is a folder, size) below `relative`, sorted by path.

        Temporary files and locks are left out.
        """
        _, base = self._full("")
        infos = sorted(self._list(relative, recursive), key=lambda info: str(info.path))
        for info in infos:
            name = info.path[len(base) :].lstrip("/")
            if _is_internal(name):
                continue
            yield name, info.type == fs.FileType.Directory, int(info.size or 0)

    def _list(self, relative: str, recursive: bool) -> Any:
        system, full = self._full(relative, listing=True)
        selector = fs.FileSelector(full, allow_not_found=True, recursive=recursive)
        if self.is_local:
            with explained(self._name(relative)):
                return system.get_file_info(selector)
        return attempt(self._name(relative), lambda: system.get_file_info(selector), patience=_PAGES)

    def list_files(self, relative: str = "") -> Sequence[StoredFile]:
        """All files below `relative`, at any depth, sorted by name; [] if there are none.

        An object store needs one request per 1,000 files. Folders, objects that only mark one, temporary files and
        locks are left out.
        """
        if self.is_local:
            with explained(self._name(relative)):
                walked = _walk(self.path(relative), f"{relative}/" if relative else "")
                return sorted((file for file in walked if not _is_internal(file.name)), key=lambda f: f.name)
        _, base = self._full("")
        infos = self._list(relative, recursive=True)
        found = []
        for info in infos:
            if info.type == fs.FileType.File:
                seconds = info.mtime_ns // 10**9 if info.mtime_ns is not None else 0
                size, name = int(info.size), info.path[len(base) :].lstrip("/")
                if not _is_internal(name):
                    found.append(StoredFile(name, size, seconds * 10**9, f"{size}:{seconds}"))
        return sorted(found, key=lambda file: file.name)

    def identity(self, relative: str) -> str:
        """What tells whether a file is still the one that was read before; one request, no content is read.

        Equal strings mean the same file, unless somebody set its times back on purpose.

        Returns:
            Of a local file: size, mtime, ctime (ns) and inode. Of an object: size, time (s) and its ETag (s3://) or
            generation (gs://); it begins with the `identity` of the object in `list_files`.
        """
        if self.is_local:
            with explained(self._name(relative)):
                return status_identity(self.path(relative).stat())
        return self.open_object(relative).identity()

    def read_bytes(self, relative: str, offset: int = 0, length: int | None = None) -> bytes:
        """Read a file, or `length` bytes of it from `offset`."""
        if self.is_local:
            with explained(self._name(relative)), self.path(relative).open("rb") as file:
                file.seek(offset)
                return file.read() if length is None else file.read(length)
        opened = self.open_object(relative)
        return bytes(opened.read_at(opened.size() if length is None else length, offset))

    def open(self, relative: str) -> Any:
        """Open a file for random reading (a pyarrow NativeFile); an object's reads are repeated if they fail."""
        if not self.is_local:
            opened = self.open_object(relative)
            return pa.BufferReader(opened.read_at(opened.size(), 0)) if opened.size() <= _WHOLE else as_arrow(opened)
        with explained(self._name(relative)):
            return pa.OSFile(str(self.path(relative)), "rb")

    def open_object(self, relative: str) -> StoredObject:
        """Open an object of a store; one request."""
        system, full = self._full(relative)
        return StoredObject(self._name(relative), system, full)

    def publish(self, relative: str, write: Callable[[Any], None], sync: bool = True) -> None:
        """Write a file with `write(sink)`; it appears complete or not at all.

        Without `sync` a power cut may damage it until `sync_files` has been called.
        """
        name = self._name(relative)
        if not self.is_local:
            # in memory first: an interrupted upload must not leave a partial object, and a failed one is repeated
            buffer = pa.BufferOutputStream()
            write(buffer)
            system, full = self._full(relative)
            write_object(name, system, full, buffer.getvalue())
            return
        target = self.path(relative)
        with explained(name):
            make_folders(target.parent)
            # 20 % faster than a Python file for Parquet
            with atomic_file(target, sync) as temporary, pa.OSFile(str(temporary), "wb") as sink:
                write(sink)

    def publish_bytes(self, relative: str, data: bytes, sync: bool = True) -> None:
        """Write a small file, complete or not at all; see `publish`."""
        self.publish(relative, lambda sink: sink.write(data), sync)

    def publish_many(self, files: Mapping[str, bytes]) -> None:
        """Write several small files, each complete or not at all; on a disk this is much faster than one by one."""
        if not self.is_local:
            for relative, data in files.items():
                self.publish_bytes(relative, data)
            return
        targets = [self.path(relative) for relative in files]
        with explained(self.uri):
            for folder in {target.parent for target in targets}:
                make_folders(folder)
            with atomic_files(targets) as temporary:
                for path, data in zip(temporary, files.values(), strict=True):
                    path.write_bytes(data)

    def sync_files(self, relative: Iterable[str]) -> None:
        """Bring files that were published without `sync` to the disk."""
        if self.is_local:
            paths = [self.path(name) for name in relative]
            with explained(self.uri):
                flush_all([*paths, *{path.parent for path in paths}])

    def remove(self, relative: str) -> None:
        """Remove a file if it exists."""
        if self.is_local:
            with explained(self._name(relative)):
                self.path(relative).unlink(missing_ok=True)
            return
        system, full = self._full(relative)

        def delete() -> None:
            with contextlib.suppress(FileNotFoundError):  # also after a try that failed after it had deleted the object
                system.delete_file(full)

        attempt(self._name(relative), delete)

    def sweep(self) -> None:
        """Remove temporary files of killed runs below this folder; those of living processes are kept."""
        if self.is_local:
            with explained(self.uri):
                sweep(self.path(), recursive=True)

    def check_writable(self) -> None:
        """Raise StorageError at once if the folder cannot be written."""
        try:
            self.publish_bytes(".oxe-write-check", b"ok", sync=False)
            self.remove(".oxe-write-check")
        except StorageError as error:
            reason = str(error).rpartition(": ")[2]
            raise StorageError(f"{self}: cannot write: {reason}") from error


def _is_internal(name: str) -> bool:
    return any(map(is_internal, name.split("/")))


def _walk(folder: Path, prefix: str) -> Iterator[StoredFile]:
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.is_dir():
            yield from _walk(Path(entry.path), f"{prefix}{entry.name}/")
        elif entry.is_file():
            status = entry.stat()
            yield StoredFile(prefix + entry.name, status.st_size, status.st_mtime_ns, status_identity(status))


def status_identity(status: os.stat_result) -> str:
    """The `Folder.identity` of a local file."""
    return f"{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}:{status.st_ino}"
