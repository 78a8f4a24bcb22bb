"""Curves of an episode, reduced to a few points that keep every extreme."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_POINTS = 120
_LEVELS = 100


def reduced(values: NDArray[np.floating[Any]], most: int = _POINTS) -> NDArray[np.float64]:
    """At most `most` rows: all of them, or the least and the greatest value of equal parts, in order of time.

    Args:
        values: (T, D); values that are not finite become NaN.
        most: even number of rows.

    Returns:
        float64 (at most `most`, D).
    """
    finite: NDArray[np.float64] = np.where(np.isfinite(values), values, np.nan).astype(np.float64)
    if len(finite) <= most:
        return finite
    width = -(-2 * len(finite) // most)
    filled = np.pad(finite, ((0, -len(finite) % width), (0, 0)), constant_values=np.nan)
    parts = filled.reshape(-1, width, finite.shape[1])
    missing = np.isnan(parts)
    low, high = np.where(missing, np.inf, parts), np.where(missing, -np.inf, parts)
    rising = low.argmin(axis=1) <= high.argmax(axis=1)
    least, greatest = low.min(axis=1), high.max(axis=1)
    pairs = np.stack([np.where(rising, least, greatest), np.where(rising, greatest, least)], axis=1)
    pairs[~np.isfinite(pairs)] = np.nan
    return np.asarray(pairs.reshape(-1, finite.shape[1]))


def curves(values: NDArray[np.floating[Any]], labels: Sequence[str] = ()) -> list[dict[str, Any]]:
    """One curve per dimension, for the page: label, range, and the points as whole numbers from 0 to 100.

    Args:
        values: (T, D).
        labels: of the dimensions; numbers from 0 where there is none.
    """
    if not len(values):
        return []
    found = []
    for d, points in enumerate(reduced(values).T):
        finite = points[np.isfinite(points)]
        low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
        scale = _LEVELS / (high - low) if high > low else 0.0
        found.append(
            {
                "label": labels[d] if d < len(labels) else str(d),
                "low": low,
                "high": high,
                "points": [
                    None if math.isnan(v) else round((v - low) * scale) if scale else _LEVELS // 2
                    for v in points.tolist()
                ],
            }
        )
    return found
