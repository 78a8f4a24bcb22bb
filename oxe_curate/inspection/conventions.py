"""Run all detectors on a sample and collect the meaning of its columns."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oxe_curate.arrays import Floats
from oxe_curate.inspection import gripper, leftovers, matching, motion, rotation, vision
from oxe_curate.inspection.finding import Finding, unknown
from oxe_curate.inspection.matching import TURNS, Match
from oxe_curate.inspection.sample import SampledCamera
from oxe_curate.inspection.series import Columns, Episodes, number_keys, pooled, varies

_NOT_POSE = re.compile(r"terminate|gripper|grip_|base_|mode|discount|reward|closed")
_CLOCK = re.compile(r"time|stamp|clock")


@dataclass(frozen=True, slots=True)
class Conventions:
    """The meaning of the action and state columns, as far as the data show it.

    Attributes:
        position, rotation, gripper: columns of the action; None where none was found.
        state_position, state_rotation: the state columns that they move (a quaternion has four).
        aperture: the state column that follows the gripper.
        findings: the result of every detector, answered or not.
    """

    position: Columns | None
    rotation: Columns | None
    gripper: Columns | None
    state_position: Columns | None
    state_rotation: Columns | None
    aperture: Columns | None
    findings: tuple[Finding, ...]

    def of(self, start: str) -> Finding | None:
        """Return the first finding whose question begins with this text."""
        return next((f for f in self.findings if f.question.startswith(start)), None)


def detect(episodes: Episodes, control_hz: float | None = None) -> Conventions:
    """Run every detector that needs only numbers.

    Args:
        episodes: step dicts with the keys "action..." and "observation/...".
        control_hz: steps per second, where known.
    """
    actions, states = number_keys(episodes, "action"), number_keys(episodes, "observation/")
    poses = [c for c in actions if not _NOT_POSE.search(c.key.rsplit("/", 1)[-1])]
    position = matching.find_position(episodes, poses, states)
    at = position.action if position else _by_name_or_place(episodes, poses)
    held = position.state if position else None
    findings = [_columns_found(position, at), *_position_findings(episodes, position, at, control_hz)]
    absolute = any(f.answer == "absolute" for f in findings)
    turns, where_turned, found = _rotation(episodes, poses, states, position, at, absolute, control_hz)
    findings += found
    taken = [c for c in (at, turns) if c]
    used = [c for c in (held, where_turned, *rotation.find_quaternions(episodes, states)) if c]
    command, aperture, found = _gripper(episodes, actions, states, taken, used)
    findings += [*found, *motion.idle_ends(episodes, taken), _control_rate(episodes, states)]
    used = [*taken, *([command] if command else [])]
    findings = _doubted(findings, _leftovers(episodes, actions, states, used, position, at))
    return Conventions(at, turns, command, held, where_turned, aperture, tuple(findings))


def _leftovers(
    episodes: Episodes, actions: list[Columns], states: list[Columns], used: list[Columns], position: Match | None,
    at: Columns | None,
) -> list[Finding]:  # fmt: skip
    """What suggests that the action is more, or something else, than one end effector."""
    held = position.state if position else None
    found = (
        leftovers.joints(episodes, actions, states, at, held), leftovers.arms(episodes, actions),
        leftovers.unused(episodes, actions, used),
    )  # fmt: skip
    return [finding for finding in found if finding is not None]


def _doubted(findings: list[Finding], against: list[Finding]) -> list[Finding]:
    """What speaks against the others, and these, with less confidence in the meaning of the columns."""
    if not against:
        return findings
    doubt = 1 - max(0.5 if f.question == leftovers.UNUSED_QUESTION else f.confidence for f in against)
    reasons = "; ".join(f"{f.question} {f.answer}" for f in against)
    lowered = [
        replace(f, confidence=round(f.confidence * doubt, 2), why=f"{f.why}; but {reasons}")
        if f.known and f.question.startswith(("what does", "which state columns", "is action"))
        else f
        for f in findings
    ]
    return [*against, *lowered]


def _position_findings(
    episodes: Episodes, position: Match | None, at: Columns | None, control_hz: float | None
) -> list[Finding]:
    """The meaning of the position columns."""
    if at is None:
        return []
    return [motion.kind_of(episodes, position, control_hz) if position else motion.kind_without_state(episodes, at)]


def _rotation(
    episodes: Episodes, poses: list[Columns], states: list[Columns], position: Match | None, at: Columns | None,
    absolute: bool, control_hz: float | None,
) -> tuple[Columns | None, Columns | None, list[Finding]]:  # fmt: skip
    """The action's rotation columns, the state columns that they rotate, and the findings about both."""
    held = position.state if position else None
    quaternions = rotation.find_quaternions(episodes, states)
    stored = [q for q in rotation.find_quaternions(episodes, poses) if not q.overlaps(at)]
    if stored:  # the action itself holds a quaternion
        where = quaternions[0] if quaternions else None
        return stored[0], where, [rotation.quaternion_order(episodes, q) for q in (*quaternions, *stored)]
    free = [c for c in poses if not (at and c.key == at.key and len(c) <= 3)]
    turned = matching.find_rotation(episodes, free, _without(states, quaternions), position)
    turns = turned.action if turned else _turns_by_name_or_place(episodes, poses, at)
    angles = turned.state if turned else _angles_after(episodes, held, quaternions)
    found: list[Finding] = []
    kind = None
    if turned:
        kind = motion.kind_of(episodes, turned, control_hz)
    elif turns:
        kind = _kind_of_turns(episodes, turns, quaternions, control_hz)
    found += [kind] if kind else []
    unit = None
    if angles:
        unit = rotation.angle_unit(episodes, angles)
        found += [unit, rotation.rotation_kind(episodes, angles)]
    if turns and kind and varies(pooled(episodes, turns)).any():
        absolute = kind.answer == "absolute" or (absolute and not kind.known)
        found += [_unit_of_turns(episodes, turns, kind, unit, absolute), rotation.rotation_kind(episodes, turns)]
    found += [rotation.quaternion_order(episodes, q, turns) for q in quaternions]
    return turns, angles or (quaternions[0] if quaternions else None), found


