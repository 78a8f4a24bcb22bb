"""Processes: which one this is, whether another one still runs, and what ends one."""

from __future__ import annotations

import functools
import hashlib
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import threading
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from types import FrameType
from typing import NoReturn


@dataclass(frozen=True)
class ProcessName:
    """What names a process for ever, although its number is used again.

    Attributes:
        host: name of its host, for messages.
        machine: eight hexadecimal digits: the machine, since its last start, and the table that `pid` counts in.
        pid: its number.
        start: when it started, in units of the system; 0 if unknown.
    """

    host: str
    machine: str
    pid: int
    start: int

    def runs(self) -> bool | None:
        """Whether the process still runs; None for one of another machine, or before the last start of this one."""
        if self.machine != _machine():
            return None
        start = _start(self.pid)
        return start is not None and (0 in (start, self.start) or start == self.start)


def this_process() -> ProcessName:
    """The name of this process."""
    return _named(os.getpid())


@functools.lru_cache(maxsize=1)  # by number, since a forked process is another one
def _named(pid: int) -> ProcessName:
    return ProcessName(socket.gethostname(), _machine(), pid, _start(pid) or 0)


@functools.lru_cache(maxsize=1)
def this_boot() -> str:
    """Eight hexadecimal digits that name this machine since its last start, for all of its containers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        boot = _output("sysctl", "-n", "kern.bootsessionuuid") or socket.gethostname()
    return _digest(boot)


@functools.lru_cache(maxsize=1)
def _machine() -> str:
    try:
        table = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        table = ""
    return _digest(this_boot() + table)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def _start(pid: int) -> int | None:
    """When a process started; None if it does not run, also where only its parent has not noticed yet."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else int(rest[18])
    except (OSError, ValueError):
        if Path("/proc/self/stat").exists():
            return None
    said = _output("ps", "-o", "stat=,lstart=", "-p", str(pid)).strip()
    if not said or said.startswith("Z"):
        return None
    return int(_digest(said.partition(" ")[2].strip()), 16)


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, env={"LC_ALL": "C"}).stdout
    except OSError:
        return ""


class Interrupted(KeyboardInterrupt):
    """A signal asked this process to end. Every `except Exception` lets it pass, as it does Ctrl+C."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def interrupt_on_signals() -> None:
    """Let SIGTERM and SIGHUP end this process as Ctrl+C does: temporary files and locks are removed on the way.

    A signal that is ignored, as by nohup, stays ignored.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise Interrupted(number)


def end_with_parent() -> None:
    """End this worker process as soon as the one that started it ends, however that ends.

    A thread waits for the end of a pipe that only the parent holds open. (Linux's parent-death signal follows the fork
    server instead, and macOS has none.) The fork server ends with the last of its workers.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, name="end with parent", daemon=True).start()


_PLAIN = re.compile(r"[^A-Za-z0-9_]+")


def process_label() -> str:
    """This process and thread in the form that `labelled` reads, for the names of temporary files."""
    mine = this_process()
    host = _PLAIN.sub("_", mine.host)[:20]
    return f"{host}.{mine.machine}-{mine.pid}-{mine.start}-{threading.get_native_id()}"


def labelled(label: str) -> ProcessName | None:
    """The process in a text that begins with a `process_label`; None for another text."""
    match = re.match(r"(\w*)\.([0-9a-f]{8})-(\d+)-(\d+)-\d+", label)
    return ProcessName(match[1], match[2], int(match[3]), int(match[4])) if match else None
