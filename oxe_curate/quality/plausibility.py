"""Judge a data set's standardised actions: what does not look like metres, radians and 1 = open.

Published data sets whose actions are not metric, such as those of OpenVLA's mixtures, only get warnings.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from oxe_curate.quality.action_facts import DIMENSIONS, ActionFacts
from oxe_curate.quality.findings import CardFacts, DataFinding, Severity, as_percent, digits
from oxe_curate.quality.follows import Follows

ENOUGH_STEPS = 50
"""With fewer steps, only values that are not finite are reported."""
_SURE_STEPS = 100
"""With fewer steps, nothing is an error except values that are not finite."""
_STILL = 0.002
"""Metres in an episode, and in a step, below which it is noise."""
_OTHER_COLUMNS = "Correct src and cols of xyz and rpy in the card's recipe: they read columns that do not change."


def judge_actions(facts: ActionFacts, card: CardFacts) -> list[DataFinding]:
    """Judge the actions of a data set; errors first."""
    found = list(_not_finite(facts))
    if facts.steps >= ENOUGH_STEPS:
        still = [*_never_moves(facts)]
        found += still
        if not still:
            found += [*_half_still(facts, card), *_collapse(facts, card), *_identical(facts), *_jumps(facts, card)]
            found += [*_translation(facts, card), *_rotation(facts, card), *_axes(facts)]
        found += _gripper(facts, card)
    return sorted(found, key=lambda f: f.severity != "error")


def _finding(
    facts: ActionFacts, name: str, severity: Severity, dimension: str | None, text: str, advice: str
) -> DataFinding:
    sure = facts.steps >= _SURE_STEPS or name == "not_finite"
    return DataFinding(
        name=name, severity=severity if sure else "warning", dimension=dimension, text=text, advice=advice
    )


def _not_finite(facts: ActionFacts) -> Iterator[DataFinding]:
    if facts.not_finite:
        total = facts.steps + facts.not_finite
        text = f"{facts.not_finite:,} of {total:,} steps of kept episodes have an action that is not finite"
        yield _finding(facts, "not_finite", "error", None, text, "Filter again with the criterion not_finite: true.")


def _never_moves(facts: ActionFacts) -> Iterator[DataFinding]:
    if any(facts.varies(d) for d in range(6)):
        small = facts.path < _STILL and facts.turning < _STILL / 10 and not (facts.xyz and _r(facts.xyz) > 0.8)
        if small and max(facts.high(d) - facts.low(d) for d in range(6)) < _STILL:
            text = f"xyz moves by {1000 * facts.path:.2g} mm in the median episode, and rpy does not: it never moves"
            yield _finding(facts, "never_moves", "error", None, text, _OTHER_COLUMNS)
        return
    if max(abs(facts.high(d)) for d in range(6)) < 1e-6:
        text = f"xyz and rpy are zero at all {facts.steps:,} steps: the data set never moves"
        name = "never_moves"
    else:
        text = f"xyz and rpy have the same value at all {facts.steps:,} steps"
        name = "same_action"
    yield _finding(facts, name, "error", None, text, _OTHER_COLUMNS)


def _half_still(facts: ActionFacts, card: CardFacts) -> Iterator[DataFinding]:
    """xyz that are constant or of one sign, although rpy or other dimensions move."""
    if not any(facts.varies(d) or card.constant[d] for d in range(3)):
        text = f"xyz have the same value at all {facts.steps:,} steps, and only rpy changes"
        yield _finding(facts, "never_moves", "error", "xyz", text, _OTHER_COLUMNS)
    for d in range(3):
        low, high = facts.low(d), facts.high(d)
        if not facts.varies(d) or (low < 0 < high) or facts.zeros[d] < 0.1:
            continue
        text = (
            f"{DIMENSIONS[d]} is never {'negative' if low >= 0 else 'positive'} ({digits(low)} to {digits(high)}), and "
            f"zero at {as_percent(facts.zeros[d])} of the steps"
        )
        advice = "A displacement has both signs: remove clip from xyz in the card's recipe, or correct cols."
        yield _finding(facts, "one_sided", "warning", DIMENSIONS[d], text, advice)


def _collapse(facts: ActionFacts, card: CardFacts) -> Iterator[DataFinding]:
    flat = [
        d for d in range(6)
        if not card.constant[d] and facts.varies(d)
        and facts.at(d, 0.99) - facts.at(d, 0.01) <= 1e-5 * (facts.high(d) - facts.low(d))
    ]  # fmt: skip
    if flat:
        d, names = flat[0], ", ".join(DIMENSIONS[d] for d in flat)
        text = (
            f"{names}: the 1st and 99th percentiles are equal ({digits(facts.at(d, 0.01))} for {DIMENSIONS[d]}), but "
            f"values go from {digits(facts.low(d))} to {digits(facts.high(d))}: normalised, all are -1 or 1"
        )
        advice = (
            "Check that the card reads the right columns. If the values are right, use wider bounds in the mixture "
            "(bounds: {low: 0, high: 1}), or a constant in the card."
        )
        yield _finding(facts, "bounds_collapse", "error", names, text, advice)


def _identical(facts: ActionFacts) -> Iterator[DataFinding]:
    pairs = [(i, j) for i, j in facts.same if j < 6 or i == 6]
    if pairs:
        names = ", ".join(f"{DIMENSIONS[i]} = {DIMENSIONS[j]}" for i, j in pairs)
        text = f"{names} at all {facts.steps:,} steps"
        advice = "Correct cols in the card's recipe: two dimensions read the same column."
        yield _finding(facts, "identical_dimensions", "error", DIMENSIONS[pairs[0][1]], text, advice)


def _jumps(facts: ActionFacts, card: CardFacts) -> Iterator[DataFinding]:
    """Rare jumps only widen the tails: published Bridge has them at 0.01 % of its steps, and is a warning."""
    unit = "2 pi" if facts.turn < 7 else "360"
    for d in range(3):
        share, between = facts.turns[d], facts.turns_between[d]
        if not share:
            continue
        often = share * facts.steps > 1.5 and (share >= 0.001 or facts.turned >= 0.05)
        name, where = DIMENSIONS[3 + d], f"in {as_percent(facts.turned)} of the episodes"
        if between >= share:
            text = f"{name} jumps by {unit} between {as_percent(share)} of the steps, {where}"
            advice = (
                "These are angles that cross -180 degrees, not changes of angles: add the operations delta and wrap to "
                "rpy in the card's recipe, with trim: {last: 1}."
            )
            severity: Severity = "error" if often and not card.published else "warning"
        else:
            text = (
                f"{name} is near {unit} at {as_percent(share)} of the steps, in {as_percent(facts.turned)} of episodes"
            )
            advice = (
                "A difference of two angles is not wrapped: add the operation wrap after delta to rpy in the card's "
                "recipe."
            )
            severity = "error" if often else "warning"
        if unit == "360":
            advice += " The angles are in degrees: first multiply them by 0.0174533 (op: affine)."
        yield _finding(facts, "rotation_jumps", severity, name, text, advice)


def _rate(card: CardFacts) -> tuple[float, str]:
    return (card.control_hz, f"at {card.control_hz:g} Hz") if card.control_hz else (5.0, "at an assumed 5 Hz")


def _translation(facts: ActionFacts, card: CardFacts) -> Iterator[DataFinding]:
    hz, rate = _rate(card)
    if absolute := _is_absolute(facts, 0, facts.xyz):
        advice = "Take differences: add the operation delta to xyz in the card's recipe, with trim: {last: 1}."
        yield _finding(facts, "absolute_xyz", "warning", "xyz", f"xyz are positions: {absolute}", advice)
        return
    speed = facts.speed * hz
    scale = _scale(facts.xyz, hz)
    if scale:
        advice = f"Multiply xyz by {digits(scale)} in the card's recipe ({{op: affine, scale: {digits(scale)}}})."
        assert facts.xyz is not None
        text = f"xyz: one unit moves the state by {digits(facts.xyz.gain)} of its units (r = {_r(facts.xyz):.2f})"
        yield _finding(facts, "xyz_scale", "warning", "xyz", text, advice)
    elif speed > 2.5 and not (facts.xyz and _fits(facts.xyz)):
        text = (
            f"xyz: {digits(facts.speed)} per step is the median {rate}, {digits(speed)} m/s if it were metres; robot "
            "arms move at 0.01 to 2 m/s"
        )
        advice = (
            "Multiply xyz by the size of its unit in metres in the card's recipe: 0.01 for centimetres, 0.001 for "
            "millimetres, the controller's scale for a normalised action (op: affine)."
        )
        yield _finding(facts, "xyz_scale", "warning", "xyz", text, advice)
    elif 0 < speed < 0.001 and not (facts.xyz and _fits(facts.xyz)):
        text = (
            f"xyz: {digits(facts.speed)} per step is the median {rate}, {digits(1000 * speed)} mm/s if it were metres"
        )
        advice = "Check the scale of xyz in the card's recipe: robot arms move at 0.01 to 2 m/s."
        yield _finding(facts, "xyz_scale", "warning", "xyz", text, advice)


def _rotation(facts: ActionFacts, card: CardFacts) -> Iterator[DataFinding]:
    hz, rate = _rate(card)
    if absolute := _is_absolute(facts, 3, facts.rpy):
        advice = (
            "Take differences: add the operations delta and wrap to rpy in the card's recipe, with trim: {last: 1}."
        )
        yield _finding(facts, "absolute_rpy", "warning", "rpy", f"rpy are orientations: {absolute}", advice)
        return
    if max(facts.turns_between) > 0.001:
        return  # angles that cross -180 degrees, which `_jumps` reports
    largest = max(max(-facts.at(d, 0.01), facts.at(d, 0.99)) for d in range(3, 6))
    degrees = "Multiply rpy by 0.0174533 in the card's recipe (op: affine)."
    gain = facts.rpy.gain if facts.rpy and _r(facts.rpy) > 0.8 else None
    if gain and 0.5 < gain * 180 / math.pi < 2:
        text = f"rpy: one unit turns the state by {digits(gain)} of its units (r = {_r(facts.rpy):.2f}): degrees"
        yield _finding(facts, "rpy_scale", "warning", "rpy", text, degrees)
    elif largest > 3.3 and max(facts.turns) < 0.005:
        text = f"rpy: 1 % of the steps turn by more than {digits(largest)}; a step in radians is at most 3.14"
        yield _finding(facts, "rpy_scale", "warning", "rpy", text, f"These may be degrees. {degrees}")
    elif facts.turning * hz > 6 and not (facts.rpy and _fits(facts.rpy)):
        text = (
            f"rpy: {digits(facts.turning)} per step is the median {rate}, {digits(facts.turning * hz)} rad/s if it "
            "were radians; robot arms turn at less than 3 rad/s"
        )
        advice = f"These may be degrees or a normalised action. {degrees[:-1]}, or by the controller's scale."
        yield _finding(facts, "rpy_scale", "warning", "rpy", text, advice)


def _is_absolute(facts: ActionFacts, first: int, follows: Follows | None) -> str:
    """Why three dimensions are values of a pose; "" if they are not."""
    if follows is not None:
        level, moved = min(map(abs, _used(follows.levels))), _r(follows)
        near = 0.8 < follows.level_gain < 1.25 and follows.level_error < 0.5
        if level > 0.97 and near and level > moved + 0.02 and facts.roughness[first] < 0.7:
            return f"they equal the next step's state (r = {level:.2f}, {digits(follows.level_gain)} for one unit)"
        if _fits(follows):
            return ""
    for d in range(first, first + 3):
        low, high, spread = facts.at(d, 0.01), facts.at(d, 0.99), facts.std[d]
        far = abs(facts.mean[d]) > 2 * spread and (low > 0 or high < 0)
        if far and facts.varies(d) and facts.roughness[d] < 0.4 and min(abs(low), abs(high)) > 0.2 * abs(high - low):
            return (
                f"{DIMENSIONS[d]} stays between {digits(low)} and {digits(high)}, far from zero, and changes by only "
                f"{as_percent(facts.roughness[d])} of its spread per step"
            )
    return ""


def _used(values: tuple[float, ...]) -> list[float]:
    return [v for v in values if v != 0.0] or [0.0]


def _r(follows: Follows | None) -> float:
    """The smallest correlation of the columns that vary."""
    return min(map(abs, _used(follows.moves))) if follows else 0.0


def _fits(follows: Follows) -> bool:
    """Whether the state's displacement is the action's, in the same unit; controllers undershoot commands."""
    return _r(follows) > 0.8 and 0.4 < follows.gain < 2.5


def _scale(follows: Follows | None, hz: float) -> float:
    """The factor that turns the action into the state's displacement; 0 if none is needed or known."""
    if follows is None or _r(follows) < 0.8 or not follows.gain or 0.4 < follows.gain < 2.5:
        return 0.0
    if 0.6 < follows.gain * hz < 1.6:
        return 1 / hz
    power = 10.0 ** round(math.log10(follows.gain))
    return power if 0.5 < follows.gain / power < 2 else follows.gain


