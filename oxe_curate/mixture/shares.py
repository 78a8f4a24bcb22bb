"""Weights, shares and epochs: three ways to say the same thing, and what each gives per data set.

A weight w_i is the expected number of copies of each of a data set's T_i steps. Then

    share_i  = w_i T_i / sum_j w_j T_j             of the samples, as OpenVLA's and Octo's loaders draw them
    epochs_i = N share_i / T_i                     how often each step is seen in N samples

Shares and epochs fix the weights up to a common factor, which decides how large one pass of the mixture is. Arrays are
float64 (data sets,); NaN stands for a size that is not known.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from oxe_curate.errors import ConfigError
from oxe_curate.mixture.members import Member, Origin
from oxe_curate.mixture.spec import Mixture

Floats = NDArray[np.float64]


def shares(weights: ArrayLike, steps: ArrayLike) -> Floats:
    """Share of the samples of each data set; NaN where the size is unknown, the others among themselves.

    >>> shares([1.0, 0.5], [100, 200]).tolist()
    [0.5, 0.5]
    """
    drawn = _floats(weights) * _floats(steps)
    total = np.nansum(drawn)
    return drawn / total if total > 0 else np.full_like(drawn, np.nan)


def epochs(weights: ArrayLike, steps: ArrayLike, samples: float) -> Floats:
    """How often each step is seen in `samples` samples; NaN where the size is unknown."""
    size = _floats(steps)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(size > 0, samples * shares(weights, size) / size, np.nan), np.float64)


def weights_for_shares(wanted: ArrayLike, steps: ArrayLike, one_pass: float | None = None) -> Floats:
    """Weights that draw the wanted shares (any positive numbers; only their ratios count).

    Args:
        wanted: shares.
        steps: of each data set; all must be known.
        one_pass: samples in one pass of the mixture, sum of w_i T_i. None: the largest weight becomes 1, so that no
            step is stored twice.

    Raises:
        ConfigError: a share or a size is zero, negative or unknown.
    """
    target, size = _positive(wanted, "share"), _positive(steps, "number of steps")
    return _scaled(target / size, size, one_pass)


def weights_for_epochs(wanted: ArrayLike, steps: ArrayLike, one_pass: float | None = None) -> Floats:
    """Weights that show each data set's steps the wanted number of times in `samples_for_epochs` samples.

    None for `one_pass` gives the epochs themselves: one pass of the mixture is the whole training.
    """
    target, size = _positive(wanted, "number of epochs"), _positive(steps, "number of steps")
    return target if one_pass is None else _scaled(target, size, one_pass)


def samples_for_epochs(wanted: ArrayLike, steps: ArrayLike) -> float:
    """How many samples a training needs that shows each data set's steps that often."""
    return float(np.dot(_floats(wanted), _floats(steps)))


def with_share(weights: ArrayLike, steps: ArrayLike, row: int, share: float) -> Floats:
    """Weights with one data set's share set, the other weights as they were.

    Raises:
        ConfigError: the share is not between 0 and 1, a size is unknown, or there is no other data set.
    """
    new, size = _positive(weights, "weight").copy(), _positive(steps, "number of steps")
    rest = float(np.delete(new * size, row).sum())
    if not 0 < share < 1 or len(new) < 2:
        raise ConfigError(f"a share lies between 0 and 1, and needs a second data set; found {share:g}")
    new[row] = share / (1 - share) * rest / size[row]
    return new


def with_epochs(weights: ArrayLike, steps: ArrayLike, row: int, wanted: float, samples: float) -> Floats:
    """Weights with one data set's epochs in `samples` samples set, the other weights as they were.

    Raises:
        ConfigError: as `with_share`; so many epochs need more samples than there are.
    """
    share = wanted * float(_floats(steps)[row]) / samples
    if share >= 1:
        raise ConfigError(
            f"{wanted:g} epochs of {_floats(steps)[row]:,.0f} steps do not fit into {samples:,.0f} samples"
        )
    return with_share(weights, steps, row, share)


def with_hours(weights: ArrayLike, steps: ArrayLike, row: int, hours: float, control_hz: float) -> Floats:
    """Weights with one data set's hours in a pass of the mixture set (copies counted), the others as they were."""
    new, size = _positive(weights, "weight").copy(), _positive(steps, "number of steps")
    new[row] = hours * 3600 * control_hz / size[row]
    return _positive(new, "weight")


def rebalance(weights: ArrayLike, steps: ArrayLike, row: int, share: float, locked: Collection[int] = ()) -> Floats:
    """Weights with one data set's share set and one pass as large as before: locked ones stay, the rest give or take.

    Raises:
        ConfigError: no unlocked data set is left, or the locked ones leave no room for the share.
    """
    old, size = _positive(weights, "weight"), _positive(steps, "number of steps")
    before = shares(old, size)
    others = np.arange(len(old)) != row
    free = others & ~np.isin(np.arange(len(old)), list(locked))
    held = float(before[others & ~free].sum())
    room = 1 - held - share
    if share <= 0 or room <= 0 or not free.any():
        raise ConfigError(
            f"a share of {100 * share:.3g} % leaves no room: the locked data sets hold {100 * held:.3g} %. Unlock one."
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
        shown = "not known" if np.isnan(array[bad[0]]) else f"{array[bad[0]]:g}"
        raise ConfigError(f"the {what} of data set {bad[0] + 1} is {shown}; it must be above zero")
    return array


def _scaled(weights: Floats, steps: Floats, one_pass: float | None) -> Floats:
    factor = 1 / weights.max() if one_pass is None else one_pass / float(weights @ steps)
    return np.asarray(weights * factor, np.float64)


@dataclass(frozen=True)
class Row:
    """A data set of a mixture in numbers; None where a number is not known.

    Attributes:
        name: as the mixture writes it. card: the card's name.
        steps, episodes, hours: of the data set, at weight 1.
        origin: "index", "published" (the card's count of the whole data set) or "unknown".
        drawn: expected samples of one pass of the mixture, the validation share taken off. With a stride a sample is
            a window, and a data set has about steps / stride of them.
        share: of the samples. An upper bound where `Breakdown.unknown` is not empty.
        epochs: how often each training sample is seen in `Breakdown.samples` samples; likewise.
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
    """A mixture in numbers.

    Attributes:
        samples: what `epochs` is counted over; None: not asked.
        one_pass: expected samples of one pass, over the data sets of known size.
        unknown: names whose size nothing tells. Shares are then of the others alone: each is at most that.
        stride: steps from a sample to the next.
    """

    name: str
    rows: tuple[Row, ...]
    samples: int | None
    one_pass: float
    unknown: tuple[str, ...]
    stride: int = 1

    @property
    def hours(self) -> float | None:
        """Hours of data in one pass, copies counted; None where a size or a rate is not known."""
        hours = 0.0
        for row in self.rows:
            if row.drawn is None or not row.control_hz:
                return None
            hours += row.drawn * self.stride / row.control_hz / 3600
        return hours


def breakdown(mixture: Mixture, members: Sequence[Member], samples: int | None = None) -> Breakdown:
    """What a mixture gives: share, steps, episodes, hours and epochs per data set.

    Args:
        mixture: its validation share is taken off the steps that are drawn.
        members: as `members.members` gives them.
        samples: length of a training; None leaves epochs out.
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
