"""Run a command and measure it: seconds, memory of all its processes, bytes read from storage, pages touched."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import shlex
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PAGE = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")
SAMPLE_SECONDS = 0.02


@dataclass(frozen=True)
class Measurement:
    """One run of one command.

    Attributes:
        seconds: of the work only, as reported by the command (imports excluded).
        process_seconds: of the whole process, imports included.
        rss: largest sum of resident memory over all its processes [bytes]. Pages that processes share, and pages of
            mapped files, which the kernel can reclaim, count in each process.
        anonymous: the same without pages of files: the memory that the machine must have.
        cpu: seconds of processor time of the whole process tree, imports included; the least sensitive to other work
            on the machine.
        storage: bytes fetched from storage, readahead included (getrusage, waited-for children included).
        workers_cpu: of these, seconds of all processes but the first, sampled.
        touched: share of the data's pages in the page cache afterwards; only after a cold start.
        result: the JSON that the command printed.
    """

    seconds: float
    process_seconds: float
    rss: int
    anonymous: int
    storage: int
    cpu: float = 0.0
    touched: float | None = None
    result: dict[str, Any] = field(default_factory=dict)
    workers_cpu: float = 0.0

    @property
    def work_cpu(self) -> float:
        """Seconds of processor time of the work, imports of the first process excluded.

        The command reports `cpu`, its own and that of the children it waited for. A command whose workers are not its
        children also reports `cpu_seconds`, without them.
        """
        waited = float(self.result["cpu"])
        return (
            max(waited, float(self.result["cpu_seconds"]) + self.workers_cpu)
            if "cpu_seconds" in self.result
            else waited
        )


def run(command: Sequence[str], data: Iterable[Path], *, cold: bool, log: Path) -> Measurement:
    """Run `command`, whose last line of output is a JSON object with `seconds`; its messages go to `log`.

    Args:
        command: program and arguments.
        data: the files it reads: read once beforehand, or with `cold` dropped from the page cache.
        cold: start without any of the data in the page cache.
        log: file for the command's stderr.

    Raises:
        RuntimeError: the command failed; the message ends with the end of its log.
    """
    files = list(data)
    os.sync()  # so that no writeback of an earlier run overlaps this one
    if cold:
        drop(files)
    else:
        load(files)
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONUNBUFFERED": "1", "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryFile() as out, log.open("ab") as err:
        err.write(f"\n$ {shlex.join(command)}\n".encode())
        err.flush()
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=err, env=environment, start_new_session=True)
        rss = anonymous = 0
        spent: dict[str, float] = {}
        while True:
            now = memory(process.pid, spent)
            rss, anonymous = max(rss, now[0]), max(anonymous, now[1])
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            time.sleep(SAMPLE_SECONDS)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        text = out.read().decode()
    if process.returncode:
        raise RuntimeError(f"{shlex.join(command)}: exit code {process.returncode}\n{log.read_text()[-2000:]}")
    result = json.loads(text.strip().splitlines()[-1])
    return Measurement(
        seconds=float(result["seconds"]),
        process_seconds=wall,
        rss=rss,
        anonymous=anonymous,
        storage=usage.ru_inblock * 512,
        # processes that no parent waited for are missing from the first sum, their last moments from the second
        cpu=max(usage.ru_utime + usage.ru_stime, sum(spent.values())),
        touched=touched(files) if cold else None,
        result=result,
        workers_cpu=sum(seconds for pid, seconds in spent.items() if int(pid) != process.pid),
    )


def memory(session: int, spent: dict[str, float]) -> tuple[int, int]:
    """Resident bytes, and those of them not backed by a file, summed over the processes of a session.

    `spent` is updated: process -> seconds of processor time so far.
    """
    resident = anonymous = 0
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            fields = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                pages = Path(entry.path, "statm").read_text().split()
                resident += int(pages[1])
                anonymous += int(pages[1]) - int(pages[2])
                spent[entry.name] = (int(fields[11]) + int(fields[12])) / TICKS
        except (OSError, IndexError):  # it has ended in the meantime
            continue
    return resident * PAGE, anonymous * PAGE


def load(files: Iterable[Path]) -> None:
    """Read the files, so that the page cache holds them."""
    buffer = bytearray(1 << 20)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def drop(files: Sequence[Path]) -> None:
    """Drop the files from the page cache (posix_fadvise DONTNEED). Raises RuntimeError where the kernel keeps them."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())  # dirty pages cannot be dropped
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if (left := touched(files)) > 0.01:
        raise RuntimeError(
            f"{left:.0%} of the data stays in the page cache; cold runs are not possible on this machine"
        )


def touched(files: Iterable[Path]) -> float:
    """Share of the files' pages in the page cache (mincore)."""
    mincore = ctypes.CDLL(None, use_errno=True).mincore
    mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
    resident = pages = 0
    for path in files:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as view:
            vector = ctypes.create_string_buffer(-(-len(view) // PAGE))
            first = ctypes.c_char.from_buffer(view)
            failed = mincore(ctypes.addressof(first), len(view), vector)
            del first
            if failed:
                raise OSError(ctypes.get_errno(), f"mincore of {path}")
            resident += sum(byte & 1 for byte in vector.raw)
            pages += len(vector)
    return resident / pages
