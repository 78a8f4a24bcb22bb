"""A door opened by a hand that carries the only camera: the data set that the filter must refuse."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from PIL import Image

from oxe_curate.demo.render import Color, Solids, Vector, Viewpoint, paint

_SIZE = (960, 720)
_HANDLE_OUT = 0.055  # of the handle, before the door


@dataclass(frozen=True)
class Door:
    """A door in a wall (the plane y = 0, seen from y < 0) that opens towards the viewer.

    Attributes:
        width, height: metres; the lower edge lies at z = 0.
        handle: height of the handle, metres.
        side: +1 if the hinge is on the left, -1 if on the right.
        color, wall: paint.
        panels: whether it has two raised fields.
    """

    width: float
    height: float
    handle: float
    side: float
    color: Color
    wall: Color
    panels: bool

    def rotation(self, angle: float) -> Vector:
        """(3, 3): columns are the door's direction from hinge to edge, its inward normal, and up."""
        c, s = np.cos(angle), np.sin(angle)
        return np.array([[self.side * c, self.side * s, 0], [-s, c, 0], [0, 0, 1.0]])

    def point(self, angle: float, along: float, out: float, up: float) -> Vector:
        """World position: `along` from the hinge, `out` before the surface, `up` from the floor."""
        hinge = np.array([-self.side * self.width / 2, 0.0, 0.0])
        world: Vector = hinge + self.rotation(angle) @ [along, -out, up]
        return world

    def grip(self, angle: float) -> Vector:
        """Where the handle is grasped."""
        return self.point(angle, self.width - 0.07, _HANDLE_OUT, self.handle)


@dataclass(frozen=True)
class DoorFrame:
    """One step: the hand's position (3,), its heading (yaw, radians), its opening, and the door's angle."""

    position: Vector
    yaw: float
    opening: float
    angle: float
    command: float


def open_door(door: Door, rng: np.random.Generator) -> list[DoorFrame]:
    """Drive to the handle, close the hand, pull along the door's arc."""
    grip = door.grip(0.0)
    start = grip + np.array([rng.uniform(-0.10, 0.10), -rng.uniform(0.42, 0.55), rng.uniform(-0.08, 0.08)])
    frames = [DoorFrame(start, 0.0, 1.0, 0.0, 1.0)]

    def step(position: Vector, yaw: float, opening: float, angle: float, command: float) -> None:
        last = frames[-1]
        frames[-1] = DoorFrame(last.position, last.yaw, last.opening, last.angle, command)
        frames.append(DoorFrame(position, yaw, opening, angle, command))

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
    return frames


def picture(door: Door, frame: DoorFrame) -> Image.Image:
    """The view of the camera behind the fingers."""
    c, s = np.cos(frame.yaw), np.sin(frame.yaw)
    right, ahead = np.array([c, s, 0.0]), np.array([-s, c, 0.0])
    up = np.array([0, 0, 1.0])
    eye = frame.position - 0.27 * ahead + 0.10 * up
    camera = Viewpoint(tuple(eye), tuple(frame.position + 0.25 * ahead + 0.01 * up), 62, _SIZE)
    canvas = _wall(door.wall).copy()
    for layer in _layers(door, frame, right, ahead, up):
        paint(canvas, camera, layer)
    return canvas


@functools.cache
def _wall(color: Color) -> Image.Image:
    shade = np.linspace(1.0, 0.84, _SIZE[1])[:, None, None] * np.array(color)
    return Image.fromarray(np.broadcast_to(shade, (_SIZE[1], _SIZE[0], 3)).astype(np.uint8))


def _layers(door: Door, frame: DoorFrame, right: Vector, ahead: Vector, up: Vector) -> list[Solids]:
    """From far to near, because large flat things cannot be sorted by their middles."""
    opening, frame_boxes, leaf, fields, handle, hand = (Solids() for _ in range(6))
    w, h = door.width, door.height
    opening.box((0, 0.03, h / 2), (w, 0.02, h), (38, 40, 46))
    trim = _scale(door.wall, 0.95)
    for x, z, size in (
        (-w / 2 - 0.03, h / 2, (0.06, 0.03, h + 0.12)),
        (w / 2 + 0.03, h / 2, (0.06, 0.03, h + 0.12)),
        (0.0, h + 0.03, (w, 0.03, 0.06)),
        (0.0, -0.03, (w, 0.03, 0.06)),
    ):
        frame_boxes.box((x, 0.02, z), size, trim)
    turn = door.rotation(frame.angle)
    leaf.box(door.point(frame.angle, w / 2, -0.012, h / 2), (w, 0.024, h), _scale(door.color, 1.3), turn)
    if door.panels:
        for low, high in ((0.08, 0.46), (0.54, 0.92)):
            size = (w * 0.66, 0.006, h * (high - low))
            center = door.point(frame.angle, w * 0.46, 0.003, h * (low + high) / 2)
            fields.box(center, size, _scale(door.color, 1.4), turn)
    along = w - 0.07
    top, bottom = (door.point(frame.angle, along, _HANDLE_OUT, door.handle + d) for d in (0.075, -0.075))
    for d in (0.06, -0.06):
        root, tip = (door.point(frame.angle, along, out, door.handle + d) for out in (0.0, _HANDLE_OUT))
        handle.tube(root, tip, 0.006, (150, 152, 158))
    handle.tube(bottom, top, 0.009, (196, 198, 204))
    for sign in (-1, 1):  # two curved fingers with soft tips
        tip = frame.position + right * sign * (0.012 + 0.038 * frame.opening)
        knuckle = frame.position - 0.09 * ahead + right * sign * (0.045 + 0.03 * frame.opening) - 0.012 * up
        root = frame.position - 0.20 * ahead + right * sign * 0.035 - 0.045 * up
        hand.tube(root, knuckle, 0.010, (58, 60, 66))
        hand.tube(knuckle, tip, 0.010, (58, 60, 66))
        hand.ball(knuckle, 0.0105, (74, 76, 84))
        hand.ball(tip, 0.017, (224, 92, 44))
    return [opening, frame_boxes, leaf, fields, handle, hand]


def _scale(color: Color, factor: float) -> Color:
    r, g, b = (min(255, int(c * factor)) for c in color)
    return r, g, b
