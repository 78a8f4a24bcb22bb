"""One interface to local folders, gs:// and s3://, on pyarrow.fs.

A `Folder` is a picklable name; its file system is opened once per process. Files are written to a temporary name and
renamed, so that a file that exists is complete.
"""

from __future__ import annotations

import errno
import functools
import mmap
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from oxe_curate.atomic import atomic_file, is_internal, make_folders, sweep
from oxe_curate.errors import StorageError

_CONNECT = 8.0  # seconds

Buffer = memoryview


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
        if "://" in text:
            return cls(text.rstrip("/"))
        return cls(str(Path(text).expanduser().absolute()))

    def __str__(self) -> str:
        return self.uri

    @property
    def is_local(self) -> bool:
        """Whether files can be mapped into memory."""
        return "://" not in self.uri

    def sub(self, relative: str) -> Folder:
        """A subfolder."""
        return Folder(f"{self.uri}/{relative}") if relative else self

    def path(self, relative: str = "") -> Path:
        """The path of a file in a local folder."""
        return Path(self.uri, relative)

    def _full(self, relative: str) -> tuple[Any, str]:
        file_system, base = _file_system(self.uri)
        return file_system, f"{base}/{relative}".rstrip("/") if relative else base

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
        file_system, full = self._full(relative)
        with _explained(f"{self.uri}/{relative}"):
            return file_system.get_file_info(full)

    def list(self, relative: str = "", recursive: bool = False) -> Iterator[tuple[str, bool, int]]:
        """Yield (path relative to this folder, is a folder, size) below `relative`, sorted by path.

        Temporary files and locks are left out.
        """
        file_system, full = self._full(relative)
        _, base = self._full("")
        with _explained(f"{self.uri}/{relative}"):
            selector = fs.FileSelector(full, allow_not_found=True, recursive=recursive)
            infos = sorted(file_system.get_file_info(selector), key=lambda info: str(info.path))
        for info in infos:
            name = info.path[len(base) :].lstrip("/")
            if any(map(is_internal, name.split("/"))):
                continue
            yield name, info.type == fs.FileType.Directory, int(info.size or 0)

    def read_bytes(self, relative: str, offset: int = 0, length: int | None = None) -> bytes:
        """Read a file, or `length` bytes of it from `offset`."""
        with _explained(f"{self.uri}/{relative}"):
            if self.is_local:
                with self.path(relative).open("rb") as file:
                    file.seek(offset)
                    return file.read() if length is None else file.read(length)
            with self.open(relative) as file:
                size = file.size() - offset if length is None else length
                return bytes(file.read_at(size, offset))

    def open(self, relative: str) -> Any:
        """Open a file for random reading (a pyarrow NativeFile)."""
        file_system, full = self._full(relative)
        with _explained(f"{self.uri}/{relative}"):
            return file_system.open_input_file(full)

    def map(self, relative: str) -> Buffer:
        """Map a local file for random reading: pages are read as they are touched, without read-ahead."""
        path = self.path(relative)
        with _explained(str(path)), path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                return memoryview(b"")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if hasattr(mmap, "MADV_RANDOM"):
                mapped.madvise(mmap.MADV_RANDOM)
            return memoryview(mapped)

    @staticmethod
    def advise(mapped: Buffer, offset: int, length: int) -> None:
        """Ask the operating system to read a part of a mapped file ahead."""
        if hasattr(mmap, "MADV_WILLNEED") and isinstance(mapped.obj, mmap.mmap):
            start = offset // mmap.PAGESIZE * mmap.PAGESIZE
            mapped.obj.madvise(mmap.MADV_WILLNEED, start, offset + length - start)

    def publish(self, relative: str, write: Callable[[Any], None]) -> None:
        """Write a file with `write(sink)`; it appears complete or not at all."""
        name = f"{self.uri}/{relative}"
        if not self.is_local:
            # in memory first: an interrupted upload must not leave a partial object
            buffer = pa.BufferOutputStream()
            write(buffer)
            file_system, full = self._full(relative)
            with _explained(name), file_system.open_output_stream(full) as sink:
                sink.write(buffer.getvalue())
            return
        target = self.path(relative)
        with _explained(name):
            make_folders(target.parent)
            # 20 % faster than a Python file for Parquet
            with atomic_file(target) as temporary, pa.OSFile(str(temporary), "wb") as sink:
                write(sink)

    def publish_bytes(self, relative: str, data: bytes) -> None:
        """Write a small file, complete or not at all."""
        self.publish(relative, lambda sink: sink.write(data))

    def remove(self, relative: str) -> None:
        """Remove a file if it exists."""
        file_system, full = self._full(relative)
        if self.exists(relative):
            with _explained(f"{self.uri}/{relative}"):
                file_system.delete_file(full)

    def sweep(self) -> None:
        """Remove temporary files of killed runs below this folder; those of living processes are kept."""
        if self.is_local:
            with _explained(self.uri):
                sweep(self.path(), recursive=True)

    def check_writable(self) -> None:
        """Raise StorageError at once if the folder cannot be written."""
        try:
            self.publish_bytes(".oxe-write-check", b"ok")
            self.remove(".oxe-write-check")
        except StorageError as error:
            reason = str(error).rpartition(": ")[2]
            raise StorageError(f"{self}: cannot write: {reason}") from error


