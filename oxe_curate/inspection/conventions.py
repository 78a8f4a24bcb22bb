"""All detectors on one sample: which columns are what, and what was found of each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from oxe_curate.inspection import gripper, motion, rotation, vision
from oxe_curate.inspection.finding import Finding, unknown
from oxe_curate.inspection.motion import JOINTS, TURNS, Match
from oxe_curate.inspection.sample import Camera
from oxe_curate.inspection.series import Columns, Episodes, Floats, number_keys, pooled, varies

_NOT_POSE = re.compile(r"terminate|gripper|grip_|base_|mode|discount|reward|closed")
_CLOCK = re.compile(r"time|stamp|clock")


@dataclass(frozen=True, slots=True)
class Conventions:
    """What the columns of action and state are, as far as the data tell.

    Attributes:
        position, rotation, gripper: columns of the action; None where none was found.
        state_position, state_rotation: columns of the state that they move (a quaternion has four).
        aperture: the state column that follows the gripper.
        findings: every question that was asked, with or without an answer.
    """

    position: Columns | None
    rotation: Columns | None
    gripper: Columns | None
    state_position: Columns | None
    state_rotation: Columns | None
    aperture: Columns | None
    findings: tuple[Finding, ...]

    def of(self, start: str) -> Finding | None:
        """The first finding whose question begins so."""
        return next((f for f in self.findings if f.question.startswith(start)), None)


def detect(episodes: Episodes, control_hz: float | None = None) -> Conventions:
    """Run every detector that needs numbers only.

    Args:
        episodes: step dicts with the keys "action..." and "observation/...".
        control_hz: steps per second, where known.
    """
    actions, states = number_keys(episodes, "action"), number_keys(episodes, "observation/")
    poses = [c for c in actions if not _NOT_POSE.search(c.key.rsplit("/", 1)[-1])]
    findings: list[Finding] = []

    position = motion.find_position(episodes, poses, states)
    at = position.action if position else _by_name_or_place(episodes, poses)
    held = position.state if position else None
    findings.append(_columns_found(position, at))
    kind: Finding | None = None
    if position:
        kind = motion.action_kind(episodes, position.action, position.state, control_hz)
    elif at:
        kind = motion.action_kind_alone(episodes, at)
    findings += [kind] if kind else []
    if at and (JOINTS.search(at.key) or (held and JOINTS.search(held.key))):
        why = f"the key says so: {at.key if JOINTS.search(at.key) else held}"
        findings.append(Finding("is the action the end effector's?", "joints", 0.9, why))

    quaternions = rotation.find_quaternions(episodes, states)
    free = [c for c in poses if not (at and c.key == at.key and len(c) <= 3)]
    turned = motion.find_rotation(episodes, free, [s for s in states if _not_in(s, quaternions)], position)
    turns = turned.action if turned else _turns_by_name_or_place(episodes, poses, at)
    angles = turned.state if turned else _angles_beside(episodes, held, quaternions)
    if turned:
        findings.append(motion.action_kind(episodes, turned.action, turned.state, control_hz))
    elif turns and kind and not quaternions:
        findings.append(motion.action_kind_alone(episodes, turns))
    findings += _rotation_findings(episodes, turns, angles, quaternions, kind)
    findings += [rotation.quaternion_order(episodes, q, turns) for q in quaternions]
    where_turned = angles or (quaternions[0] if quaternions else None)

    taken = [c for c in (at, turns) if c]
    command = gripper.find_command(episodes, actions, taken)
    aperture = None
    if command is None:
        findings.append(unknown("which action column is the gripper's?", "no name, and no column with values at two ends"))
    else:
        form = gripper.command_form(episodes, command)
        used = [c for c in (held, where_turned, *quaternions) if c]
        relative = form.answer == "relative"
        aperture = gripper.find_aperture(episodes, command, states, used, relative=relative)
        findings += [form, gripper.polarity(episodes, command, aperture, relative=relative)]
    findings += motion.idle_ends(episodes, taken)
    findings.append(_control_rate(episodes, states))
    return Conventions(
        position=at, rotation=turns, gripper=command, state_position=held, state_rotation=where_turned,
        aperture=aperture.state if aperture else None, findings=tuple(findings),
    )  # fmt: skip


def _columns_found(position: Match | None, at: Columns | None) -> Finding:
    question = "which state columns does the action move?"
    if position:
        why = f"r = {position.r:.2f} at lag {position.lag}, {position.samples} stretches; told from angles by names or order"
        return Finding(question, f"{position.action} -> {position.state}", position.confidence, why)
    why = f"no three state columns go with the action (r below {motion.SURE})" if at else "there is no numeric action"
    return unknown(question, why)


def _by_name_or_place(episodes: Episodes, poses: Sequence[Columns]) -> Columns | None:
    """Without a state: world_vector and the like, else the first three columns of a flat action."""
    for columns in poses:
        if re.search(r"world_vector|xyz|translation|position", columns.key) and len(columns) >= 2:
            return Columns(columns.key, 0, min(3, len(columns)))
    for columns in poses:
        if len(columns) >= 2 and not TURNS.search(columns.key) and varies(pooled(episodes, columns)).any():
            return Columns(columns.key, 0, min(3, len(columns)))
    return None


def _turns_by_name_or_place(episodes: Episodes, poses: Sequence[Columns], at: Columns | None) -> Columns | None:
    """Rotation columns by their key's name, else the three after the position in an action of seven or so."""
    for columns in poses:
        if TURNS.search(columns.key) and len(columns) >= 3 and not columns.overlaps(at):
            return Columns(columns.key, 0, 3)
    for columns in poses:
        if at and columns.key == at.key and len(at) == 3 and columns.stop - at.stop >= 3:
            return Columns(at.key, at.stop, at.stop + 3)
    return None


