"""The weights that result from editing a row's weight, share, epochs or hours, rounded to keep the file readable."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, get_args

import numpy as np

from oxe_curate.errors import ConfigError, did_you_mean
from oxe_curate.mixture import shares

Quantity = Literal["weight", "share", "epochs", "hours"]
_DIGITS = 6


def rounded(weight: float) -> float:
    """Round to `_DIGITS` significant digits."""
    return float(f"{weight:.{_DIGITS}g}")


def solve(
    weights: Sequence[float],
    steps: Sequence[float | None],
    row: int,
    quantity: str,
    value: float,
    *,
    hz: float | None = None,
    samples: float | None = None,
    keep_total: bool = False,
    locked: Collection[int] = (),
) -> dict[int, float]:
    """The weights that change when one quantity of a row is set.

    Args:
        weights: of every row.
        steps: training steps of every row; None if unknown. Such rows are not changed.
        row: the edited row.
        quantity: "weight", "share" (0 to 1), "epochs" in `samples` samples (None: in one pass of the mixture, so that
            they are the weight), or "hours" in one pass.
        value: of the quantity.
        hz: the row's control rate, for hours.
        samples: number of training samples.
        keep_total: keep the size of one pass; the unlocked rows are scaled in proportion.
        locked: rows whose share is kept in that case.

    Returns:
        row -> weight, only for rows that change.

    Raises:
        ConfigError: the value is not possible, or a required size or rate is unknown.
    """
    if quantity not in get_args(Quantity):
        raise ConfigError(f"unknown quantity {quantity!r}. {did_you_mean(quantity, get_args(Quantity))}")
    if not 0 < value < float("inf"):
        raise ConfigError(
            f"{quantity}: expected a number above zero, got {value:g}. To exclude the data set, remove the row."
        )
    direct = quantity == "weight" or (quantity == "epochs" and samples is None)
    if direct and not keep_total:
        return {row: value if quantity == "weight" else rounded(value)}
    size = steps[row]
    if not size:
        raise ConfigError("the number of steps is unknown; only the weight can be set")
    known = [i for i, count in enumerate(steps) if count]
    here, w = known.index(row), np.array([weights[i] for i in known])
    t = np.array([steps[i] for i in known], np.float64)
    if quantity == "hours":
        if not hz:
            raise ConfigError("the control rate is unknown; hours cannot be set")
        new = shares.with_hours(w, t, here, value, hz)
    elif direct:
        new = w.copy()
        new[here] = value
    elif quantity == "share":
        new = shares.with_share(w, t, here, value)
    else:
        assert samples is not None
        new = shares.with_epochs(w, t, here, value, samples)
    if keep_total:
        direct_share = new[here] * t[here] / float(w @ t) if quantity in ("weight", "hours") or direct else None
        share = float(direct_share if direct_share is not None else shares.shares(new, t)[here])
        new = shares.rebalance(w, t, here, share, {known.index(i) for i in locked if i in known})
    return {
        i: rounded(float(b))
        for i, a, b in zip(known, w, new, strict=True)
        if not np.isclose(a, b, rtol=1e-9) and (i == row or i not in locked or not keep_total)
    }
