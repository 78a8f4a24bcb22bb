"""The operations of recipes: pure numpy functions without loops over steps.

Every function takes floating-point columns (T, C), time first, and returns columns of the same precision:
float32, or float64 where the source stores float64 (the cast to float32 comes last, as in OpenVLA's loader).
None changes its input. All accept T = 0. Each is defined so as to reproduce OpenVLA's standardisation of
Open X-Embodiment; those marked "documentation only" serve recipes that follow a data set's own documentation.

    affine, clip                      scaling, inversion (-1, 1), limits
    rel_to_abs, binarize              gripper commands -> 1 = open, 0 = closed
    euler_from_quat                   (T, 4) quaternion -> (T, 3) roll, pitch, yaw
    delta                             x[t+1] - x[t], one row shorter
    wrap, axis_angle_to_euler, shift  documentation only
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

ColumnArray = NDArray[np.floating[Any]]
"""Floating-point array (T, C)."""

QuaternionOrder = Literal["xyzw", "wxyz"]


def affine(x: ColumnArray, *, scale: float = 1.0, offset: float = 0.0, divisor: float = 1.0) -> ColumnArray:
    """Return scale * x / divisor + offset. Invert a gripper in [0, 1] with scale -1, offset 1.

    `divisor` exists in addition to `scale` because x / 255 and x * (1 / 255) differ in the last bit of a float32.
    """
    if divisor != 1.0:
        x = x / divisor
    if scale != 1.0:
        x = x * scale
    return x + offset


def clip(x: ColumnArray, *, lo: float = 0.0, hi: float = 1.0) -> ColumnArray:
    """Limit to [lo, hi]; NaN stays NaN."""
    return np.minimum(np.maximum(x, lo), hi)


def _per_column(function: Callable[..., ColumnArray], x: ColumnArray, *args: float) -> ColumnArray:
    if x.shape[1] == 1:
        return function(x[:, 0], *args)[:, None]
    return np.stack([function(column, *args) for column in x.T], axis=1)


def rel_to_abs(x: ColumnArray, *, threshold: float = 0.1) -> ColumnArray:
    """Integrate relative gripper commands into a position: 1 = open, 0 = closed.

    x < -threshold opens, x > threshold closes (both strict), anything else holds; a command acts at its own
    step. Before the first command the gripper is in the opposite state; without any command it is open.
    """
    return _per_column(_rel_to_abs, x, threshold)


def _rel_to_abs(x: ColumnArray, threshold: float) -> ColumnArray:
    opens = x < -threshold
    commands = opens | (x > threshold)
    first = int(commands.argmax()) if len(x) else 0
    if not commands[first : first + 1].any():
        return np.ones_like(x)
    latest = np.maximum.accumulate(np.where(commands, np.arange(len(x)), first))
    position = opens[latest].astype(x.dtype)
    position[:first] = 1 - position[first]
    return position


def binarize(x: ColumnArray, *, lo: float = 0.05, hi: float = 0.95) -> ColumnArray:
    """Round a gripper position to 0 or 1: above hi is 1, below lo is 0 (both strict).

    A value in between belongs to a moving gripper and takes the next decided value. An undecided tail takes the
    episode's last raw value, so it stays fractional: OpenVLA does so, and its statistics depend on it.
    """
    return _per_column(_binarize, x, lo, hi)


def _binarize(x: ColumnArray, lo: float, hi: float) -> ColumnArray:
    opened = x > hi
    decided = opened | (x < lo)
    if decided.all():
        return opened.astype(x.dtype)
    # index of the next decided step; len(x) means "none" and selects the last raw value, which is appended
    upcoming = np.minimum.accumulate(np.where(decided, np.arange(len(x)), len(x))[::-1])[::-1]
    return np.concatenate([opened.astype(x.dtype), x[-1:]])[upcoming]


def euler_from_quat(x: ColumnArray, *, order: QuaternionOrder = "xyzw") -> ColumnArray:
    """Turn quaternions (T, 4) into roll, pitch, yaw (T, 3) in radians, R = Rz(yaw) Ry(pitch) Rx(roll).

    The quaternion is not normalised first; the zero quaternion gives zero angles. At gimbal lock
    (||r20| - 1| < 1e-6) yaw is 0. A quaternion so far from unit length that |r20| > 1 has no pitch: NaN,
    which the screen `not_finite` removes. Formulas: rotation matrix of (x, y, z, w), then
    roll = atan2(r21, r22), pitch = -asin(r20), yaw = atan2(r10, r00).
    """
    a, b, c, d = x.T
    qx, qy, qz, qw = (a, b, c, d) if order == "xyzw" else (b, c, d, a)
    tx, ty, tz = 2 * qx, 2 * qy, 2 * qz
    r20 = tz * qx - ty * qw
    sign = np.where(r20 < 0, x.dtype.type(-1), x.dtype.type(1))
    locked = np.abs(np.abs(r20) - 1) < 1e-6
    r21, r22 = tz * qy + tx * qw, 1 - (tx * qx + ty * qy)
    r10, r00 = ty * qx + tz * qw, 1 - (ty * qy + tz * qz)
    r01, r02 = ty * qx - tz * qw, tz * qx + ty * qw
    euler = np.empty((len(x), 3), x.dtype)
    euler[:, 0] = np.where(locked, np.arctan2(-sign * r01, -sign * r02), np.arctan2(r21, r22))
    with np.errstate(invalid="ignore"):
        euler[:, 1] = np.where(locked, -sign * (math.pi / 2), -np.arcsin(r20))
    euler[:, 2] = np.where(locked, 0, np.arctan2(r10, r00))
    return euler


def delta(x: ColumnArray) -> ColumnArray:
    """Return x[t+1] - x[t], (T-1, C). Angles are subtracted as numbers; `wrap` then removes jumps of 2 pi."""
    return x[1:] - x[:-1]


def wrap(x: ColumnArray) -> ColumnArray:
    """Bring angles [rad] into [-pi, pi) by adding multiples of 2 pi; angles already inside do not change."""
    turns: ColumnArray = np.floor((x + math.pi) / (2 * math.pi))
    return x - 2 * math.pi * turns


def axis_angle_to_euler(x: ColumnArray) -> ColumnArray:
    """Turn rotation vectors (T, 3) [rad] into roll, pitch, yaw (T, 3) [rad] as in `euler_from_quat`."""
    half = np.sqrt((x * x).sum(axis=1, keepdims=True)) / 2
    # np.sinc(t) is sin(pi t) / (pi t), which is exact at zero
    return euler_from_quat(np.concatenate([x * (np.sinc(half / math.pi) / 2), np.cos(half)], axis=1))


def shift(x: ColumnArray, *, by: int = -1) -> ColumnArray:
    """Shift the columns in time by `by` steps: -1 takes the next step's value. The ends repeat their value."""
    return x[np.clip(np.arange(len(x)) - by, 0, max(len(x) - 1, 0))]


