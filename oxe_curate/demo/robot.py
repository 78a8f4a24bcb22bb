"""A six-jointed arm with a parallel gripper: its joint angles for a pose of the gripper, and its solids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from oxe_curate.arrays import Floats
from oxe_curate.demo.render import Color, Solids, Viewpoint

_FINGER = 0.055  # length of a finger in metres
_GRIP = 0.012  # of the grasp point above the finger tips, metres
OPENING = 0.085
"""Distance between the open fingers in metres."""


@dataclass(frozen=True)
class Pose:
    """Pose of the gripper.

    Attributes:
        position: (3,) metres, the point between the finger tips.
        rpy: (3,) radians; zero points straight down with the fingers apart along y.
        opening: 0 (closed) to 1 (open).
    """

    position: Floats
    rpy: Floats
    opening: float

    @property
    def rotation(self) -> Floats:
        """(3, 3), Rz(yaw) Ry(pitch) Rx(roll)."""
        return rotation_from_rpy(self.rpy)


def rotation_from_rpy(rpy: Floats) -> Floats:
    """Rz(yaw) Ry(pitch) Rx(roll) as a (3, 3) matrix."""
    (cr, cp, cy), (sr, sp, sy) = np.cos(rpy), np.sin(rpy)
    return np.array(
        [
            [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
            [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
            [-sp, cp * sr, cp * cr],
        ]
    )


@dataclass(frozen=True)
class Arm:
    """Shape and colours of an arm.

    Attributes:
        base: (x, y, z) of its base.
        shoulder: height of the shoulder above the base, metres.
        upper, fore: lengths of the two links, metres.
        hand: distance from the wrist to the grasp point, metres.
        thickness: radius of the upper link, metres.
        link, joint, finger: colours.
    """

    base: tuple[float, float, float] = (0.0, 0.0, 0.0)
    shoulder: float = 0.11
    upper: float = 0.26
    fore: float = 0.26
    hand: float = 0.15
    thickness: float = 0.026
    link: Color = (62, 64, 70)
    joint: Color = (96, 100, 108)
    finger: Color = (44, 45, 50)

    def joints(self, pose: Pose) -> Floats:
        """Joint angles (6,) in radians: waist, shoulder, elbow, then the wrist's three."""
        wrist = self._wrist(pose)
        waist, lift, bend = self._plane_angles(wrist)
        roll, pitch, yaw = pose.rpy
        return np.array([waist, lift, bend, -(lift - bend) - np.pi / 2 + pitch, roll, yaw - waist])

    def _wrist(self, pose: Pose) -> Floats:
        wrist: Floats = pose.position + pose.rotation[:, 2] * self.hand
        return wrist

    def _plane_angles(self, wrist: Floats) -> tuple[float, float, float]:
        """Waist, elevation of the upper link, and bend of the elbow (elbow up)."""
        dx, dy, dz = wrist - np.asarray(self.base) - [0, 0, self.shoulder]
        reach = min(float(np.sqrt(dx * dx + dy * dy + dz * dz)), (self.upper + self.fore) * 0.999)
        cosine = (self.upper**2 + reach**2 - self.fore**2) / (2 * self.upper * reach)
        inner = (self.upper**2 + self.fore**2 - reach**2) / (2 * self.upper * self.fore)
        lift = np.arctan2(dz, np.hypot(dx, dy)) + np.arccos(np.clip(cosine, -1, 1))
        return float(np.arctan2(dy, dx)), float(lift), float(np.pi - np.arccos(np.clip(inner, -1, 1)))

    def add_to(self, solids: Solids, pose: Pose) -> None:
        """Add the whole arm."""
        wrist = self._wrist(pose)
        waist, lift, _ = self._plane_angles(wrist)
        foot = np.asarray(self.base)
        collar, shoulder = (foot + np.array([0, 0, height]) for height in (0.035, self.shoulder))
        outward = np.array([np.cos(waist), np.sin(waist), 0.0])
        elbow = shoulder + self.upper * (np.cos(lift) * outward + np.sin(lift) * np.array([0, 0, 1.0]))
        r = self.thickness
        solids.tube(foot, collar, r * 2.3, self.link, end_radius=r * 2.1)
        solids.tube(collar, shoulder, r * 1.55, self.joint, end_radius=r * 1.35)
        side = np.array([-outward[1], outward[0], 0.0])
        for center, radius in ((shoulder, r * 1.35), (elbow, r * 1.15)):
            solids.tube(center - side * r * 1.35, center + side * r * 1.35, radius, self.joint)
        solids.tube(shoulder, elbow, r, self.link, end_radius=r * 0.9)
        solids.tube(elbow, wrist, r * 0.88, self.link, end_radius=r * 0.72)
        solids.ball(wrist, r * 0.95, self.joint)
        up = pose.rotation[:, 2]
        palm = pose.position + up * (_FINGER + 0.012)
        solids.tube(wrist, palm, r * 0.72, self.link, end_radius=r * 0.9)
        self.add_gripper(solids, pose)

    def add_gripper(self, solids: Solids, pose: Pose, *, palm: bool = True) -> None:
        """Add the palm and the two fingers."""
        turn = pose.rotation
        if palm:
            center = pose.position + turn @ [0, 0, _FINGER - _GRIP + 0.012]
            solids.box(center, (0.036, OPENING + 0.035, 0.022), self.joint, turn)
        for sign in (-1, 1):
            across = sign * (pose.opening * OPENING / 2 + 0.007)
            solids.box(
                pose.position + turn @ [0, across, _FINGER / 2 - _GRIP], (0.020, 0.013, _FINGER), self.finger, turn
            )

    def wrist_camera(self, pose: Pose, size: tuple[int, int], fov: float = 75.0) -> Viewpoint:
        """The wrist camera, which sees the finger tips and the grasped object."""
        turn = pose.rotation
        eye = pose.position + turn @ [-0.085, 0, 0.105]
        target = pose.position + turn @ [0.012, 0, -0.02]
        return Viewpoint(tuple(eye), tuple(target), fov, size, up=tuple(turn @ [1.0, 0, 0.3]))
