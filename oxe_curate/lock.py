"""The lock of an output folder: a small file that says who is writing there.

On a file system the file is locked with flock, which the system releases however the process ends. Where flock fails or
reaches only one machine, the contents count: a process of this machine is looked up, and one of another machine must
touch the file every 30 seconds.

An object store has no locks: the object is written, and read again after a moment; of several writers that start at the
same time, the last one gets the folder. Two may both start if one of them takes longer than that moment to write. Each
notices that the object is not its own, and fails before it writes the file that completes the folder.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import getpass
import json
import os
import shlex
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from oxe_curate.atomic import TEMPORARY, make_folders, temporary_path
from oxe_curate.errors import ConfigError, StorageError
from oxe_curate.process import ProcessName, this_boot, this_process
from oxe_curate.storage import Folder, explain

_BEAT = 30.0  # seconds between signs of life
_STALE = 300.0  # seconds without one, after which a process of another machine counts as dead
_TRIES = 100
_SETTLE = 0.5  # seconds until a lock without flock is read again


@dataclass(frozen=True)
class Holder:
    """The content of a lock file: who writes, since when, and a number that no other lock has."""

    command: str
    user: str
    since: str
    process: ProcessName
    boot: str
    nonce: str
    flock: bool = False

    def __str__(self) -> str:
        one = self.process
        return f"{self.command}, process {one.pid} on {one.host}, user {self.user}, since {self.since}"


@contextlib.contextmanager
def lock_folder(folder: Folder, name: str, where: str, doing: str) -> Iterator[None]:
    """Hold the lock `name` in a folder, which is created if it is missing and removed again if nothing is in it.

    Args:
        folder: local or in an object store.
        name: of the lock file.
        where: option and folder, for messages.
        doing: what is done there, for messages.

    Raises:
        ConfigError: another process holds the lock, at the start; or has taken it over, at the end.
        StorageError: the folder cannot be written.
    """
    lock = (_FileLock if folder.is_local else _ObjectLock)(folder, name, where, doing)
    try:
        lock.take()
    except OSError as error:
        raise StorageError(f"{folder}: cannot write: {explain(error)}") from error
    _held.append(lock)
    stop = threading.Event()
    beat = threading.Thread(target=lock.beat, args=(stop,), name="lock", daemon=True)
    beat.start()
    try:
        yield
        lock.check()
    finally:
        stop.set()
        beat.join()
        _held.remove(lock)
        with contextlib.suppress(OSError, StorageError):
            lock.release()


def check_locks() -> None:
    """Raise ConfigError if a lock of this process was removed or taken over; before the results are published."""
    for lock in _held:
        lock.check()


class _Lock:
    """What both kinds share; arguments as in `lock_folder`."""

    def __init__(self, folder: Folder, name: str, where: str, doing: str) -> None:
        self.folder, self.name, self.where, self.doing = folder, name, where, doing
        self.mine = Holder(
            _command(), _user(), datetime.now().astimezone().isoformat(" ", "seconds"), this_process(),
            this_boot(), os.urandom(8).hex(),
        )  # fmt: skip

    def take(self) -> None:
        raise NotImplementedError

    def release(self) -> None:
        raise NotImplementedError

    def content(self) -> bytes | None:
        """The lock as another process sees it; None if there is none."""
        raise NotImplementedError

    def touch(self) -> None:
        raise NotImplementedError

    def age(self) -> float:
        """Seconds since the last sign of life, by the clock of the storage."""
        raise NotImplementedError

    def beat(self, stop: threading.Event) -> None:
        """Give signs of life until `stop`."""
        while not stop.wait(_BEAT):
            with contextlib.suppress(OSError, StorageError):
                if self.is_mine():
                    self.touch()

    def is_mine(self) -> bool:
        holder = _parse(self.content())
        return holder is not None and holder.nonce == self.mine.nonce

    def check(self) -> None:
        """Raise ConfigError unless the lock is still this process's."""
        try:
            other = _parse(self.content())
        except OSError as error:
            raise StorageError(f"{self.folder}/{self.name}: {explain(error)}") from error
        if other is None or other.nonce != self.mine.nonce:
            what = f"was taken over by {other}" if other else "was removed by another process"
            raise ConfigError(
                f"{self.where}: the lock {self.name} {what} while this command ran, so another one may have written "
                "there too. Run the same command again; finished files are checked and kept."
            )

    def lives(self, holder: Holder, flocked: bool) -> bool:
        """Whether the process that a lock file names may still be writing; `flocked`: this process has the flock."""
        if flocked and holder.flock and holder.boot == self.mine.boot:
            return False  # the system has released its lock
        runs = holder.process.runs()
        return self.age() < _STALE if runs is None else runs

    def refuse(self, holder: Holder | None) -> ConfigError:
        who = str(holder) if holder else "it has not written its name yet"
        path = f"{self.folder}/{self.name}"
        return ConfigError(
            f"{self.where}: another process is {self.doing} here ({who}). Wait for it, stop it, or choose another "
            f"folder. If it has ended, remove {path}; on the machine where it ran this happens by itself, on another "
            f"one {_STALE / 60:.0f} minutes after its last sign of life."
        )


