"""Limits learned from a data set's own distribution, so that a few bad episodes do not move them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_SPREAD = 1.4826
"""Standard deviations per median absolute deviation, of a normal distribution."""
_FEWEST = 8
"""Fewer episodes than this do not tell what is normal."""


def robust_limit(
    value: NDArray[np.floating[Any]], *, least: float, times: float = 8.0, within: float = np.inf
) -> float:
    """The median plus `times` robust standard deviations, at least `least`.

    The spread is the median absolute deviation or, where most values are equal, that of the upper quarter; up to a
    quarter of bad episodes hardly moves either.

    Args:
        value: float (n,), the larger, the worse; NaN is ignored.
        least: a value up to this is never bad, whatever the others are.
        times: how far from the median a value must be.
        within: the limit is at most this multiple of the 80 % quantile, which a wide but one-sided distribution needs.

    Returns:
        The limit; infinite with fewer than 8 values.
    """
    known = value[np.isfinite(value)]
    if len(known) < _FEWEST:
        return float("inf")
    middle, upper, most = np.quantile(known, (0.5, 0.75, 0.8))
    spread = _SPREAD * max(float(np.median(np.abs(known - middle))), float(upper - middle))
    limit = float(middle) + times * spread
    return max(least, limit if np.isinf(within) else min(limit, within * float(most)))
