"""How fast this process's link to its object stores is, and what follows for the requests that it makes."""

from __future__ import annotations

import statistics
from collections import deque

_SMALL, _LARGE = 128 << 10, 1 << 20
"""Bytes: a smaller request takes as long as an empty one; only larger ones show the bandwidth."""
_KEPT = 32
_DELAY, _BANDWIDTH = 0.05, 100e6  # seconds, bytes per second: until something was measured
_LEAST, _MOST = 64 << 10, 8 << 20


class Link:
    """What requests cost, from the latest ones.

    A request for n bytes takes about `delay + n / bandwidth` seconds, where the bandwidth is that of one of the
    connections in use: it is lower if the network or the processor is the limit rather than the store.
    """

    def __init__(self) -> None:
        self._small: deque[float] = deque(maxlen=_KEPT)
        self._large: deque[tuple[int, float]] = deque(maxlen=_KEPT)

    def note(self, size: int, seconds: float) -> None:
        """Count a request that succeeded. Thread-safe."""
        if size < _SMALL:
            self._small.append(seconds)
        elif size >= _LARGE:
            self._large.append((size, seconds))

    @property
    def delay(self) -> float:
        """Seconds of a small request."""
        return statistics.median(self._small.copy()) if self._small else _DELAY

    @property
    def bandwidth(self) -> float:
        """Bytes per second of a connection while it sends, the other connections in use."""
        large, delay = self._large.copy(), self.delay
        sending = sum(max(seconds - delay, seconds / 10) for _, seconds in large)
        return sum(size for size, _ in large) / sending if sending else _BANDWIDTH

    @property
    def gap(self) -> int:
        """Bytes: it takes less time to read through a gap below this than to make another request."""
        return int(min(max(self.delay * self.bandwidth, _LEAST), _MOST))


link = Link()
"""That of this process."""