@dataclass(frozen=True, slots=True)
class OperationSpec:
    """The signature of an operation.

    Attributes:
        function: the operation itself.
        parameters: keyword parameters, name -> annotation and default.
        width_in: the number of columns it needs, None for any.
        width_out: the number of columns it returns, None for as many as its input has.
        shortens: rows it removes from the end.
    """

    function: Callable[..., ColumnArray]
    parameters: dict[str, inspect.Parameter]
    width_in: int | None = None
    width_out: int | None = None
    shortens: int = 0


def _spec(
    function: Callable[..., ColumnArray],
    width_in: int | None = None,
    width_out: int | None = None,
    shortens: int = 0,
) -> OperationSpec:
    signature = inspect.signature(function, eval_str=True)
    keywords = {n: p for n, p in signature.parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
    return OperationSpec(function, keywords, width_in, width_out, shortens)


OPERATIONS: dict[str, OperationSpec] = {
    "affine": _spec(affine),
    "clip": _spec(clip),
    "rel_to_abs": _spec(rel_to_abs),
    "binarize": _spec(binarize),
    "euler_from_quat": _spec(euler_from_quat, width_in=4, width_out=3),
    "delta": _spec(delta, shortens=1),
    "wrap": _spec(wrap),
    "axis_angle_to_euler": _spec(axis_angle_to_euler, width_in=3, width_out=3),
    "shift": _spec(shift),
}
"""The operations that recipes can use, by name."""
