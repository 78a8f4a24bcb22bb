"""From tests of episodes to a judgement: the worst of several tests decides, each against its own limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oxe_curate.arrays import Floats
from oxe_curate.quality.limits import robust_limit
from oxe_curate.quality.measure import Judgement

Test = tuple[NDArray[np.floating[Any]], float]
"""Values of all episodes (n,), and the limit that they should not exceed."""


def factor_limit(
    value: NDArray[np.floating[Any]], *, least: float, times: float = 6.0, within: float = np.inf
) -> float:
    """`robust_limit` of values that differ by factors: spread and distance are those of their logarithms."""
    known = value[np.isfinite(value) & (value > 0)]
    with np.errstate(over="ignore"):
        limit = float(np.exp(robust_limit(np.log(known), least=float(np.log(least)), times=times)))
    if np.isinf(within) or not len(known) or np.isinf(limit):
        return limit
    return max(least, min(limit, within * float(np.quantile(known, 0.8))))


def worst(tests: Sequence[Test]) -> tuple[Floats, float, NDArray[np.int64]]:
    """The largest value relative to its limit, in the scale of the first test that has a limit.

    Returns:
        Values (n,), NaN where no test could measure; the limit, infinite if no test has one; the deciding tests (n,).
    """
    known = [(value, limit) for value, limit in tests if np.isfinite(limit)]
    count = len(tests[0][0])
    if not known:
        return np.full(count, np.nan), float("inf"), np.zeros(count, np.int64)
    ratio = np.array([np.where(np.isfinite(v) & np.isfinite(b), v / b, -1.0) if np.isfinite(b) else np.full(count, -1.0)
                      for v, b in tests])  # fmt: skip
    first = known[0][1]
    which = ratio.argmax(axis=0)
    top = ratio.max(axis=0)
    return np.where(top >= 0, top * first, np.nan), first, which


def judged(
    value: NDArray[np.floating[Any]],
    limit: float,
    words: Callable[[int], str],
    *,
    step: NDArray[np.integer[Any]] | None = None,
    unit: str = "",
) -> Judgement:
    """A judgement whose words are written for the episodes that exceed the limit."""
    with np.errstate(invalid="ignore"):
        found = np.flatnonzero(value > limit)
    texts = [words(int(i)) for i in found]
    distinct = sorted(set(texts))
    what = np.full(len(value), -1, np.int64)
    what[found] = [distinct.index(text) for text in texts]
    return Judgement(
        value=value,
        limit=limit,
        step=np.full(len(value), -1, np.int64) if step is None else step,
        what=what,
        words=tuple(distinct),
        unit=unit,
    )