def _unit_of_turns(episodes: Episodes, turns: Columns, kind: Finding, state: Finding | None, absolute: bool) -> Finding:
    """Radians or degrees: as the state that the columns rotate, if there is one, else from their size."""
    question = f"is {turns} in radians or degrees?"
    if kind.answer in ("scaled delta", "velocity"):
        return unknown(question, f"the size of a {kind.answer} does not show its unit")
    if "unit" in kind.evidence:  # the gain of a quaternion's rotation is in radians
        why = f"one unit rotates the state by {kind.evidence['gain']:.3g} rad"
        return Finding(question, kind.evidence["unit"], kind.confidence, why, {"gain": kind.evidence["gain"]})
    same = kind.answer in ("delta", "absolute") and 0.6 < kind.evidence.get("gain", 0.0) < 1.6
    if state is not None and state.known and same:
        sure = round(min(state.confidence, kind.confidence), 2)
        return Finding(question, state.answer, sure, f"it moves the state's angles one to one, and {state.why}")
    return rotation.angle_unit(episodes, turns, displacement=not absolute)


def _gripper(
    episodes: Episodes, actions: list[Columns], states: list[Columns], taken: list[Columns], used: list[Columns]
) -> tuple[Columns | None, Columns | None, list[Finding]]:
    """The command's column, the state's aperture, and the findings about both."""
    command = gripper.find_command(episodes, actions, taken)
    if command is None:
        why = "no column has a gripper's name or values at two ends"
        return None, None, [unknown("which action column commands the gripper?", why)]
    form = gripper.command_form(episodes, command)
    relative = form.answer == "relative"
    aperture = gripper.find_aperture(episodes, command, states, used, relative=relative)
    sign = gripper.polarity(episodes, command, aperture, relative=relative)
    return command, aperture.state if aperture else None, [form, sign]


def _columns_found(position: Match | None, at: Columns | None) -> Finding:
    question = "which state columns does the action move?"
    if position:
        why = f"r = {position.r:.2f} at lag {position.lag}, {position.samples} windows; a position by name or place"
        return Finding(question, f"{position.action} -> {position.state}", position.confidence, why)
    why = f"no three state columns correlate with the action (r below {matching.SURE})" if at else "no numeric action"
    return unknown(question, why)


