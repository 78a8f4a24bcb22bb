"""Findings that need more than one data set's actions: dimensions that others use, and the bounds of a mixture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oxe_curate.quality.action_facts import DIMENSIONS, ActionFacts
from oxe_curate.quality.findings import CardFacts, DataFinding, Severity, as_percent, digits
from oxe_curate.quality.plausibility import ENOUGH_STEPS

_CLIPPED, _MOSTLY = 0.03, 0.25
"""Shares of values outside the bounds from which it is a warning, and an error."""
_WIDE = 10.0


def judge_kin(facts: Mapping[str, ActionFacts], cards: Mapping[str, CardFacts]) -> dict[str, list[DataFinding]]:
    """Dimensions that are constant in one data set and used in another one of the same robot and encoding."""
    found: dict[str, list[DataFinding]] = {}
    for name, own in facts.items():
        kin = [
            (other, theirs)
            for other, theirs in facts.items()
            if other != name and cards[name].kin == cards[other].kin and theirs.steps >= ENOUGH_STEPS
        ]
        if not cards[name].kin or own.steps < ENOUGH_STEPS or not any(own.varies(d) for d in range(6)):
            continue
        for d in range(6):
            used = [other for other, theirs in kin if theirs.varies(d) and theirs.zeros[d] < 0.5]
            if own.varies(d) or cards[name].constant[d] or not used:
                continue
            text = (
                f"{DIMENSIONS[d]} is {digits(own.low(d))} at all {own.steps:,} steps, but varies in {_some(used)} "
                f"({cards[name].kin})"
            )
            advice = (
                f"Check which column has {DIMENSIONS[d]} in the card's recipe; if the robot does not use it here, "
                "write {const: 0, width: 1}."
            )
            found.setdefault(name, []).append(
                DataFinding(
                    name="constant_dimension", severity="warning", dimension=DIMENSIONS[d], text=text, advice=advice
                )
            )
    return found


@dataclass(frozen=True, eq=False)
class UsedBounds:
    """The bounds that a mixture normalises a data set with.

    Attributes:
        low, high: float64 (7,).
        mask: bool (7,), which dimensions are scaled.
        source: the file that they come from; "" if they are computed from the data.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    mask: NDArray[np.bool_]
    source: str


def judge_bounds(facts: ActionFacts, card: CardFacts, bounds: UsedBounds) -> Iterator[DataFinding]:
    """Compare the bounds of a mixture with the values: clipped values, bounds that collapse, and far too wide ones."""
    where = f"the bounds of {bounds.source}" if bounds.source else "the mixture's bounds"
    advice = (
        "Use the statistics of this data set (bounds: {over: kept}), or correct the scale in its card: the file may be "
        "of another version, unit or recipe."
        if bounds.source
        else "Use quantiles closer to 0 and 1 in the mixture's bounds."
    )
    if facts.steps < ENOUGH_STEPS:
        return
    collapsed, clipped, wide = [], [], []
    for d in np.flatnonzero(bounds.mask[:7]).tolist():
        low, high = float(bounds.low[d]), float(bounds.high[d])
        if card.constant[d] or not facts.varies(d):
            continue
        if high - low <= 1e-5 * (facts.high(d) - facts.low(d)):
            collapsed.append((0.0, d))
        elif (outside := facts.outside(d, low, high)) > _CLIPPED:
            clipped.append((outside, d))
        elif bounds.source and high - low > _WIDE * (facts.at(d, 0.99) - facts.at(d, 0.01)):
            wide.append(((high - low) / max(facts.at(d, 0.99) - facts.at(d, 0.01), 1e-12), d))

    def finding(
        name: str, severity: Severity, worst: tuple[float, int], all_: list[tuple[float, int]], text: str
    ) -> DataFinding:
        d = worst[1]
        low, high = digits(float(bounds.low[d])), digits(float(bounds.high[d]))
        values = f"{digits(facts.at(d, 0.01))} to {digits(facts.at(d, 0.99))}"
        names = ", ".join(DIMENSIONS[d] for _, d in all_)
        measured = f"{names}: {text} ({DIMENSIONS[d]}: bounds {low} to {high}, values {values})"
        return DataFinding(name=name, severity=severity, dimension=names, text=measured, advice=advice)

    if collapsed:
        text = f"{where} are equal, though the values vary: normalised, all are -1 or 1"
        yield finding("bounds_collapse", "error", collapsed[0], collapsed, text)
    if clipped:
        worst = max(clipped)
        text = f"up to {as_percent(worst[0])} of the values are outside {where}, and are clipped"
        yield finding("outside_bounds", "error" if worst[0] > _MOSTLY else "warning", worst, clipped, text)
    if wide:
        worst = max(wide)
        text = f"{where} are up to {worst[0]:.0f} times wider than the values, which use few bins"
        yield finding("wide_bounds", "warning", worst, wide, text)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
