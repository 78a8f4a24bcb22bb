"""Curves of predicted and true actions: one small chart per dimension, as coordinates of an SVG."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oxe_curate.train.evaluation.scores import FACTORS, GRIPPER_INDEX, NAMES, UNITS
from oxe_curate.ui.svg import number, ticks

_WIDTH, _HEIGHT = 240, 124
_TOP, _BOTTOM, _LEFT, _RIGHT = 10, 18, 38, 6
_ORDER = (0, 1, 2, 6, 3, 4, 5)
"""x, y, z and gripper in one row of four, the rotation below."""


@dataclass(frozen=True)
class Chart:
    """One dimension over time, ready to draw.

    Attributes:
        name: of the dimension. unit: "" for none. error: mean absolute error, as text. steps: their number.
        values: (y, text) of each grid line. times: (x, text anchor, text) of each tick.
        target, predicted: SVG paths.
        size: width and height. left, right, bottom: edges of the plot area.
    """

    name: str
    unit: str
    error: str
    steps: int
    values: list[tuple[float, str]]
    times: list[tuple[float, str, str]]
    target: str
    predicted: str
    size: tuple[int, int] = (_WIDTH, _HEIGHT)
    left: int = _LEFT
    right: int = _WIDTH - _RIGHT
    bottom: int = _HEIGHT - _BOTTOM


def episode_charts(
    steps: NDArray[np.int64], target: NDArray[np.float64], predicted: NDArray[np.float64]
) -> list[Chart]:
    """Seven charts of one episode.

    Args:
        steps: (T,), ascending; curves are interrupted at missing steps.
        target: (T, 7), in metres and radians (or the data set's own units).
        predicted: (T, 7), in the same units.
    """
    return [
        chart(NAMES[d], UNITS[d], steps, target[:, d] * FACTORS[d], predicted[:, d] * FACTORS[d], d == GRIPPER_INDEX)
        for d in _ORDER
    ]


def chart(
    name: str, unit: str, steps: NDArray[np.int64], target: NDArray[Any], predicted: NDArray[Any], stairs: bool = False
) -> Chart:
    """One dimension over time.

    Args:
        name: of the dimension.
        unit: of the values, "" for none.
        steps: (T,), ascending, at least one.
        target: (T,).
        predicted: (T,); values that are not finite are not drawn.
        stairs: draw as stairs, for a gripper.
    """
    values = np.concatenate([target, predicted])
    values = values[np.isfinite(values)] if np.isfinite(values).any() else np.zeros(1)
    low, high = float(values.min()), float(values.max())
    margin = 0.06 * (high - low) or max(abs(high), 1.0) * 0.1
    low, high = low - margin, high + margin
    first, last = int(steps[0]), max(int(steps[-1]), int(steps[0]) + 1)

    def x(step: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (step - first) / (last - first)

    def y(value: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - value) / (high - low)

    def path(series: NDArray[Any]) -> str:
        parts, before = [], None
        for step, value in zip(steps.tolist(), series.tolist(), strict=True):
            if not np.isfinite(value):
                before = None
                continue
            joined = before == step - 1
            if joined and stairs:
                parts.append(f"H{x(step):.1f}V{y(value):.1f}")
            else:
                parts.append(f"{'L' if joined else 'M'}{x(step):.1f} {y(value):.1f}")
            before = step
        return "".join(parts)

    times = sorted({int(t) for t in ticks(first, last)})
    return Chart(
        name=name,
        unit=unit,
        error=number(float(np.mean(np.abs(predicted - target)))),
        steps=len(steps),
        values=[(round(y(value), 1), number(value)) for value in ticks(low, high, 3)],
        times=[(round(x(t), 1), "end" if x(t) > _WIDTH - 16 else "middle", str(t)) for t in times],
        target=path(target),
        predicted=path(predicted),
    )