class _explained:  # noqa: N801 (reads as a phrase: `with _explained(name):`)
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


@functools.lru_cache(maxsize=64)
def _file_system(uri: str) -> tuple[Any, str]:
    """The file system of a URI and the path inside it.

    gs:// and s3:// use the default credentials; `gs://anonymous@bucket` or OXE_CURATE_ANONYMOUS=1 reads public data
    without credentials, as does gs:// where none are configured.
    """
    scheme, _, rest = uri.partition("://")
    if not rest:
        return fs.LocalFileSystem(), uri
    anonymous = rest.startswith("anonymous@") or os.environ.get("OXE_CURATE_ANONYMOUS") == "1"
    rest = rest.removeprefix("anonymous@").rstrip("/")
    try:
        if scheme in ("gs", "gcs"):
            return _gcs(anonymous), rest
        if scheme == "s3":
            endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
            return fs.S3FileSystem(anonymous=anonymous, endpoint_override=endpoint), rest
    except (OSError, ValueError) as error:
        raise StorageError(f"{uri}: {error}") from error
    raise StorageError(f"{uri}: unknown scheme {scheme}://; use a local path, gs:// or s3://")


def _gcs(anonymous: bool) -> Any:
    """Google Cloud Storage, with the credentials that are set up, if any."""
    adc = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS") or Path(
        os.environ.get("CLOUDSDK_CONFIG", Path.home() / ".config" / "gcloud"),
        "application_default_credentials.json",
    )
    endpoint = os.environ.get("STORAGE_EMULATOR_HOST")  # Google's own variable for a test server
    scheme, _, host = (endpoint or "").rpartition("://")
    if not any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        name, _, port = (host or "storage.googleapis.com").partition(":")
        _check_reachable(name, int(port or (80 if scheme == "http" else 443)))
    return fs.GcsFileSystem(
        anonymous=anonymous or bool(endpoint) or not Path(adc).exists(),
        endpoint_override=host or None,
        scheme=scheme or ("http" if endpoint else None),
        retry_time_limit=None,
    )


def _check_reachable(host: str, port: int, seconds: float = _CONNECT) -> None:
    """Raise OSError at once where there is no route: Google's client would retry for a quarter of an hour."""
    problem: list[OSError] = [TimeoutError(f"no answer within {seconds:.0f} s")]

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=seconds).close()
        except OSError as error:
            problem[0] = error
        else:
            problem.clear()

    thread = threading.Thread(target=connect, daemon=True)  # the name look-up has no time limit of its own
    thread.start()
    thread.join(seconds)
    if problem:
        raise OSError(f"cannot connect to {host}:{port} ({problem[0]}). Check the network; HTTPS_PROXY sets a proxy")


def stderr_is_terminal() -> bool:
    """Whether standard error is a terminal, so that a progress bar is shown."""
    return sys.stderr.isatty()
