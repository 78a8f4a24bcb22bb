"""Episodes of pick-and-place with a known truth: every convention of action and state can be chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

DEGREES = 180 / np.pi


@dataclass(frozen=True)
class Truth:
    """How the episodes are written.

    Attributes:
        kind: of the action; "scaled" is a displacement divided by `unit`, "velocity" one times `hz`.
        follow: share of a command that the arm executes immediately; the rest follows in the next steps.
        rotation: how the state stores it. angles: of the action (and of the state's Euler angles).
        gripper: what a high command does, and its range.
        aperture: how the state stores it.
        idle_first: whether the first action is zero.
        still: whether the rotation columns of the action are all zero.
    """

    kind: Literal["delta", "scaled", "velocity", "absolute"] = "delta"
    unit: float = 0.01
    hz: float = 5.0
    follow: float = 1.0
    noise: float = 0.0
    rotation: Literal["euler", "xyzw", "wxyz"] = "euler"
    angles: Literal["radians", "degrees"] = "radians"
    down: bool = False
    gripper: Literal["high opens", "high closes"] = "high opens"
    form: Literal["0..1", "-1..1", "relative"] = "0..1"
    aperture: Literal["high", "low", "none"] = "high"
    idle_first: bool = False
    still: bool = False


def quaternion(rotvec: np.ndarray) -> np.ndarray:
    """(3,) -> xyzw."""
    angle = float(np.linalg.norm(rotvec))
    return np.array([*(rotvec * (np.sinc(angle / 2 / np.pi) / 2)), np.cos(angle / 2)])


def product(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Hamilton product of xyzw quaternions."""
    v = p[3] * q[:3] + q[3] * p[:3] + np.cross(p[:3], q[:3])
    return np.array([*v, p[3] * q[3] - p[:3] @ q[:3]])


def episodes(truth: Truth, rng: np.random.Generator, count: int = 10) -> list[dict[str, np.ndarray]]:
    """Episodes of 25 to 60 steps: approach, close, carry, open, retreat."""
    return [_episode(truth, rng) for _ in range(count)]


def _episode(t: Truth, rng: np.random.Generator) -> dict[str, np.ndarray]:
    legs = [int(rng.integers(7, 16)) for _ in range(4)]
    points = rng.uniform([0.2, -0.2, 0.05], [0.5, 0.2, 0.3], (5, 3))
    angles = rng.uniform(-0.4, 0.4, (5, 3)) * [0.5, 0.5, 2.0]
    path = np.concatenate([_leg(points[i], points[i + 1], n) for i, n in enumerate(legs)] + [points[-1:]])
    turn = np.concatenate([_leg(angles[i], angles[i + 1], n) for i, n in enumerate(legs)] + [angles[-1:]])
    if t.still:
        turn[:] = turn[0]
    pose = np.hstack([path, turn])
    pose[1:-1] += rng.normal(0, [0.001] * 3 + [0.0 if t.still else 0.004] * 3, (len(pose) - 2, 6))
    steps = len(pose)
    commanded = np.diff(pose, axis=0, append=pose[-1:])  # the displacement that each action commands
    reached = pose.copy()
    for k in range(1, steps):  # a controller that executes only a share of the remaining displacement
        reached[k] = reached[k - 1] + t.follow * (pose[k] - reached[k - 1])
    reached += rng.normal(0, t.noise, reached.shape) * ([1, 1, 1, 0, 0, 0] if t.still else [1] * 6)
    opened = np.ones(steps)
    opened[legs[0] + 1 : sum(legs[:3])] = 0.0
    width = rng.uniform(0.15, 0.5)  # of the held object
    aperture = np.ones(steps)
    for k in range(1, steps):
        aim = 1.0 if opened[k - 1] else width
        aperture[k] = aperture[k - 1] + np.clip(aim - aperture[k - 1], -0.4, 0.4)
    action = np.hstack([_command(t, pose, commanded), _grip(t, opened)[:, None]])
    if t.idle_first:
        action[0, :6] = 0
    observation = [reached[:, :3], _rotation(t, reached[:, 3:])]
    observation += [] if t.aperture == "none" else [(aperture if t.aperture == "high" else 1 - aperture)[:, None]]
    return {"action": action.astype(np.float32), "observation/state": np.hstack(observation).astype(np.float32)}


def _leg(a: np.ndarray, b: np.ndarray, steps: int) -> np.ndarray:
    s = np.arange(steps)[:, None] / steps
    return a + (3 * s**2 - 2 * s**3) * (b - a)


def _command(t: Truth, pose: np.ndarray, commanded: np.ndarray) -> np.ndarray:
    if t.kind == "absolute":
        target = np.vstack([pose[1:], pose[-1:]])
        return target * ([1, 1, 1] + [DEGREES if t.angles == "degrees" else 1] * 3)
    factor = {"delta": 1.0, "scaled": 1 / t.unit, "velocity": t.hz}[t.kind]
    turns = DEGREES if t.angles == "degrees" else 1.0
    command: np.ndarray = commanded * np.array([factor] * 3 + [factor * turns] * 3)
    return command


def _grip(t: Truth, opened: np.ndarray) -> np.ndarray:
    high = opened if t.gripper == "high opens" else 1 - opened
    if t.form == "relative":
        return np.diff(high, prepend=high[0])
    return high if t.form == "0..1" else 2 * high - 1


def _rotation(t: Truth, turn: np.ndarray) -> np.ndarray:
    """Euler angles as they are; quaternions by adding up small rotations, so that the action is their rotation."""
    if t.rotation == "euler":
        return turn * (DEGREES if t.angles == "degrees" else 1.0)
    q = [product(quaternion(turn[0]), np.array([1.0, 0, 0, 0])) if t.down else quaternion(turn[0])]
    for step in np.diff(turn, axis=0):
        q.append(product(quaternion(step), q[-1]))
    xyzw = np.array(q)
    xyzw *= np.where(xyzw[:, 3:] < 0, -1, 1)
    return xyzw if t.rotation == "xyzw" else xyzw[:, [3, 0, 1, 2]]
