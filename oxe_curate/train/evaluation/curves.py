"""Predicted against true action curves as inline SVG: one small chart per dimension, in the style of the report."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oxe_curate.train.evaluation.scores import FACTORS, GRIPPER, NAMES, UNITS
from oxe_curate.ui.svg import number, ticks

WIDTH, HEIGHT = 240, 124
_TOP, _BOTTOM, _LEFT, _RIGHT = 10, 18, 38, 6
ORDER = (0, 1, 2, 6, 3, 4, 5)
"""x, y, z, gripper in one row of four, the rotation below."""
STYLE = """
.charts.curves { grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); }
.curve { fill: none; stroke-width: 1.5; stroke-linejoin: round; }
.curve.true { stroke: var(--soft); stroke-dasharray: 3.5 2.5; } .curve.predicted { stroke: var(--kept); }
.grid { stroke: var(--line); fill: none; stroke-width: .7; }
.swatch.true, .swatch.predicted { background: none; border-radius: 0; height: 0; width: 1.2rem; }
.swatch.true { border-top: 2px dashed var(--soft); } .swatch.predicted { border-top: 2px solid var(--kept); }
.episode-curves { margin-top: 1.8rem; break-inside: avoid; }
.episode-curves h3 { margin-bottom: .1rem; }
.frames { display: flex; gap: 4px; margin: .5rem 0 .7rem; }
.frames img { width: 7rem; height: auto; border-radius: 4px; }
.unit { color: var(--soft); font-weight: 400; }
td.worse { color: var(--dropped); }
@media print { .charts.curves { grid-template-columns: repeat(4, 1fr); } }
"""
LEGEND = (
    '<ul class="legend"><li><span class="swatch true"></span>data</li>'
    '<li><span class="swatch predicted"></span>model</li></ul>'
)


def episode(steps: NDArray[np.int64], target: NDArray[np.float64], predicted: NDArray[np.float64]) -> str:
    """Seven charts of one episode.

    Args:
        steps: (T,), ascending; a line is broken where steps are missing.
        target: (T, 7), in metres and radians (or the data set's own units).
        predicted: (T, 7), the same.
    """
    drawn = [chart(NAMES[d], UNITS[d], steps, target[:, d] * FACTORS[d], predicted[:, d] * FACTORS[d], d == GRIPPER)
             for d in ORDER]  # fmt: skip
    return f'<div class="charts curves">{"".join(drawn)}</div>'


def chart(
    name: str, unit: str, steps: NDArray[np.int64], target: NDArray[Any], predicted: NDArray[Any], held: bool = False
) -> str:
    """One dimension over time.

    Args:
        name: stands above the chart.
        unit: behind it, "" for none.
        steps: (T,), ascending, at least one.
        target: (T,), dashed.
        predicted: (T,), solid; nothing is drawn where a value is not finite.
        held: draw as stairs, for a gripper.
    """
    values = np.concatenate([target, predicted])
    values = values[np.isfinite(values)] if np.isfinite(values).any() else np.zeros(1)
    low, high = float(values.min()), float(values.max())
    margin = 0.06 * (high - low) or max(abs(high), 1.0) * 0.1
    low, high = low - margin, high + margin
    first, last = int(steps[0]), max(int(steps[-1]), int(steps[0]) + 1)

    def x(step: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * (step - first) / (last - first)

    def y(value: float) -> float:
        return _TOP + (HEIGHT - _TOP - _BOTTOM) * (high - value) / (high - low)

    def line(series: NDArray[Any]) -> str:
        path, before = [], None
        for step, value in zip(steps.tolist(), series.tolist(), strict=True):
            if not np.isfinite(value):
                before = None
                continue
            joined = before == step - 1
            if joined and held:
                path.append(f"H{x(step):.1f}V{y(value):.1f}")
            else:
                path.append(f"{'L' if joined else 'M'}{x(step):.1f} {y(value):.1f}")
            before = step
        return "".join(path)

    parts = []
    for value in ticks(low, high, 3):
        parts.append(f'<path class="grid" d="M{_LEFT} {y(value):.1f}H{WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 4}" y="{y(value) + 3.5:.1f}" text-anchor="end">{number(value)}</text>')
    for step in sorted({int(t) for t in ticks(first, last)}):
        at = x(step)
        anchor = "end" if at > WIDTH - 16 else "middle"
        parts.append(f'<path class="axis" d="M{at:.1f} {HEIGHT - _BOTTOM}v3"/>')
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - 4}" text-anchor="{anchor}">{step}</text>')
    parts.append(f'<path class="axis" d="M{_LEFT} {HEIGHT - _BOTTOM}H{WIDTH - _RIGHT}"/>')
    parts.append(f'<path class="curve true" d="{line(target)}"/>')
    parts.append(f'<path class="curve predicted" d="{line(predicted)}"/>')
    error = float(np.mean(np.abs(predicted - target)))
    told = f"{name}: mean error {number(error)} {unit}".rstrip() + f" over {len(steps)} steps"
    behind = f"{unit} · error {number(error)}" if unit else f"error {number(error)}"
    return (
        f'<figure class="chart"><figcaption>{escape(name)} <span class="unit">{escape(behind)}</span></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(told, quote=True)}">{"".join(parts)}</svg>'
        "</figure>"
    )
