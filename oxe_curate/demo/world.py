"""Objects on the table: how they move with the gripper, and their solids."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from oxe_curate.arrays import Floats
from oxe_curate.demo.render import Color, Solids, tint
from oxe_curate.demo.robot import OPENING, Pose

BLOCK = 0.040
"""Edge of a block in metres."""

COLORS: dict[str, Color] = {
    "red": (206, 52, 44),
    "blue": (44, 98, 204),
    "green": (62, 158, 74),
    "yellow": (236, 190, 50),
    "orange": (236, 122, 38),
    "purple": (128, 76, 176),
}

_FLOOR = 0.070  # of the drawer, above the table
_HANDLE_OUT = 0.045  # of the handle, in front of the drawer
_REACH = 0.03  # distance within which an object is grasped


@dataclass
class Block:
    """A cube; `position` is its centre."""

    color: str
    position: Floats
    yaw: float = 0.0


@dataclass(frozen=True)
class Plate:
    """A round plate on the table."""

    x: float
    y: float
    color: Color = (116, 176, 172)

    radius = 0.062
    height = 0.010


@dataclass(frozen=True)
class Cabinet:
    """A small cabinet with a sliding upper drawer.

    Attributes:
        x, y: middle of the lower edge of its front.
        facing: unit vector (x, y) in which the drawer opens.
        wood: colour.
    """

    x: float
    y: float
    facing: tuple[float, float]
    wood: Color = (150, 104, 66)

    width, depth, height = 0.20, 0.17, 0.14
    travel = 0.11

    @property
    def rotation(self) -> Floats:
        """(3, 3): columns are the cabinet's right, outward and up."""
        nx, ny = self.facing
        return np.array([[ny, nx, 0], [-nx, ny, 0], [0, 0, 1.0]])

    def point(self, right: float, out: float, up: float) -> Floats:
        """World position of a point in the cabinet's own axes."""
        world: Floats = self.rotation @ [right, out, up] + [self.x, self.y, 0]
        return world

    def handle(self, extent: float) -> Floats:
        """Middle of the upper drawer's handle when the drawer is `extent` metres open."""
        return self.point(0, extent + 0.014 + _HANDLE_OUT, 0.098)

    def inside(self, position: Floats, extent: float) -> bool:
        """Whether a position is above the open part of the drawer."""
        right, out, _ = self.rotation.T @ (position - [self.x, self.y, 0])
        return bool(abs(right) < self.width / 2 - 0.015 and 0 < out < extent)

    def add_to(self, solids: Solids, extent: float) -> None:
        """Add the cabinet with its drawer `extent` metres open."""
        dark, front = tint(self.wood, 0.30), tint(self.wood, 1.16)
        inner = tint(self.wood, 0.85)

        def box(right: float, out: float, up: float, size: tuple[float, float, float], color: Color) -> None:
            solids.box(self.point(right, out, up), size, color, self.rotation)

        box(0, -self.depth / 2, self.height / 2, (self.width, self.depth, self.height), self.wood)
        box(0, -self.depth / 2 + 0.006, self.height + 0.005, (self.width + 0.02, self.depth + 0.02, 0.01), front)
        box(0, 0.001, 0.098, (0.176, 0.004, 0.062), dark)
        for up, out in ((0.034, 0.0), (0.098, extent)):
            box(0, out + 0.008, up, (0.184, 0.012, 0.056), front)
            solids.tube(
                self.point(-0.035, out + 0.014 + _HANDLE_OUT, up),
                self.point(0.035, out + 0.014 + _HANDLE_OUT, up),
                0.006,
                (188, 190, 196),
            )
            for right in (-0.03, 0.03):
                box(right, out + 0.014 + _HANDLE_OUT / 2, up, (0.008, _HANDLE_OUT, 0.008), (150, 152, 158))
        if extent > 0.004:
            box(0, extent / 2, _FLOOR - 0.003, (0.168, extent, 0.006), inner)
            for right in (-0.084, 0.084):
                box(right, extent / 2, 0.092, (0.008, extent, 0.046), inner)


