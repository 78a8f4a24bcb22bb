"""Write a draft card from a report; comments give the confidence in each guess and the reason.

Facts that the data do not contain (robot, licence, rate) are marked TODO. If the meaning of the action is unknown, the
recipe is commented out, so that nobody trains on it unchecked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from oxe_curate.config import build, parse_yaml
from oxe_curate.errors import ConfigError
from oxe_curate.inspection.conventions import Conventions
from oxe_curate.inspection.finding import Finding
from oxe_curate.inspection.leftovers import ARMS_QUESTION, JOINT_QUESTION
from oxe_curate.inspection.questions import questions_yaml
from oxe_curate.inspection.report import INSTRUCTION_WORDS, CameraFeature, Inspection, not_usable
from oxe_curate.inspection.series import Columns
from oxe_curate.registry.card import DatasetCard
from oxe_curate.storage import Folder

_DEGREE = 0.017453292519943295
_WRIST = re.compile(r"wrist|hand|gripper|eye_in")
_DTYPES = ("uint8", "uint16", "int32", "float32")
_ENCODINGS = {"delta": "EEF_POS", "scaled delta": "EEF_POS", "velocity": "EEF_VEL", "absolute": "EEF_POSE"}
_MARK = "TODO"


def draft_card(report: Inspection, name: str | None = None) -> str:
    """Write the draft as YAML.

    Args:
        report: what was found.
        name: the card's name, which must match its file name (default: the data set's name).

    Returns:
        Text that `registry.card.read_card` reads without an error, from a file of that name.
    """
    name = name or report.name.replace("/", "_")
    lines = [
        f"# Draft by `oxe-curate inspect` from {len(report.read)} episodes of {report.name} {report.version}.",
        "# The comments give the confidence (0 to 1) in each guess and the reason. Check every guess, above all the",
        f"# recipe, and complete the lines marked {_MARK}, which the data cannot answer.",
        f"name: {_text(name)}",
    ]
    if report.name != name:
        lines.append(f"aliases: [{_text(report.name)}]")
    two = report.conventions.of(ARMS_QUESTION) is not None
    arms = "bimanual" if two else "single"
    lines += [f"robot: unknown  # {_MARK}: maker and model", f"arms: {arms}  # {_MARK}: assumed; one arm or two?"]
    lines += _rate(report)
    encoding, why = action_encoding(report)
    lines += [*_comment(why), f"action_encoding: {encoding}"]
    lines.append(f"why: draft by inspect, not yet checked  # {_MARK}: cameras, arm and actions in a few words")
    lines += ["", f"versions: {{{_text(report.version)}: as inspected}}", "splits:"]
    lines += [f"  {_text(s)}: {{episodes: {n['episodes']}, shards: {n['shards']}}}" for s, n in report.splits.items()]
    lines += ["", *_cameras(report), *_language(report), *_success(report), "", *_proprio(report.conventions)]
    lines += questions_yaml(report.conventions)
    recipe = _recipe(report)
    if encoding in ("UNKNOWN", "JOINT_POS") or two:
        lines += ["# The meaning of the action is unknown. If you know it, correct and uncomment these lines:"]
        lines += [f"# {line}" for line in recipe]
    else:
        lines += recipe
    text = "\n".join(lines) + "\n"
    build(DatasetCard, parse_yaml(text, "draft"), "draft")  # an unreadable draft is a bug in this module
    return text


def write_draft(report: Inspection, path: Path) -> None:
    """Write the draft to a new file; the file's stem becomes the card's name.

    Raises:
        ConfigError: the file exists (it may contain corrections), or its name does not end in .yaml.
    """
    if path.suffix != ".yaml":
        raise ConfigError(f"{path}: the file name must end in .yaml; its stem is the card's name")
    if path.exists():
        raise ConfigError(f"{path} already exists and may contain corrections; choose another name or remove it")
    text = draft_card(report, path.stem).encode()
    Folder.of(path.parent).publish_bytes(path.name, text)


def action_encoding(report: Inspection) -> tuple[str, str]:
    """The card's action_encoding, and why."""
    joints, two = report.conventions.of(JOINT_QUESTION), report.conventions.of(ARMS_QUESTION)
    if joints:
        return ("JOINT_POS_BIMANUAL" if two else "JOINT_POS"), _because(joints)
    if two:
        return "EEF_POS_BIMANUAL", f"{_because(two)}; end effectors are assumed"
    kind = _kind(report)
    if kind is None or kind.answer not in _ENCODINGS:
        return "UNKNOWN", _because(kind) if kind else f"no numeric action was found{not_usable(report, ('action',))}"
    return _ENCODINGS[kind.answer], _because(kind)