def _angles_beside(episodes: Episodes, held: Columns | None, quaternions: list[Columns]) -> Columns | None:
    """The three state columns after the position, if they vary and stay within a turn and no quaternion is there."""
    if held is None or len(held) != 3:
        return None
    beside = Columns(held.key, held.stop, held.stop + 3)
    if episodes[0][held.key].ndim != 2 or episodes[0][held.key].shape[1] < beside.stop:
        return None
    x = pooled(episodes, beside)
    fits = len(x) > 0 and varies(x).sum() >= 2 and np.abs(x).max() <= 360.5
    return beside if fits and not any(beside.overlaps(q) for q in quaternions) else None


def _not_in(columns: Columns, quaternions: list[Columns]) -> bool:
    return not any(q.key == columns.key and q.start == columns.start and q.stop == columns.stop for q in quaternions)


def _rotation_findings(
    episodes: Episodes, turns: Columns | None, angles: Columns | None, quaternions: list[Columns], kind: Finding | None
) -> list[Finding]:
    found = []
    if angles and not any(angles.overlaps(q) for q in quaternions):
        found += [rotation.angle_unit(episodes, angles), rotation.rotation_kind(episodes, angles)]
    if turns:
        displaced = kind is None or kind.answer != "absolute"
        found += [rotation.angle_unit(episodes, turns, displacement=displaced), rotation.rotation_kind(episodes, turns)]
    return found


def _control_rate(episodes: Episodes, states: list[Columns]) -> Finding:
    question = "how many steps a second?"
    for clock in states:
        if len(clock) != 1 or not _CLOCK.search(clock.key):
            continue
        gaps = np.concatenate([np.diff(clock.of(steps)[:, 0]) for steps in episodes])
        if len(gaps) > 10 and (gaps > 0).mean() > 0.98 and 0.005 < np.median(gaps) < 5:
            rate = 1 / float(np.median(gaps))
            return Finding(question, f"{rate:.3g}", 0.7, f"{clock.key} rises by {np.median(gaps):.4g} a step, if seconds")
    return unknown(question, "RLDS stores no rate, and no step feature is a clock")


def detect_cameras(cameras: Sequence[Camera], episodes: Episodes, conventions: Conventions) -> list[Finding]:
    """Where each camera is, and whether its red and blue are exchanged."""
    found = []
    for camera in cameras:
        if camera.encoding == "tensor":
            continue
        motions = [_path(steps, at, conventions) for steps, at in zip(episodes, camera.at, strict=False)]
        found.append(vision.camera_mount(camera.frames, motions, camera.key))
        if camera.shape[-1] == 3:
            found.append(vision.channel_order(camera.frames, camera.key))
    return found


def _path(steps: motion.Episodes, at: np.ndarray, conventions: Conventions) -> Floats:  # type: ignore[type-arg]
    """How far the arm went between one frame and the next: by the state's position, else by the action's size."""
    if conventions.state_position:
        x = conventions.state_position.of(steps)  # type: ignore[arg-type]
        travelled = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(x, axis=0), axis=1))])
    elif conventions.position:
        x = conventions.position.of(steps)  # type: ignore[arg-type]
        travelled = np.cumsum(np.linalg.norm(x, axis=1))
    else:
        travelled = np.arange(int(at.max(initial=0)) + 1, dtype=np.float64)
    out: Floats = np.diff(travelled[at])
    return out