class _FileLock(_Lock):
    """A lock on a file system."""

    _descriptor: int = -1
    _created: Path | None = None

    @property
    def path(self) -> Path:
        return self.folder.path(self.name)

    def take(self) -> None:
        missing = [path for path in (self.path.parent, *self.path.parent.parents) if not path.exists()]
        self._created = missing[-1] if missing else None
        try:
            if not any(self._try() for _ in range(_TRIES)):
                raise self.refuse(self._named())
        except BaseException:
            self._close()
            raise

    def _try(self) -> bool:
        """Take the lock; False if its file was removed meanwhile. Raises ConfigError if another process holds it."""
        self._close()
        make_folders(self.path.parent)
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:
            return False  # the folder was removed
        except PermissionError:
            if not self.path.exists():
                raise
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)  # of another user
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            flocked = True
        except BlockingIOError:
            raise self.refuse(self._named()) from None
        except OSError:
            flocked = False  # a file system without locks
        if not self._is_current():
            return False
        holder = _parse(os.pread(self._descriptor, 1 << 16, 0))
        if holder is not None and self.lives(holder, flocked):
            raise self.refuse(holder)
        if not fcntl.fcntl(self._descriptor, fcntl.F_GETFL) & os.O_RDWR:
            self.path.unlink()
            return False
        self.mine = Holder(**{**vars(self.mine), "flock": flocked})
        data = _to_bytes(self.mine)
        os.pwrite(self._descriptor, data, 0)
        os.ftruncate(self._descriptor, len(data))
        os.fsync(self._descriptor)
        if not flocked:
            time.sleep(_SETTLE)
            if not self.is_mine():
                raise self.refuse(self._named())
        return True

    def _named(self) -> Holder | None:
        """The holder, which may be writing its name right now."""
        for _ in range(20):
            if holder := _parse(self.content()):
                return holder
            time.sleep(0.05)
        return None

    def _is_current(self) -> bool:
        """Whether the open file still has the lock's name."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), self.path.stat())
        except FileNotFoundError:
            return False

    def content(self) -> bytes | None:
        try:
            return self.path.read_bytes()
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return None
            raise

    def touch(self) -> None:
        os.utime(self._descriptor)

    def age(self) -> float:
        probe = temporary_path(self.path)
        probe.touch()
        try:
            return probe.stat().st_mtime - self.path.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)

    def release(self) -> None:
        try:
            if self.is_mine():
                self.path.unlink(missing_ok=True)
            if self._created is not None:
                for folder in (self.path.parent, *self.path.parent.parents):
                    folder.rmdir()  # fails, and ends this, where something was written
                    if folder == self._created:
                        break
        finally:
            self._close()

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class _ObjectLock(_Lock):
    """A lock in an object store."""

    def take(self) -> None:
        holder = _parse(self.content())
        if holder is not None and self.lives(holder, flocked=False):
            raise self.refuse(holder)
        self.touch()
        time.sleep(_SETTLE)
        if not self.is_mine():
            raise self.refuse(_parse(self.content()))

    def content(self) -> bytes | None:
        return self.folder.read_bytes(self.name) if self.folder.exists(self.name) else None

    def touch(self) -> None:
        self.folder.publish_bytes(self.name, _to_bytes(self.mine))

    def age(self) -> float:
        probe = f"{TEMPORARY}{self.mine.nonce}"
        self.folder.publish_bytes(probe, b"")
        try:
            return self.folder.modified(probe) - self.folder.modified(self.name)
        finally:
            self.folder.remove(probe)

    def release(self) -> None:
        if self.is_mine():
            self.folder.remove(self.name)


_held: list[_Lock] = []


def _to_bytes(holder: Holder) -> bytes:
    return (json.dumps(asdict(holder), indent=1) + "\n").encode()


def _parse(data: bytes | None) -> Holder | None:
    """Read a lock file; None for one that is missing, empty (of an earlier version) or half written."""
    try:
        found: dict[str, Any] = json.loads(data or b"")
        return Holder(**{**found, "process": ProcessName(**found["process"])})
    except (ValueError, TypeError, KeyError):
        return None


def _command() -> str:
    """The command line up to its first option: options may hold secrets."""
    words = [Path(sys.argv[0] or "python").name]
    for word in sys.argv[1:]:
        if word.startswith("-"):
            break
        words.append(word)
    return shlex.join(words)[:200]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without a table of users
        return str(os.getuid())
