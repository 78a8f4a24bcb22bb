"""Errors of predicted actions: pure functions of arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oxe_curate.actions.bins import ActionBins
from oxe_curate.actions.bounds import Bounds
from oxe_curate.actions.dimensions import DIMENSIONS

NAMES = tuple(name for name, _, _ in DIMENSIONS)
UNITS = tuple(unit for _, unit, _ in DIMENSIONS)
FACTORS = np.array([factor for _, _, factor in DIMENSIONS])
"""Factors from metres and radians to the units shown, metres and degrees."""
GRIPPER_INDEX = 6


@dataclass(frozen=True)
class Scores:
    """Errors over some steps, of the current action unless stated otherwise.

    Attributes:
        steps: number of steps. share: of all steps evaluated.
        token_accuracy: share of the 7 values with the same action token as the data; the last two bins of "openvla"
            decode to the same value and count as one.
        token_accuracies: the same for each dimension.
        l1: mean absolute error of each dimension in `UNITS`: metres, degrees, the gripper's own number.
        chunk_l1: the same over all actions of the predicted chunk within the episode; None for chunks of 1.
        constant_l1: `l1` of always predicting the data set's mean action, the baseline.
        gripper_accuracy: share of steps with the gripper on the correct side of the middle of its range; None for a
            gripper that never moves.
        constant_gripper_accuracy: the same for always predicting the mean action.
    """

    steps: int
    share: float
    token_accuracy: float
    token_accuracies: tuple[float, ...]
    l1: tuple[float, ...]
    chunk_l1: tuple[float, ...] | None
    constant_l1: tuple[float, ...]
    gripper_accuracy: float | None
    constant_gripper_accuracy: float | None

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values; `NAMES` has the names of the dimensions."""
        return asdict(self)


def score(
    predicted: NDArray[np.float32],
    target: NDArray[np.float32],
    mask: NDArray[np.bool_],
    bounds: Bounds,
    bins: ActionBins,
    total: int | None = None,
) -> Scores:
    """Compare predictions with the data.

    Both are denormalized by the same bounds. The actions of the data were clipped to the bounds, so errors do not cover
    values outside them.

    Args:
        predicted: (n, K, 7), normalized; n at least 1.
        target: (n, K, 7), normalized.
        mask: (n, K), False after the end of the episode.
        bounds: of the data set.
        bins: of the action tokens.
        total: steps of all data sets, for the share; default n.
    """
    steps, chunk = predicted.shape[:2]
    same = bins.decode(bins.encode(predicted[:, 0])) == bins.decode(bins.encode(target[:, 0]))
    done, truth = bounds.denormalize(predicted), bounds.denormalize(target)
    error = np.abs(done - truth) * FACTORS
    # an unscaled dimension that never moves is 0 in the data, whatever its value
    mean = np.where(bounds.constant & ~bounds.mask, 0, bounds.mean)
    constant = np.abs(mean - truth[:, 0]) * FACTORS
    middle = (bounds.min[GRIPPER_INDEX] + bounds.max[GRIPPER_INDEX]) / 2
    side = truth[:, 0, GRIPPER_INDEX] > middle
    right, usual = (done[:, 0, GRIPPER_INDEX] > middle) == side, (mean[GRIPPER_INDEX] > middle) == side
    return Scores(
        steps=steps,
        share=steps / (total or steps),
        token_accuracy=float(same.mean()),
        token_accuracies=_floats(same.mean(0)),
        l1=_floats(error[:, 0].mean(0)),
        chunk_l1=_floats(error[mask].mean(0)) if chunk > 1 else None,
        constant_l1=_floats(constant.mean(0)),
        gripper_accuracy=None if bounds.constant[GRIPPER_INDEX] else float(right.mean()),
        constant_gripper_accuracy=None if bounds.constant[GRIPPER_INDEX] else float(usual.mean()),
    )


def together(scores: Mapping[str, Scores]) -> Scores:
    """The mean over all steps of some data sets (those that have the number), assuming the same units."""
    parts = list(scores.values())

    def mean(values: Sequence[Any]) -> Any:
        kept = [(part.steps, value) for part, value in zip(parts, values, strict=True) if value is not None]
        return np.average([v for _, v in kept], axis=0, weights=[n for n, _ in kept]) if kept else None

    chunk, gripper = mean([p.chunk_l1 for p in parts]), mean([p.gripper_accuracy for p in parts])
    usual = mean([p.constant_gripper_accuracy for p in parts])
    return Scores(
        steps=sum(p.steps for p in parts),
        share=1.0,
        token_accuracy=float(mean([p.token_accuracy for p in parts])),
        token_accuracies=_floats(mean([p.token_accuracies for p in parts])),
        l1=_floats(mean([p.l1 for p in parts])),
        chunk_l1=None if chunk is None else _floats(chunk),
        constant_l1=_floats(mean([p.constant_l1 for p in parts])),
        gripper_accuracy=None if gripper is None else float(gripper),
        constant_gripper_accuracy=None if usual is None else float(usual),
    )


def percent(share: float | None) -> str:
    """A share in percent with one decimal, rounded to 0 or 100 only if it is exact; "–" for None.

    >>> percent(0.5), percent(1e-5), percent(0.99999), percent(None)
    ('50.0 %', '<0.1 %', '99.9 %', '–')
    """
    if share is None:
        return "–"
    text = f"{100 * share:.1f}"
    if text == "0.0" and share > 0:
        return "<0.1 %"
    return "99.9 %" if text == "100.0" and share < 1 else f"{text} %"


def _floats(values: NDArray[Any]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