def _by_name_or_place(episodes: Episodes, poses: Sequence[Columns]) -> Columns | None:
    """Position columns without a state: world_vector and similar, else the first three columns of a flat action."""
    for columns in poses:
        if re.search(r"world_vector|xyz|translation|position", columns.key) and len(columns) >= 2:
            return Columns(columns.key, 0, min(3, len(columns)))
    for columns in poses:
        if len(columns) >= 2 and not TURNS.search(columns.key) and varies(pooled(episodes, columns)).any():
            return Columns(columns.key, 0, min(3, len(columns)))
    return None


def _turns_by_name_or_place(episodes: Episodes, poses: Sequence[Columns], at: Columns | None) -> Columns | None:
    """Rotation columns by the key's name, else the three columns after the position."""
    for columns in poses:
        if TURNS.search(columns.key) and len(columns) >= 3 and not columns.overlaps(at):
            return Columns(columns.key, 0, 3)
    for columns in poses:
        if at and columns.key == at.key and len(at) == 3 and columns.stop - at.stop >= 3:
            return Columns(at.key, at.stop, at.stop + 3)
    return None


def _angles_after(episodes: Episodes, held: Columns | None, quaternions: list[Columns]) -> Columns | None:
    """The three state columns after the position, if they vary within a full turn and are not a quaternion."""
    if held is None or len(held) != 3:
        return None
    after = Columns(held.key, held.stop, held.stop + 3)
    if episodes[0][held.key].ndim != 2 or episodes[0][held.key].shape[1] < after.stop:
        return None
    x = pooled(episodes, after)
    fits = len(x) > 0 and varies(x).sum() >= 2 and np.abs(x).max() <= 360.5
    return after if fits and not any(after.overlaps(q) for q in quaternions) else None


def _without(states: list[Columns], quaternions: list[Columns]) -> list[Columns]:
    """The columns before and after the quaternions."""
    for q in quaternions:
        states = [part for s in states for part in matching.without(s, q)]
    return states


def _kind_of_turns(episodes: Episodes, turns: Columns, quaternions: list[Columns], control_hz: float | None) -> Finding:
    """The meaning of rotation columns that match no angles of the state."""
    without = motion.kind_without_state(episodes, turns)
    if without.answer == "constant":
        return without
    found = [
        rotation.turn_kind(episodes, turns, q, order, control_hz) for q in quaternions for order in rotation.ORDERS
    ]
    return max((f for f in found if f.known), key=lambda f: f.confidence, default=without)


def _control_rate(episodes: Episodes, states: list[Columns]) -> Finding:
    question = "what is the control rate?"
    for clock in states:
        if len(clock) != 1 or not _CLOCK.search(clock.key):
            continue
        gaps = np.concatenate([np.diff(clock.of(steps)[:, 0]) for steps in episodes])
        if len(gaps) > 10 and (gaps > 0).mean() > 0.98 and 0.005 < np.median(gaps) < 5:
            rate = 1 / float(np.median(gaps))
            return Finding(
                question, f"{rate:.3g}", 0.7, f"{clock.key} rises by {np.median(gaps):.4g} per step, if in seconds"
            )
    return unknown(question, "RLDS does not store the rate, and no step feature is a clock")


def detect_cameras(cameras: Sequence[SampledCamera], episodes: Episodes, conventions: Conventions) -> list[Finding]:
    """Whether each camera is a wrist camera, and whether its red and blue are swapped."""
    found = []
    for camera in cameras:
        if camera.encoding == "tensor":
            continue
        motions = [_path(steps, at, conventions) for steps, at in zip(episodes, camera.at, strict=False)]
        found.append(vision.camera_mount(camera.frames, motions, camera.key))
        if camera.shape[-1] == 3:
            found.append(vision.channel_order(camera.frames, camera.key))
    return found


def _path(steps: Mapping[str, NDArray[Any]], at: NDArray[np.int64], conventions: Conventions) -> Floats:
    """Distance that the arm moved between frames: from the state's position, else from the action's size."""
    if conventions.state_position:
        x = conventions.state_position.of(steps)
        travelled = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(x, axis=0), axis=1))])
    elif conventions.position:
        x = conventions.position.of(steps)
        travelled = np.cumsum(np.linalg.norm(x, axis=1))
    else:
        travelled = np.arange(int(at.max(initial=0)) + 1, dtype=np.float64)
    out: Floats = np.diff(travelled[at])
    return out
