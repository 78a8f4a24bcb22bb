"""Charts as inline SVG, drawn by hand: a histogram of two series is all that the report needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 240, 110
_TOP, _BOTTOM, _SIDE = 14, 18, 6


@dataclass(frozen=True)
class Mark:
    """A vertical line in a histogram; `kind` is its CSS class, "before" or "after"."""

    value: float
    kind: str


def number(value: float) -> str:
    """Three significant digits, with a true minus sign.

    >>> number(-0.012345), number(25.0), number(0.0)
    ('−0.0123', '25', '0')
    """
    text = f"{value:.3g}"
    if "e" in text:
        mantissa, exponent = text.split("e")
        text = f"{mantissa}e{int(exponent)}"
    return ("0" if text in ("-0", "0") else text).replace("-", "−")


def ticks(low: float, high: float, most: int = 4) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) within [low, high], at most about `most` but at least two."""
    if not high > low:
        return [low]
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= raw * 0.999)
    found = [float(f"{i * step:.12g}") for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    return found if len(found) > 1 else ticks(low, high, most + 2)


def histogram(
    title: str,
    edges: NDArray[Any],
    seen: NDArray[np.int64],
    kept: NDArray[np.int64] | None = None,
    marks: Sequence[Mark] = (),
    description: str = "",
) -> str:
    """Draw counts as bars whose height is the square root of the count, so that rare values can be seen.

    Args:
        title: printed above the chart.
        edges: (bins + 1,).
        seen: (bins,), drawn pale.
        kept: (bins,), drawn over it in colour.
        marks: vertical lines.
        description: the chart in words, for who cannot see it.
    """
    low, high = float(edges[0]), float(edges[-1])
    span = high - low if high > low else 1.0
    plot = HEIGHT - _TOP - _BOTTOM
    top = math.sqrt(max(int(seen.max(initial=0)), 1))

    def x(value: float) -> float:
        return _SIDE + (WIDTH - 2 * _SIDE) * (value - low) / span

    def bars(counts: NDArray[np.int64]) -> str:
        width = (WIDTH - 2 * _SIDE) / len(counts)
        path = []
        for i in np.flatnonzero(counts):
            height = max(plot * math.sqrt(int(counts[i])) / top, 1.0)
            left = _SIDE + i * width
            path.append(f"M{left:.1f} {HEIGHT - _BOTTOM}v{-height:.1f}h{max(width - 0.6, 0.8):.1f}v{height:.1f}z")
        return "".join(path)

    base = HEIGHT - _BOTTOM
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(f"{title}. {description}", quote=True)}">',
        f'<path class="seen" d="{bars(seen)}"/>',
        f'<path class="kept" d="{bars(kept)}"/>' if kept is not None else "",
        f'<path class="axis" d="M{_SIDE} {base}H{WIDTH - _SIDE}"/>',
    ]
    for value in ticks(low, high):
        at = x(value)
        anchor = "start" if at < 22 else "end" if at > WIDTH - 22 else "middle"
        parts.append(f'<path class="axis" d="M{at:.1f} {base}v3"/>')
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - 3}" text-anchor="{anchor}">{number(value)}</text>')
    parts += [
        f'<path class="mark {mark.kind}" d="M{x(mark.value):.1f} {base}V{_TOP - 4}"/>'
        for mark in marks
        if low <= mark.value <= high
    ]
    parts.append("</svg>")
    return f'<figure class="chart"><figcaption>{escape(title)}</figcaption>{"".join(parts)}</figure>'
