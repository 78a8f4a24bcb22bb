"""Keep numpy's linear algebra to one thread where a command has threads of its own, or only small matrices.

OpenBLAS starts as many threads as there are cores, and each waits for more work by spinning: with matrices of a few
thousand rows that takes longer than the products, and the cores from other work.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

_PREFIXES = ("scipy_openblas", "openblas")


@contextmanager
def one_thread() -> Iterator[None]:
    """In the block, numpy's linear algebra uses one thread; nothing changes where numpy has no OpenBLAS of its own."""
    calls = _openblas()
    if calls is None:
        yield
        return
    get, put = calls
    before = get()
    put(1)
    try:
        yield
    finally:
        put(before)


@functools.cache
def _openblas() -> tuple[Callable[[], int], Callable[[int], Any]] | None:
    """The functions that get and set the number of threads of the OpenBLAS in numpy's wheel."""
    package = Path(np.__file__).parent
    for folder in (package.with_name("numpy.libs"), package / ".dylibs"):
        for file in sorted(folder.glob("*openblas*")):
            try:
                library = ctypes.CDLL(str(file))
            except OSError:
                continue
            for name in (f"{prefix}_{{}}_num_threads{suffix}" for prefix in _PREFIXES for suffix in ("64_", "")):
                try:
                    return getattr(library, name.format("get")), getattr(library, name.format("set"))
                except AttributeError:
                    continue
    return None