@dataclass
class World:
    """Everything except the robot. It moves with the gripper, see `follow`, `grasp` and `release`."""

    blocks: dict[str, Block] = field(default_factory=dict)
    plate: Plate | None = None
    cabinet: Cabinet | None = None
    extent: float = 0.0
    held: str | None = None  # a block's colour, or "drawer"
    _grasp: tuple[Floats, float] = field(default=(np.zeros(3), 0.0))  # of the block relative to the hand: position, yaw

    def snapshot(self) -> World:
        """A copy that later motion does not change."""
        return replace(self, blocks={color: replace(block) for color, block in self.blocks.items()})

    def grasp(self, pose: Pose) -> float:
        """Close the fingers and hold what is between them. Returns how far they remain open (0 to 1)."""
        for block in self.blocks.values():
            if np.linalg.norm(block.position - pose.position) < _REACH:
                self.held = block.color
                self._grasp = (pose.rotation.T @ (block.position - pose.position), block.yaw - pose.rpy[2])
                return BLOCK / OPENING
        if self.cabinet and np.linalg.norm(self.cabinet.handle(self.extent) - pose.position) < _REACH:
            self.held = "drawer"
            return 0.012 / OPENING
        return 0.0

    def release(self) -> None:
        """Open the fingers: a held block falls onto what is below it."""
        if self.held in self.blocks:
            block = self.blocks[self.held]
            block.position = np.array([*block.position[:2], self._support(block) + BLOCK / 2])
        self.held = None

    def follow(self, before: Pose, after: Pose) -> None:
        """Move what the gripper holds, or what its closed fingers push along the table."""
        moved = after.position - before.position
        if self.held == "drawer" and self.cabinet:
            out = float(moved[:2] @ self.cabinet.facing)
            extent = float(np.clip(self.extent + out, 0.0, self.cabinet.travel))
            self._carry(extent - self.extent)
            self.extent = extent
        elif self.held:
            offset, yaw = self._grasp
            block = self.blocks[self.held]
            block.position, block.yaw = after.position + after.rotation @ offset, after.rpy[2] + yaw
        elif after.opening < 0.1 and after.position[2] < BLOCK:
            self._push(after, moved)

    def _carry(self, out: float) -> None:
        """Move the blocks in the drawer with it."""
        assert self.cabinet is not None
        for block in self.blocks.values():
            if block.position[2] > _FLOOR and self.cabinet.inside(block.position, self.extent + 1e-6):
                block.position = block.position + self.cabinet.rotation @ [0, out, 0]

    def _push(self, pose: Pose, moved: Floats) -> None:
        """Keep blocks ahead of the fingers at a distance of half a block and half the width of the fingers."""
        speed = np.linalg.norm(moved[:2])
        if speed < 1e-6:
            return
        ahead = moved[:2] / speed
        for block in self.blocks.values():
            gap = block.position[:2] - pose.position[:2]
            along, aside = gap @ ahead, abs(gap @ [-ahead[1], ahead[0]])
            contact = BLOCK / 2 + 0.013
            was_ahead = along + speed > 0
            if was_ahead and along < contact and aside < BLOCK and block.position[2] < BLOCK:
                block.position = block.position + np.array([*ahead * (contact - along), 0.0])

    def _support(self, falling: Block) -> float:
        """Height of the surface below a block."""
        x, y, z = falling.position
        if self.cabinet and self.cabinet.inside(falling.position, self.extent):
            return _FLOOR
        below = [
            b.position[2] + BLOCK / 2
            for b in self.blocks.values()
            if b is not falling and b.position[2] < z and np.hypot(*(b.position[:2] - [x, y])) < BLOCK * 0.8
        ]
        if self.plate and np.hypot(x - self.plate.x, y - self.plate.y) < self.plate.radius:
            below.append(self.plate.height)
        return float(max(below, default=0.0))

    def add_to(self, solids: Solids) -> None:
        """Add everything."""
        if self.plate:
            foot = np.array([self.plate.x, self.plate.y, 0.0])
            rim = foot + np.array([0.0, 0.0, self.plate.height])
            solids.tube(foot, rim, self.plate.radius * 0.8, self.plate.color, end_radius=self.plate.radius)
        if self.cabinet:
            self.cabinet.add_to(solids, self.extent)
        for block in self.blocks.values():
            c, s = np.cos(block.yaw), np.sin(block.yaw)
            solids.box(block.position, (BLOCK,) * 3, COLORS[block.color], np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]))