def _kind(report: Inspection) -> Finding | None:
    at = report.conventions.position
    return report.conventions.of(f"what does {at} mean?") if at else None


def _because(finding: Finding) -> str:
    sure = f"{finding.confidence:.2f} " if finding.known else ""
    return f"{sure}{finding.answer}: {finding.why}"


def _text(value: str) -> str:
    """Return the text as a YAML scalar, quoted if YAML would not read it as a string."""
    return value if re.fullmatch(r"[A-Za-z_][\w./-]*", value) and value not in _WORDS else json.dumps(value)


_WORDS = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"} | {
    "True",
    "False",
    "None",
    "Yes",
    "No",
    "On",
    "Off",
}


def _comment(text: str, indent: str = "") -> list[str]:
    """Comment lines of at most 110 characters."""
    lines, line = [], ""
    for word in text.split():
        if line and len(indent) + len(line) + len(word) > 107:
            lines.append(f"{indent}# {line}")
            line = ""
        line = f"{line} {word}".strip()
    return [*lines, f"{indent}# {line}"] if line else lines


def _rate(report: Inspection) -> list[str]:
    rate = report.conventions.of("what is the control rate")
    if rate and rate.known:
        return [*_comment(_because(rate)), f"control_hz: {rate.answer}"]
    return [f"# control_hz:  {_MARK}: steps per second ({rate.why if rate else 'unknown'})"]


def camera_roles(report: Inspection) -> dict[str, tuple[str, str]]:
    """Camera key -> (role, why)."""
    roles: dict[str, tuple[str, str]] = {}
    third = iter(("primary", "secondary", *["extra"] * len(report.cameras)))
    for camera in sorted(report.cameras, key=lambda c: c.key):
        name = camera.key.rsplit("/", 1)[-1]
        mount = next((f for f in report.findings if f.question == f"is {camera.key} a wrist camera?"), None)
        why = _because(mount) if mount else "not checked"
        on_hand = mount.answer == "wrist" if mount and mount.known else bool(_WRIST.search(name))
        if mount is None or not mount.known:
            why += f"; its name suggests a {'wrist' if on_hand else 'third-person'} camera"
        if _is_depth(camera):
            role, why = ("depth_wrist" if _WRIST.search(name) else "depth_primary"), "from its name and type"
        elif camera.encoding == "tensor":
            role, why = "none", f"not usable as a camera: {report.not_read.get(camera.key, 'a plain tensor')}"
        elif camera.looked_at and camera.black + camera.missing >= 0.99:
            role, why = "none", f"all {camera.looked_at} frames checked are black or missing"
        else:
            role = "wrist" if on_hand else next(third)
        roles[camera.key] = (role, why)
    return roles


def _is_depth(camera: CameraFeature) -> bool:
    return "depth" in camera.key or camera.dtype != "uint8" or (len(camera.shape) == 3 and camera.shape[2] == 1)