def _axes(facts: ActionFacts) -> Iterator[DataFinding]:
    for first, part, follows in ((0, "xyz", facts.xyz), (3, "rpy", facts.rpy)):
        for d in range(3) if follows else ():
            assert follows is not None
            r, other, crossed = follows.moves[d], follows.crossed[d], follows.crossed_moves[d]
            gain = follows.crossed_gains[d]
            name = DIMENSIONS[first + d]
            if r < -0.85 and other == d and (first == 0 or 0.7 < -follows.gains[d] < 1.4):
                text = f"{name} of the state falls when the action raises it (r = {r:.2f})"
                advice = f"Invert {name} in the card's recipe ({{op: affine, scale: -1}}), or use the state's frame."
                yield _finding(facts, "inverted_axis", "warning", name, text, advice)
            elif (
                abs(crossed) > 0.9
                and abs(crossed) - abs(r) > 0.3
                and other != d
                and (first == 0 or 0.7 < abs(gain) < 1.4)
            ):
                text = (
                    f"the action's {name} moves the state's {DIMENSIONS[first + other]} (r = {crossed:.2f}), not its "
                    f"{name} (r = {r:.2f})"
                )
                advice = f"Correct the order of the columns of {part} in the card's recipe."
                yield _finding(facts, "swapped_axes", "warning", name, text, advice)


