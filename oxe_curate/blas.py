"""Keep numpy's linear algebra to one thread where a command has threads of its own, or only small matrices.

OpenBLAS starts as many threads as there are cores, and each waits for more work by spinning: with matrices of a few
thousand rows that takes longer than the products, and the cores from other work.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np  # noqa: F401  (its library must be loaded before the controller looks for it)
from threadpoolctl import ThreadpoolController


@contextmanager
def one_thread() -> Iterator[None]:
    """In the block, numpy's linear algebra uses one thread."""
    with _controller().limit(limits=1, user_api="blas"):
        yield


@functools.cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()  # looking for the libraries takes milliseconds
