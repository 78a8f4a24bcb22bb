"""The operations of recipes: pure numpy functions without loops over steps.

Every function takes floating-point columns (T, C), time first, and returns columns of the same precision:
float32, or float64 where the source stores float64 (the cast to float32 comes last, as in OpenVLA's loader).
Those that look at other steps take the lengths of several episodes, whose rows follow each other in x; without, x is
one episode. None changes its input. All accept T = 0. Each is defined so as to reproduce OpenVLA's standardisation of
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


Lengths = NDArray[np.int64]
"""Rows of each of several episodes that follow each other in one array."""


def _per_column(function: Callable[..., ColumnArray], x: ColumnArray, *args: Any) -> ColumnArray:
    if x.shape[1] == 1:
        return function(x[:, 0], *args)[:, None]
    return np.stack([function(column, *args) for column in x.T], axis=1)


def _bounds(x: ColumnArray, lengths: Lengths | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first row of each row's episode, and the one after its last: int64 (T,)."""
    lengths = np.array([len(x)], np.int64) if lengths is None else lengths
    stops = np.cumsum(lengths)
    return np.repeat(stops - lengths, lengths), np.repeat(stops, lengths)


def _latest(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The last true row up to each row, -1 for none."""
    return np.maximum.accumulate(np.where(mask, np.arange(len(mask)), -1))


def _next(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The first true row from each row on, the number of rows for none."""
    return np.minimum.accumulate(np.where(mask, np.arange(len(mask)), len(mask))[::-1])[::-1]


def rel_to_abs(x: ColumnArray, lengths: Lengths | None = None, *, threshold: float = 0.1) -> ColumnArray:
    """Integrate relative gripper commands into a position: 1 = open, 0 = closed.

    x < -threshold opens, x > threshold closes (both strict), anything else holds; a command acts at its own
    step. Before the first command the gripper is in the opposite state; without any command it is open.
    """
    return _per_column(_rel_to_abs, x, *_bounds(x, lengths), threshold)


def _rel_to_abs(x: ColumnArray, first: NDArray[np.int64], stop: NDArray[np.int64], threshold: float) -> ColumnArray:
    opens = x < -threshold
    commands = opens | (x > threshold)
    latest, upcoming = _latest(commands), _next(commands)
    before = (latest < first) & (upcoming < stop)
    opened = np.where(before, ~opens[np.where(before, upcoming, 0)], opens[latest])
    return np.where((latest < first) & ~before, True, opened).astype(x.dtype)


def binarize(x: ColumnArray, lengths: Lengths | None = None, *, lo: float = 0.05, hi: float = 0.95) -> ColumnArray:
    """Round a gripper position to 0 or 1: above hi is 1, below lo is 0 (both strict).

    A value in between belongs to a moving gripper and takes the next decided value. An undecided tail takes the
    episode's last raw value, so it stays fractional: OpenVLA does so, and its statistics depend on it.
    """
    return _per_column(_binarize, x, *_bounds(x, lengths), lo, hi)


def _binarize(x: ColumnArray, first: NDArray[np.int64], stop: NDArray[np.int64], lo: float, hi: float) -> ColumnArray:
    opened = x > hi
    decided = opened | (x < lo)
    if decided.all():
        return opened.astype(x.dtype)
    upcoming = _next(decided)
    tail = upcoming >= stop
    return np.where(tail, x[stop - 1], opened[np.where(tail, 0, upcoming)].astype(x.dtype))


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


def delta(x: ColumnArray, lengths: Lengths | None = None) -> ColumnArray:
    """Return x[t+1] - x[t], (T-1, C). Angles are subtracted as numbers; `wrap` then removes jumps of 2 pi."""
    change = x[1:] - x[:-1]
    if lengths is None or len(lengths) < 2:
        return change
    within = np.ones(len(x), np.bool_)
    within[np.cumsum(lengths)[lengths > 0] - 1] = False
    return change[within[:-1]]


def wrap(x: ColumnArray) -> ColumnArray:
    """Bring angles [rad] into [-pi, pi) by adding multiples of 2 pi; angles already inside do not change."""
    turns: ColumnArray = np.floor((x + math.pi) / (2 * math.pi))
    return x - 2 * math.pi * turns


def axis_angle_to_euler(x: ColumnArray) -> ColumnArray:
    """Turn rotation vectors (T, 3) [rad] into roll, pitch, yaw (T, 3) [rad] as in `euler_from_quat`."""
    half = np.sqrt((x * x).sum(axis=1, keepdims=True)) / 2
    # np.sinc(t) is sin(pi t) / (pi t), which is exact at zero
    return euler_from_quat(np.concatenate([x * (np.sinc(half / math.pi) / 2), np.cos(half)], axis=1))


def shift(x: ColumnArray, lengths: Lengths | None = None, *, by: int = -1) -> ColumnArray:
    """Shift the columns in time by `by` steps: -1 takes the next step's value. The ends repeat their value."""
    first, stop = _bounds(x, lengths)
    return x[np.clip(np.arange(len(x)) - by, first, stop - 1)]


@dataclass(frozen=True, slots=True)
class OperationSpec:
    """The signature of an operation.

    Attributes:
        function: the operation itself.
        parameters: keyword parameters, name -> annotation and default.
        width_in: the number of columns it needs, None for any.
        width_out: the number of columns it returns, None for as many as its input has.
        shortens: rows it removes from the end.
        by_episode: whether it takes the lengths of episodes.
    """

    function: Callable[..., ColumnArray]
    parameters: dict[str, inspect.Parameter]
    width_in: int | None = None
    width_out: int | None = None
    shortens: int = 0
    by_episode: bool = False


def _spec(
    function: Callable[..., ColumnArray],
    width_in: int | None = None,
    width_out: int | None = None,
    shortens: int = 0,
) -> OperationSpec:
    signature = inspect.signature(function, eval_str=True)
    keywords = {n: p for n, p in signature.parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
    return OperationSpec(function, keywords, width_in, width_out, shortens, "lengths" in signature.parameters)


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