def _gripper(facts: ActionFacts, card: CardFacts) -> Iterator[DataFinding]:
    if card.constant[6]:
        return
    low, high = facts.low(6), facts.high(6)
    span = f"gripper: values from {digits(low)} to {digits(high)}"
    outside = facts.outside(6, -0.05, 1.05)
    if low < -0.05 or high > 1.05:
        severity: Severity = "warning" if card.published or outside < 0.001 else "error"
        text = f"{span}, {as_percent(max(outside, 1e-4))} of them outside 0 (closed) to 1 (open)"
        yield _finding(facts, "gripper_range", severity, "gripper", text, _to_unit(low, high))
    elif not facts.varies(6):
        text = f"gripper: {digits(low)} at all {facts.steps:,} steps; it never {'opens' if low < 0.5 else 'closes'}"
        advice = "If the robot uses its gripper, correct src and cols of gripper in the card's recipe."
        yield _finding(facts, "gripper_constant", "warning", "gripper", text, advice)
        return
    elif high - low < 0.3 or high < 0.65 or low > 0.35 or (low > 0.2 and high < 0.8):
        severity = "error" if high - low < 0.3 and not card.published else "warning"
        end = "either end" if low > 0.2 and high < 0.8 else "1 (open)" if high < 0.8 else "0 (closed)"
        text = f"{span}, never near {end}; bounds do not rescale the gripper"
        yield _finding(facts, "gripper_narrow", severity, "gripper", text, _to_unit(low, high))
    if facts.pulses is not None and facts.pulses > 0.8 and facts.distinct[6] <= 3:
        text = f"gripper: {as_percent(facts.pulses)} of its commands last only one or two steps"
        advice = "These may be relative commands: use the operation rel_to_abs for gripper in the card's recipe."
        yield _finding(facts, "gripper_pulses", "warning", "gripper", text, advice)
    opens = facts.opens_high * (facts.aperture or 0.0)
    if facts.aperture and abs(facts.aperture) > 0.6 and abs(facts.opens_high) >= 1.5 and opens < 0:
        end = "high" if facts.opens_high > 0 else "low"
        text = (
            f"gripper: the last column of proprio, whose {end} end looks open, follows it with r = {facts.aperture:.2f}"
        )
        advice = "1 must be open: invert gripper in the card's recipe ({op: affine, scale: -1, offset: 1})."
        yield _finding(facts, "gripper_inverted", "warning", "gripper", text, advice)


def _to_unit(low: float, high: float) -> str:
    """How to bring the gripper's range to 0..1."""
    if high - low < 1e-9:
        return "Correct src, cols and operations of gripper in the card's recipe."
    scale, offset = 1 / (high - low), -low / (high - low)
    affine = f"{{op: affine, scale: {scale:.4g}, offset: {offset:.4g}}}"
    return (
        f"Bring it to 0 (closed) .. 1 (open) in the card's recipe: gripper ops: [{affine}, {{op: clip, lo: 0, hi: 1}}]"
        ", or rel_to_abs if 0 keeps the gripper as it is; use a negative scale if the high end is closed."
    )