def _cameras(report: Inspection) -> list[str]:
    if not report.cameras:
        return ["cameras: {}  # none"]
    lines = ["cameras:"]
    for camera in sorted(report.cameras, key=lambda c: c.key):
        role, why = camera_roles(report)[camera.key]
        lines += _comment(why, "  ")
        hue = next((f for f in report.findings if f.question == f"are red and blue swapped in {camera.key}?"), None)
        if hue and hue.answer == "bgr":
            lines += _comment(f"channels: bgr?  {_because(hue)}", "  ")
        parts = [f"role: {role}"]
        if all(d and d > 0 for d in camera.shape) and len(camera.shape) in (2, 3):
            parts.append(f"shape: [{', '.join(map(str, camera.shape))}]")
        parts.append(f"encoding: {camera.encoding}")
        if camera.dtype != "uint8" and camera.dtype in _DTYPES:
            parts.append(f"dtype: {camera.dtype}")
        lines.append(f"  {_text(camera.key)}: {{{', '.join(parts)}}}")
    return lines


def _language(report: Inspection) -> list[str]:
    used = [t for t in report.texts if t.distinct]
    if not used:
        why = f"no step has an instruction that can be read{not_usable(report, INSTRUCTION_WORDS)}"
        return [*_comment(why), "language: {}"]
    kind = used[0].kind
    keys = [t for t in used if t.kind == kind]
    style = f"{keys[0].distinct} distinct instructions in the {len(report.read)} episodes read"
    if keys[0].empty:
        style += f", {100 * keys[0].empty:.0f} % of them without one"
    lines = _comment(f"examples: {' | '.join(keys[0].samples[:3])}")
    shown = ", ".join(_text(t.key) for t in keys)
    return [*lines, f"language: {{keys: [{shown}], kind: {kind}, style: {json.dumps(style)}}}"]


def _success(report: Inspection) -> list[str]:
    key = next((key for key in report.flags if "success" in key.rsplit("/", 1)[-1]), None)
    if key is None:
        return []
    return [f"success_key: {_text(key)}  # true in {100 * report.flags[key]:.0f} % of the episodes read"]


def _proprio(c: Conventions) -> list[str]:
    parts = [columns for columns in (c.state_position, c.state_rotation, c.aperture) if columns]
    if not parts:
        return ["# proprio: no state column correlates with the action"]
    return ["proprio:", *(f"  - {_piece(columns, [])}" for columns in parts)]


def _piece(columns: Columns, operations: Iterable[str]) -> str:
    ops = ", ".join(operations)
    parts = [f"src: {_text(columns.key)}", f"cols: [{columns.start}, {columns.stop}]"]
    return "{" + ", ".join([*parts, f"ops: [{ops}]"] if ops else parts) + "}"


def _recipe(report: Inspection) -> list[str]:
    c, kind = report.conventions, _kind(report)
    absolute = kind is not None and kind.answer == "absolute"
    trim = []
    first = c.of("is the first step idle")
    lines = ["recipes:", "  openvla:"]
    if first and first.answer == "yes":
        trim.append("first: 1")
        lines += _comment(_because(first), "    ")
    if absolute:
        trim.append("last: 1")
        lines += _comment("the action is a pose: the recipe takes differences, so the last step has no action", "    ")
    lines += [f"    trim: {{{', '.join(trim)}}}"] if trim else []
    lines += _xyz(c.position, kind, absolute)
    lines += _rpy(report, absolute)
    lines += _gripper(report)
    return lines


def nominal(gain: float) -> float | None:
    """The power of ten near a measured gain, None if there is none: controllers undershoot commands."""
    return next((unit for unit in (1.0, 0.1, 0.01, 0.001) if 0.7 < gain / unit < 1.4), None)


