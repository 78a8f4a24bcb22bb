"""Memory as long as a shard, of which only the parts that were written take space; reused, since new pages are slow."""

from __future__ import annotations

import mmap
import threading
import weakref
from typing import Any

import numpy as np

_ROUND = 16 << 20
_DROPPED = 64 << 10
_KEPT, _KEPT_IN_ALL = 64 << 20, 256 << 20
"""Bytes of written pages that a process keeps for the next shard: of one region, and in all."""


class Region:
    """A memory region that is free again when nothing refers to its bytes any more.

    Attributes:
        written: at least the bytes that were written to it, ever; its user adds to this.
    """

    def __init__(self, size: int) -> None:
        self.size = -(-max(size, 1) // _ROUND) * _ROUND
        flags = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}
        self.memory: Any = mmap.mmap(-1, self.size, **flags)
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            self.memory.madvise(mmap.MADV_NOHUGEPAGE)  # reads are sparse
        self.written = 0

    def drop(self, offset: int, length: int) -> bool:
        """Give whole pages back to the system, unless they are few; whether that was done. They must not be read."""
        if length < _DROPPED or not hasattr(mmap, "MADV_DONTNEED"):
            return False
        self.memory.madvise(mmap.MADV_DONTNEED, offset, length)
        self.written -= length
        return True


_free: list[Region] = []
_lock = threading.RLock()  # a finalizer may run while its thread holds it


def reserve(size: int) -> tuple[memoryview, Region]:
    """Return `size` bytes of any content, writable, and their region, which is reused once no view of them is left."""
    with _lock:
        fitting = [region for region in _free if region.size >= size]
        region = min(fitting, key=lambda region: region.size, default=None)
        if region:
            _free.remove(region)
    region = region or Region(size)
    array = np.frombuffer(region.memory, np.uint8, size) if size else np.empty(0, np.uint8)
    weakref.finalize(array, _give_back, region).atexit = False
    return array.data, region


def _give_back(region: Region) -> None:
    with _lock:
        kept = sum(other.written for other in _free)
        if region.written <= _KEPT and kept + region.written <= _KEPT_IN_ALL:
            _free.append(region)
