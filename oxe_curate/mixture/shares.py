"""Weights, shares and epochs: three units for the same quantity, and the numbers per data set.

A weight w_i is the expected number of copies of each of a data set's T_i steps. Then

    share_i  = w_i T_i / sum_j w_j T_j             of the samples, as OpenVLA's and Octo's loaders draw them
    epochs_i = N share_i / T_i                     how often each step is seen in N samples

Shares and epochs determine the weights up to a common factor, the size of one pass of the mixture. Arrays are float64
(data sets,); NaN means an unknown size.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from oxe_curate.arrays import Floats
from oxe_curate.errors import ConfigError
from oxe_curate.mixture.members import Member, Origin
from oxe_curate.mixture.spec import Mixture


def shares(weights: ArrayLike, steps: ArrayLike) -> Floats:
    """Share of the samples of each data set; NaN if its size is unknown, in which case it is not in the sum.

    >>> shares([1.0, 0.5], [100, 200]).tolist()
    [0.5, 0.5]
    """
    drawn = _floats(weights) * _floats(steps)
    total = np.nansum(drawn)
    return drawn / total if total > 0 else np.full_like(drawn, np.nan)


def epochs(weights: ArrayLike, steps: ArrayLike, samples: float) -> Floats:
    """How often each step is seen in `samples` samples; NaN if the size is unknown."""
    size = _floats(steps)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(size > 0, samples * shares(weights, size) / size, np.nan), np.float64)


def weights_for_shares(target: ArrayLike, steps: ArrayLike, one_pass: float | None = None) -> Floats:
    """Weights that draw the target shares.

    Args:
        target: shares, any positive numbers; only their ratios matter.
        steps: of each data set; all must be known.
        one_pass: samples in one pass of the mixture, sum of w_i T_i. None: the largest weight becomes 1, so that no
            step is stored twice.

    Raises:
        ConfigError: a share or a size is zero, negative or unknown.
    """
    size = _positive(steps, "number of steps")
    return _scaled(_positive(target, "share") / size, size, one_pass)


def weights_for_epochs(target: ArrayLike, steps: ArrayLike, one_pass: float | None = None) -> Floats:
    """Weights with which a training of sum of e_i T_i samples sees each data set `target` times.

    None for `one_pass` gives the epochs themselves: one pass of the mixture is the whole training.
    """
    passes, size = _positive(target, "number of epochs"), _positive(steps, "number of steps")
    return passes if one_pass is None else _scaled(passes, size, one_pass)


def with_share(weights: ArrayLike, steps: ArrayLike, row: int, share: float) -> Floats:
    """Weights with the share of one data set changed; the other weights are unchanged.

    Raises:
        ConfigError: the share is not between 0 and 1, a size is unknown, or there is no other data set.
    """
    new, size = _positive(weights, "weight").copy(), _positive(steps, "number of steps")
    rest = float(np.delete(new * size, row).sum())
    if not 0 < share < 1 or len(new) < 2:
        raise ConfigError(f"expected a share between 0 and 1, and at least two data sets, got {share:g}")
    new[row] = share / (1 - share) * rest / size[row]
    return new


def with_epochs(weights: ArrayLike, steps: ArrayLike, row: int, target: float, samples: float) -> Floats:
    """Weights with the epochs of one data set in `samples` samples changed; the other weights are unchanged.

    Raises:
        ConfigError: as `with_share`; or the epochs need more samples than there are.
    """
    share = target * float(_floats(steps)[row]) / samples
    if share >= 1:
        raise ConfigError(f"{target:g} epochs of {_floats(steps)[row]:,.0f} steps are more than {samples:,.0f} samples")
    return with_share(weights, steps, row, share)


def with_hours(weights: ArrayLike, steps: ArrayLike, row: int, hours: float, control_hz: float) -> Floats:
    """Weights with the hours of one data set in a pass (copies counted) changed; the other weights are unchanged."""
    new, size = _positive(weights, "weight").copy(), _positive(steps, "number of steps")
    new[row] = hours * 3600 * control_hz / size[row]
    return _positive(new, "weight")


def rebalance(weights: ArrayLike, steps: ArrayLike, row: int, share: float, locked: Collection[int] = ()) -> Floats:
    """Weights with the share of one data set and, in proportion, of the unlocked others changed; one pass is unchanged.

    Raises:
        ConfigError: every other data set is locked, or the locked ones leave no room for the share.
    """
    old, size = _positive(weights, "weight"), _positive(steps, "number of steps")
    before = shares(old, size)
    others = np.arange(len(old)) != row
    free = others & ~np.isin(np.arange(len(old)), list(locked))
    held = float(before[others & ~free].sum())
    room = 1 - held - share
    if share <= 0 or room <= 0 or not free.any():
        raise ConfigError(
            f"a share of {100 * share:.3g} % is not possible: locked data sets have {100 * held:.3g} %. Unlock one."
        )
    after = np.where(free, before * (room / before[free].sum()), before)
    after[row] = share
    return weights_for_shares(after, size, float(old @ size))


def _floats(values: ArrayLike) -> Floats:
    return np.asarray(values, np.float64)


def _positive(values: ArrayLike, what: str) -> Floats:
    array = _floats(values)
    bad = np.flatnonzero(~(array > 0) | ~np.isfinite(array))
    if len(bad):
        shown = "unknown" if np.isnan(array[bad[0]]) else f"{array[bad[0]]:g}"
        raise ConfigError(f"the {what} of data set {bad[0] + 1} is {shown}; expected a number above zero")
    return array


def _scaled(weights: Floats, steps: Floats, one_pass: float | None) -> Floats:
    factor = 1 / weights.max() if one_pass is None else one_pass / float(weights @ steps)
    return np.asarray(weights * factor, np.float64)


@dataclass(frozen=True)
class Row:
    """The numbers of a data set in a mixture; None if unknown.

    Attributes:
        name: in the mixture.
        card: the card's name.
        steps, episodes, hours: of the data set, at weight 1.
        origin: "index", "published" (the card's count of the whole data set) or "unknown".
        drawn: expected training samples in one pass of the mixture. With a stride a sample is a window, and a data set
            has about steps / stride of them.
        share: of the samples. An upper bound if `Breakdown.unknown` is not empty.
        epochs: how often each training sample is seen in `Breakdown.samples` samples. An upper bound as above.
    """

    name: str
    card: str
    robot: str
    control_hz: float | None
    weight: float
    steps: int | None
    episodes: int | None
    hours: float | None
    origin: Origin
    drawn: float | None
    share: float | None
    epochs: float | None


@dataclass(frozen=True)
class Breakdown:
    """The numbers of a mixture.

    Attributes:
        samples: number of training samples for `epochs`; None: no epochs.
        one_pass: expected samples in one pass, over the data sets of known size.
        unknown: names of data sets of unknown size. Shares are among the others only, hence upper bounds.
        stride: steps between samples.
    """

    name: str
    rows: tuple[Row, ...]
    samples: int | None
    one_pass: float
    unknown: tuple[str, ...]
    stride: int = 1

    @property
    def hours(self) -> float | None:
        """Hours of data in one pass, copies counted; None if a size or a rate is unknown."""
        hours = 0.0
        for row in self.rows:
            if row.drawn is None or not row.control_hz:
                return None
            hours += row.drawn * self.stride / row.control_hz / 3600
        return hours


def breakdown(mixture: Mixture, members: Sequence[Member], samples: int | None = None) -> Breakdown:
    """Share, steps, episodes, hours and epochs of each data set of a mixture.

    Args:
        mixture: the mixture; held-out steps are not counted as drawn.
        members: of the mixture, see `members.members`.
        samples: number of training samples; None: no epochs.
    """
    weights = _floats([m.entry.weight for m in members])
    steps = _floats([np.nan if m.steps is None else m.steps for m in members])
    training = steps * (1 - mixture.validation) / mixture.stride
    share = shares(weights, training)
    seen = epochs(weights, training, samples) if samples else np.full_like(share, np.nan)
    rows = tuple(
        Row(
            name=m.entry.name, card=m.card.name, robot=m.card.robot, control_hz=m.card.control_hz,
            weight=m.entry.weight, steps=m.steps, episodes=m.episodes, hours=m.hours, origin=m.origin,
            drawn=_known(weights[i] * training[i]), share=_known(share[i]), epochs=_known(seen[i]),
        )
        for i, m in enumerate(members)
    )  # fmt: skip
    unknown = tuple(m.entry.name for m in members if m.steps is None)
    return Breakdown(mixture.name, rows, samples, float(np.nansum(weights * training)), unknown, mixture.stride)


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
