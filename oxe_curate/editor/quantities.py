"""A row edited as weight, share, epochs or hours -> the weights to write, rounded so that the file stays readable."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, get_args

import numpy as np

from oxe_curate.errors import ConfigError, did_you_mean
from oxe_curate.mixture import shares

Quantity = Literal["weight", "share", "epochs", "hours"]
DIGITS = 6


def rounded(weight: float) -> float:
    """To `DIGITS` significant digits."""
    return float(f"{weight:.{DIGITS}g}")


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
    """Weights that change when one quantity of a row is set.

    Args:
        weights: of every row.
        steps: training steps of every row; None where they are not known. Such rows are left as they are.
        row: the edited one.
        quantity: "weight", "share" (0 to 1), "epochs" in `samples` samples (None: in one pass of the mixture, where
            they are the weight), or "hours" in one pass.
        value: of it.
        hz: the row's control rate, for hours.
        samples: length of the training.
        keep_total: one pass stays as large as it is: the unlocked rows give or take in proportion.
        locked: rows that keep their share then.

    Returns:
        row -> weight, the changed ones alone.

    Raises:
        ConfigError: the value cannot be reached, or a size or rate that it needs is not known.
    """
    if quantity not in get_args(Quantity):
        raise ConfigError(f"{quantity!r} is not a quantity. {did_you_mean(quantity, get_args(Quantity))}")
    if not 0 < value < float("inf"):
        raise ConfigError(f"a {quantity} is above zero, found {value:g}. Remove the row to leave the data set out.")
    direct = quantity == "weight" or (quantity == "epochs" and samples is None)
    if direct and not keep_total:
        return {row: value if quantity == "weight" else rounded(value)}
    size = steps[row]
    if not size:
        raise ConfigError("the number of steps is not known, so only the weight can be set")
    known = [i for i, count in enumerate(steps) if count]
    here, w = known.index(row), np.array([weights[i] for i in known])
    t = np.array([steps[i] for i in known], np.float64)
    if quantity == "hours":
        if not hz:
            raise ConfigError("the control rate is not known, so hours cannot be set")
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
        wanted = new[here] * t[here] / float(w @ t) if quantity in ("weight", "hours") or direct else None
        share = float(wanted if wanted is not None else shares.shares(new, t)[here])
        new = shares.rebalance(w, t, here, share, {known.index(i) for i in locked if i in known})
    return {
        i: rounded(float(b))
        for i, a, b in zip(known, w, new, strict=True)
        if not np.isclose(a, b, rtol=1e-9) and (i == row or i not in locked or not keep_total)
    }