def _xyz(at: Columns | None, kind: Finding | None, absolute: bool) -> list[str]:
    if at is None:
        return ["    xyz: [{const: 0, width: 3}]"]
    operations = []
    lines = _comment(_because(kind), "    ") if kind else []
    if kind and kind.answer == "scaled delta":
        unit = nominal(float(kind.evidence["gain"]))
        if unit is None:
            lines += _comment("its gain is not near a power of ten, so the data set's units are kept", "    ")
        elif unit != 1.0:
            lines += _comment(f"scaled to the state's units: gain {kind.evidence['gain']}, rounded to {unit:g}", "    ")
            operations.append(f"{{op: affine, scale: {unit:g}}}")
    if absolute:
        operations.append("delta")
    pieces = [_piece(at, operations)]
    if len(at) < 3:
        pieces.append(f"{{const: 0, width: {3 - len(at)}}}")
    return [*lines, f"    xyz: [{', '.join(pieces)}]"]


def _rpy(report: Inspection, absolute: bool) -> list[str]:
    c = report.conventions
    if c.rotation is None:
        return ["    # no rotation columns were found", "    rpy: [{const: 0, width: 3}]"]
    lines: list[str] = []
    for question in ("what does", "is", "in which order is the quaternion"):
        for finding in c.findings:
            if finding.question.startswith(f"{question} {c.rotation}"):
                lines += _comment(_because(finding), "    ")
    operations = []
    unit, kind = c.of(f"is {c.rotation} in radians"), c.of(f"what does {c.rotation} mean?")
    scale = 1.0
    if kind and kind.answer == "scaled delta":
        scale = nominal(float(kind.evidence["gain"])) or 1.0
        lines += _comment(f"gain {kind.evidence['gain']}, rounded to {scale:g}", "    ")
        unit = c.of(f"is {c.state_rotation} in radians")  # a quaternion has no angle unit: the gain is in radians
    if unit and unit.answer == "degrees":
        scale *= _DEGREE
    if len(c.rotation) == 4:
        order = c.of(f"in which order is the quaternion {c.rotation}")
        operations.append(f"{{op: euler_from_quat, order: {order.answer if order and order.known else 'xyzw'}}}")
    elif scale != 1.0:
        operations.append(f"{{op: affine, scale: {scale:.16g}}}")
    if absolute:
        operations += ["delta", "wrap"]
    return [*lines, f"    rpy: [{_piece(c.rotation, operations)}]"]


def _gripper(report: Inspection) -> list[str]:
    c = report.conventions
    if c.gripper is None:
        return ["    # no gripper column was found: assumed open", "    gripper: [{const: 1, width: 1}]"]
    form = c.of(f"how does {c.gripper} command")
    sign = c.of(f"does a high {c.gripper} open")
    lines = [line for f in (form, sign) if f for line in _comment(_because(f), "    ")]
    if sign is None or not sign.known:
        lines += _comment(f"{_MARK}: assumed 1 = open", "    ")
    operations = gripper_operations(form, sign)
    return [*lines, f"    gripper: [{_piece(c.gripper, operations)}]"]


def gripper_operations(form: Finding | None, sign: Finding | None) -> list[str]:
    """Operations that turn a command of this form into 1 = open, 0 = closed."""
    closes = sign is not None and sign.answer == "high closes"
    if form is None or form.answer == "constant":
        return []
    low, high = float(form.evidence["min"]), float(form.evidence["max"])
    if form.answer == "relative":  # rel_to_abs opens below -threshold
        return ["rel_to_abs"] if closes else ["{op: affine, scale: -1}", "rel_to_abs"]
    if form.answer == "0..1":
        return (
            ["{op: clip, lo: 0, hi: 1}", "{op: affine, scale: -1, offset: 1}"]
            if closes
            else ["{op: clip, lo: 0, hi: 1}"]
        )
    if form.answer == "-1..1":
        return [f"{{op: affine, scale: {-0.5 if closes else 0.5}, offset: 0.5}}", "{op: clip, lo: 0, hi: 1}"]
    scale = 1 / (high - low)
    scale, offset = (-scale, high * scale) if closes else (scale, -low * scale)
    return [f"{{op: affine, scale: {scale:.6g}, offset: {offset:.6g}}}", "{op: clip, lo: 0, hi: 1}"]
