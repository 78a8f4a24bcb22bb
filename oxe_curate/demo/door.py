"""A door opened by a hand that carries the only camera: the data set that filter drops."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from oxe_curate.arrays import Floats
from oxe_curate.demo.render import Color, Solids, Viewpoint, paint, tint

_SIZE = (960, 720)
_HANDLE_OUT = 0.055  # of the handle, in front of the door


@dataclass(frozen=True)
class Door:
    """A door in a wall (the plane y = 0, seen from y < 0) that opens towards the viewer.

    Attributes:
        width, height: metres; the lower edge is at z = 0.
        handle: height of the handle, metres.
        side: +1 if the hinge is on the left, -1 if on the right.
        color, wall: colours.
        panels: whether it has two raised panels.
    """

    width: float
    height: float
    handle: float
    side: float
    color: Color
    wall: Color
    panels: bool

    def rotation(self, angle: float) -> Floats:
        """(3, 3): columns are the direction from hinge to edge, the inward normal, and up."""
        c, s = np.cos(angle), np.sin(angle)
        return np.array([[self.side * c, self.side * s, 0], [-s, c, 0], [0, 0, 1.0]])

    def point(self, angle: float, along: float, out: float, up: float) -> Floats:
        """World position: `along` from the hinge, `out` in front of the surface, `up` from the floor."""
        hinge = np.array([-self.side * self.width / 2, 0.0, 0.0])
        return np.asarray(hinge + self.rotation(angle) @ [along, -out, up], np.float64)

    def grip(self, angle: float, out: float = _HANDLE_OUT, up: float = 0.0) -> Floats:
        """A point at the handle; by default, where it is grasped."""
        return self.point(angle, self.width - 0.07, out, self.handle + up)


@dataclass(frozen=True)
class DoorStep:
    """One step: the hand's position (3,), yaw (radians), opening and command, and the angle of the door."""

    position: Floats
    yaw: float
    opening: float
    angle: float
    command: float


def open_door(door: Door, rng: np.random.Generator) -> list[DoorStep]:
    """Move to the handle, close the hand, pull along the arc of the door."""
    grip = door.grip(0.0)
    start = grip + np.array([rng.uniform(-0.10, 0.10), -rng.uniform(0.42, 0.55), rng.uniform(-0.08, 0.08)])
    steps = [DoorStep(start, 0.0, 1.0, 0.0, 1.0)]

    def step(position: Floats, yaw: float, opening: float, angle: float, command: float) -> None:
        steps[-1] = replace(steps[-1], command=command)
        steps.append(DoorStep(position, yaw, opening, angle, command))

    approach = int(rng.integers(7, 10))
    for k in range(1, approach + 1):
        s = k / approach
        s = s * s * (3 - 2 * s)
        sway = np.zeros(3) if k == approach else rng.normal(0, 0.003, 3)
        step(start + s * (grip - start) + sway, 0.0, 1.0, 0.0, 1.0)
    for opening in (0.6, 0.2):
        step(grip, 0.0, opening, 0.0, 0.0)
    swing, widest = int(rng.integers(9, 12)), rng.uniform(0.85, 1.05)
    for k in range(1, swing + 1):
        angle = widest * k / swing
        step(door.grip(angle), -door.side * angle * 0.35, 0.2, angle, 0.0)
    return steps


def door_image(door: Door, step: DoorStep) -> Image.Image:
    """The view of the camera behind the fingers."""
    c, s = np.cos(step.yaw), np.sin(step.yaw)
    right, ahead, up = np.array([c, s, 0.0]), np.array([-s, c, 0.0]), np.array([0, 0, 1.0])
    eye = step.position - 0.27 * ahead + 0.10 * up
    camera = Viewpoint(tuple(eye), tuple(step.position + 0.25 * ahead + 0.01 * up), 62, _SIZE)
    canvas = _wall(door.wall).copy()
    # from far to near, because large flat objects cannot be sorted by their middles
    for layer in (*_door_layers(door, step.angle), _hand(step, right, ahead, up)):
        paint(canvas, camera, layer)
    return canvas


@functools.cache
def _wall(color: Color) -> Image.Image:
    shade = np.linspace(1.0, 0.84, _SIZE[1])[:, None, None] * np.array(color)
    return Image.fromarray(np.broadcast_to(shade, (_SIZE[1], _SIZE[0], 3)).astype(np.uint8))


def _door_layers(door: Door, angle: float) -> list[Solids]:
    doorway, trim, leaf, panels, handle = (Solids() for _ in range(5))
    w, h, turn = door.width, door.height, door.rotation(angle)
    doorway.box((0, 0.03, h / 2), (w, 0.02, h), (38, 40, 46))
    for x in (-w / 2 - 0.03, w / 2 + 0.03):
        trim.box((x, 0.02, h / 2), (0.06, 0.03, h + 0.12), tint(door.wall, 0.95))
    for z in (h + 0.03, -0.03):
        trim.box((0, 0.02, z), (w, 0.03, 0.06), tint(door.wall, 0.95))
    leaf.box(door.point(angle, w / 2, -0.012, h / 2), (w, 0.024, h), tint(door.color, 1.3), turn)
    for z in (0.27, 0.73) if door.panels else ():
        panels.box(door.point(angle, w * 0.46, 0.003, h * z), (w * 0.66, 0.006, h * 0.38), tint(door.color, 1.4), turn)
    for d in (0.06, -0.06):
        handle.tube(door.grip(angle, 0.0, d), door.grip(angle, up=d), 0.006, (150, 152, 158))
    handle.tube(door.grip(angle, up=-0.075), door.grip(angle, up=0.075), 0.009, (196, 198, 204))
    return [doorway, trim, leaf, panels, handle]


def _hand(step: DoorStep, right: Floats, ahead: Floats, up: Floats) -> Solids:
    """Two curved fingers with soft tips."""
    hand = Solids()
    for sign in (-1, 1):
        tip = step.position + right * sign * (0.012 + 0.038 * step.opening)
        knuckle = step.position - 0.09 * ahead + right * sign * (0.045 + 0.03 * step.opening) - 0.012 * up
        root = step.position - 0.20 * ahead + right * sign * 0.035 - 0.045 * up
        hand.tube(root, knuckle, 0.010, (58, 60, 66))
        hand.tube(knuckle, tip, 0.010, (58, 60, 66))
        hand.ball(knuckle, 0.0105, (74, 76, 84))
        hand.ball(tip, 0.017, (224, 92, 44))
    return hand
