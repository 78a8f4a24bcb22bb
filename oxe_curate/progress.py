"""A progress bar: bytes, files, steps per second, time left; only on a terminal."""

from __future__ import annotations

import time

from tqdm import tqdm

from oxe_curate.storage import stderr_is_terminal


class Bar:
    """A tqdm bar over bytes that also counts shards and steps; only on a terminal."""

    def __init__(self, title: str, total: int, enabled: bool) -> None:
        self._bar = tqdm(
            total=total, desc=title, unit="B", unit_scale=True, disable=not (enabled and stderr_is_terminal()),
            dynamic_ncols=True,
        )  # fmt: skip
        self._steps = self._files = 0
        self._start = time.monotonic()

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def add(self, size: int, steps: int = 0) -> None:
        """Count a finished file: its input bytes and its steps."""
        self._steps += steps
        self._files += 1
        seconds = max(time.monotonic() - self._start, 1e-3)
        self._bar.set_postfix_str(f"{self._files} shards, {self._steps / seconds:,.0f} steps/s", refresh=False)
        self._bar.update(size)
