"""How far predicted actions are from those of the data: pure functions of arrays."""

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
"""From metres and radians to the units shown: metres and degrees."""
GRIPPER = 6


@dataclass(frozen=True)
class Scores:
    """Errors over some steps, each step's current action unless said otherwise.

    Attributes:
        steps: how many. share: of all steps evaluated.
        token_accuracy: share of the 7 values that fall into the same action token as the data's; the last two bins of
            "openvla" decode to the same value and count as one.
        token_accuracies: the same for each dimension.
        l1: mean absolute error of each dimension in `UNITS`: metres, degrees, the gripper's own number.
        chunk_l1: the same over every action of the predicted chunk that the episode still has; None for chunks of 1.
        constant_l1: `l1` of always doing the data set's mean action: what a model must beat.
        gripper_accuracy: share of steps with the gripper on the right side of the middle of its range; None for a
            gripper that never moves.
        constant_gripper_accuracy: the same of always doing the mean action.
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
        """Keys and values; the dimensions' names are in `NAMES`."""
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

    Both are brought to real units by the same bounds. The data's actions were clipped to the bounds when they were
    normalised, so an error says nothing of what lies beyond them.

    Args:
        predicted: (n, K, 7), normalised; n at least 1.
        target: (n, K, 7), normalised.
        mask: (n, K), False past the episode's end.
        bounds: of the data set.
        bins: the cut that the tokens belong to.
        total: steps of all data sets, for the share; default n.
    """
    steps, chunk = predicted.shape[:2]
    same = bins.decode(bins.encode(predicted[:, 0])) == bins.decode(bins.encode(target[:, 0]))
    done, wanted = bounds.denormalize(predicted), bounds.denormalize(target)
    error = np.abs(done - wanted) * FACTORS
    # of a dimension that never moves and is not scaled the data holds 0, whatever its value
    mean = np.where(bounds.constant & ~bounds.mask, 0, bounds.mean)
    constant = np.abs(mean - wanted[:, 0]) * FACTORS
    middle = (bounds.min[GRIPPER] + bounds.max[GRIPPER]) / 2
    side = wanted[:, 0, GRIPPER] > middle
    right, usual = (done[:, 0, GRIPPER] > middle) == side, (mean[GRIPPER] > middle) == side
    return Scores(
        steps=steps,
        share=steps / (total or steps),
        token_accuracy=float(same.mean()),
        token_accuracies=_floats(same.mean(0)),
        l1=_floats(error[:, 0].mean(0)),
        chunk_l1=_floats(error[mask].mean(0)) if chunk > 1 else None,
        constant_l1=_floats(constant.mean(0)),
        gripper_accuracy=None if bounds.constant[GRIPPER] else float(right.mean()),
        constant_gripper_accuracy=None if bounds.constant[GRIPPER] else float(usual.mean()),
    )


def together(scores: Mapping[str, Scores]) -> Scores:
    """The mean over all steps of some data sets (of those that have the number). Units are taken to be the same."""
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


def _floats(values: NDArray[Any]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
