"""The error of converting actions to bins and back, in metres and degrees."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from oxe_curate.actions.bins import ActionBins
from oxe_curate.actions.bounds import Bounds
from oxe_curate.actions.dimensions import DIMENSIONS
from oxe_curate.errors import DataError

_BLOCK = 1 << 16


class RoundTrip:
    """Accumulates the errors of normalise, bin, decode and denormalise over any number of actions, in constant memory.

    An action is clipped in a dimension if it is outside the bounds there: outside q01 .. q99 where the mask is True,
    outside -1 .. 1 where it is False. Clipped and unclipped values are counted separately, because only the error of
    unclipped values is due to the bins: at most half an interval.
    """

    def __init__(self, bounds: Bounds, bins: ActionBins) -> None:
        self.bounds = bounds
        self.bins = bins
        # rows: unclipped, clipped
        self._count = np.zeros((2, bounds.width), np.int64)
        self._sum = np.zeros((2, bounds.width))
        self._largest = np.zeros((2, bounds.width))

    def add(self, actions: ArrayLike) -> None:
        """Add actions (..., D) in the units of the data set.

        Raises:
            DataError: wrong number of dimensions, or a value that is not finite.
        """
        rows = np.asarray(actions, np.float32)
        if rows.ndim == 0 or rows.shape[-1] != self.bounds.width:
            raise DataError(f"expected actions (..., {self.bounds.width}), got shape {rows.shape}")
        rows = rows.reshape(-1, self.bounds.width)
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            # (D, n): sums along the long axis are fast
            error = np.ascontiguousarray(np.abs(self._apply(block) - block).T)
            clipped = np.ascontiguousarray(self._clipped(block).T)
            outside = error * clipped
            number = np.count_nonzero(clipped, axis=1)
            for row, (count, part) in enumerate(((len(block) - number, error - outside), (number, outside))):
                self._count[row] += count
                self._sum[row] += part.sum(axis=1)
                np.maximum(self._largest[row], part.max(axis=1), out=self._largest[row])

    def _apply(self, actions: ArrayLike) -> NDArray[np.float64]:
        """Return the actions of a policy that predicts every bin correctly, float64 (..., D)."""
        normalized = self.bins.decode(self.bins.encode(self.bounds.normalize(actions)))
        return self.bounds.denormalize(normalized)

    def _clipped(self, actions: ArrayLike) -> NDArray[np.bool_]:
        """Return where actions (..., D) are outside the bounds."""
        x = np.asarray(actions, np.float64)
        low = np.where(self.bounds.mask, self.bounds.q01, -1)
        high = np.where(self.bounds.mask, self.bounds.q99, 1)
        outside: NDArray[np.bool_] = ((x < low) | (x > high)) & ~self.bounds.constant
        return outside

    def result(self) -> dict[str, Any]:
        """Return the errors so far, ready for JSON.

        `steps`, and under `dimensions` one entry each with `name`, `unit`, `constant` (min == max; OpenVLA maps it
        to 0, so an unscaled one is not recovered), `interval` (width of a bin), `mean_error` and `largest_error` over
        all steps, `share_clipped`, and the same two errors of `unclipped` and `clipped` values. The mean and largest
        error of no values are null.
        """
        intervals = len(self.bins.edges) - 1
        span = np.where(self.bounds.mask, self.bounds.q99 - self.bounds.q01, 2.0)
        total = int(self._count[:, 0].sum()) if self.bounds.width else 0
        dimensions = []
        for d in range(self.bounds.width):
            named = self.bounds.width == len(DIMENSIONS)
            name, unit, factor = DIMENSIONS[d] if named else (str(d), "", 1.0)
            largest = self._largest[:, d].max()
            dimensions.append(
                {
                    "name": name,
                    "unit": unit,
                    "constant": bool(self.bounds.constant[d]),
                    "interval": float(span[d] / intervals * factor),
                    **_errors(total, self._sum[:, d].sum() * factor, largest * factor),
                    "share_clipped": float(self._count[1, d] / total) if total else None,
                    **{
                        key: _errors(self._count[row, d], self._sum[row, d] * factor, self._largest[row, d] * factor)
                        for row, key in enumerate(("unclipped", "clipped"))
                    },
                }
            )
        return {"steps": total, "dimensions": dimensions}


def _errors(count: int, total: float, largest: float) -> dict[str, float | None]:
    return {
        "mean_error": float(total / count) if count else None,
        "largest_error": float(largest) if count else None,
    }
