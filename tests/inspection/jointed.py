"""Episodes of arms that are commanded by their joints, with states of joints or of the pose that follows from them."""

from __future__ import annotations

from typing import Literal

import numpy as np

_HOME = np.array([0, -0.78, 0, -2.35, 0, 1.57, 0.78])
_LENGTHS = (0.33, 0.0, 0.32, 0.0, 0.38, 0.0, 0.2)


def pose_of(joints: np.ndarray) -> np.ndarray:
    """Forward kinematics of a chain that turns about z and y in turn: (T, 7) -> xyz and roll-pitch-yaw (T, 6)."""
    out = []
    for row in joints:
        turn, at = np.eye(3), np.zeros(3)
        for i, angle in enumerate(row):
            k = np.zeros((3, 3))
            if i % 2:
                k[0, 2], k[2, 0] = 1, -1
            else:
                k[0, 1], k[1, 0] = -1, 1
            turn = turn @ (np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k)
            at = at + turn @ [0, 0, _LENGTHS[i]]
        pitch = -np.arcsin(np.clip(turn[2, 0], -1, 1))
        out.append([*at, np.arctan2(turn[2, 1], turn[2, 2]), pitch, np.arctan2(turn[1, 0], turn[0, 0])])
    return np.array(out)


def joint_episodes(
    rng: np.random.Generator,
    *,
    joints: int = 7,
    arms: int = 1,
    state: Literal["joints", "pose"] = "joints",
    deltas: bool = False,
    gripper: bool = True,
    base: int = 0,
    count: int = 10,
) -> list[dict[str, np.ndarray]]:
    """Smooth motions between random joint positions; action = next joints, or their change, then gripper and base."""
    made = []
    for _ in range(count):
        legs = [int(rng.integers(8, 16)) for _ in range(4)]
        action, held = [], []
        for _ in range(arms):
            points = _HOME[:joints] + rng.uniform(-0.6, 0.6, (5, joints))
            ramps = [3 * s**2 - 2 * s**3 for s in (np.arange(n)[:, None] / n for n in legs)]
            q = np.concatenate(
                [points[i] + (points[i + 1] - points[i]) * r for i, r in enumerate(ramps)] + [points[-1:]]
            )
            q += rng.normal(0, 0.002, q.shape)
            opened = np.ones((len(q), 1))
            opened[legs[0] : sum(legs[:3])] = 0
            command = np.diff(q, axis=0, append=q[-1:]) if deltas else np.vstack([q[1:], q[-1:]])
            action += [command, *([opened] if gripper else [])]
            held += [q if state == "joints" else pose_of(np.hstack([q, np.zeros((len(q), 7 - joints))])), opened]
        if base:
            action.append(rng.normal(0, 0.1, (len(q), base)))
        made.append({
            "action": np.hstack(action).astype(np.float32), "observation/state": np.hstack(held).astype(np.float32)
        })  # fmt: skip
    return made
