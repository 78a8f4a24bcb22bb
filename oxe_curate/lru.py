"""A cache of the values used last, bounded by their total size. For counts instead of sizes use functools.lru_cache."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

_Value = TypeVar("_Value")


class LruCache(Generic[_Value]):
    """Keep the values used last, up to a total size in bytes.

    Thread-safe; two threads may make the same value at once. The value used last is kept even if it exceeds the limit.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._total = limit, 0
        self._entries: OrderedDict[Hashable, tuple[_Value, int]] = OrderedDict()
        self._lock = threading.Lock()

    def peek(self, key: Hashable) -> _Value | None:
        """Return the value of `key`, None if it is not cached."""
        with self._lock:
            return self._entries[key][0] if key in self._entries else None

    def get(self, key: Hashable, make: Callable[[], tuple[_Value, int]]) -> _Value:
        """Return the value of `key`; if it is not cached, make it: `make` returns the value and its size."""
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key][0]
        value, size = make()
        with self._lock:
            if key not in self._entries:
                self._entries[key] = value, size
                self._total += size
                while self._total > self._limit and len(self._entries) > 1:
                    self._total -= self._entries.popitem(last=False)[1][1]
        return value
