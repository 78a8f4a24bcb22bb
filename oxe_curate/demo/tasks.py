"""Scripted demonstrations: each task moves the gripper along waypoints, and the world with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from oxe_curate.arrays import Floats
from oxe_curate.demo.robot import Pose
from oxe_curate.demo.world import BLOCK, COLORS, Block, Cabinet, Plate, World

TaskKind = Literal["pick", "plate", "stack", "push", "open", "close", "stow"]

_OPEN = 1.0
_PREPARED = 0.6  # opening at a handle, so that the inner finger does not touch the drawer


@dataclass(frozen=True)
class DemoTask:
    """A task: kind, colour of the block, and colour of the other block or direction ("left", "right")."""

    kind: TaskKind
    color: str = ""
    other: str = ""


@dataclass(frozen=True)
class DemoStep:
    """One step: the pose, the gripper command until the next step (1 open, 0 closed), and the world."""

    pose: Pose
    command: float
    world: World


@dataclass(frozen=True)
class Room:
    """The workspace of a robot.

    Attributes:
        x, y: range of block positions, in metres.
        home: position at the start of an episode.
        cabinet: if any.
        speed: largest distance of the gripper per step, in metres.
        turns: whether the hand may tilt and turn; otherwise it points straight down with zero angles.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    home: tuple[float, float, float]
    cabinet: Cabinet | None
    speed: float
    turns: bool


def perform(task: DemoTask, room: Room, rng: np.random.Generator) -> list[DemoStep]:
    """Set up the scene of a task and perform it. `rng` is the only source of randomness."""
    actor = _Actor(room, _set_scene(task, room, rng), rng)
    _SCRIPTS[task.kind](actor, task)
    return actor.steps


def _set_scene(task: DemoTask, room: Room, rng: np.random.Generator) -> World:
    """Blocks (those of the task and up to two more) and a plate, at a distance from each other."""
    others = [c for c in COLORS if c not in (task.color, task.other)]
    extra = list(rng.permutation(others))[: int(rng.integers(1, 3))]
    colors = [c for c in (task.color, task.other) if c in COLORS] + [str(c) for c in extra]
    world = World(cabinet=room.cabinet if task.kind in ("open", "close", "stow") or rng.random() < 0.5 else None)
    if world.cabinet:
        world.extent = world.cabinet.travel if task.kind in ("close", "stow") else 0.0
    taken: list[Floats] = []

    def place(margin: float) -> Floats:
        for _ in range(500):
            spot = np.array([rng.uniform(*room.x), rng.uniform(*room.y)])
            free = all(np.linalg.norm(spot - t) > margin for t in taken)
            if free and not (room.cabinet and _near_drawer(room.cabinet, spot)):
                break
        taken.append(spot)
        return spot

    if task.kind == "plate":
        world.plate = Plate(*place(0.12))
    for color in colors:
        spot = place(0.12 if world.plate and len(taken) == 1 else 0.085)
        yaw = float(rng.uniform(-0.5, 0.5)) if room.turns and task.kind != "push" else 0.0
        world.blocks[color] = Block(color, np.array([*spot, BLOCK / 2]), yaw)
    return world


def _near_drawer(cabinet: Cabinet, spot: Floats) -> bool:
    right, out, _ = cabinet.rotation.T @ np.array([spot[0] - cabinet.x, spot[1] - cabinet.y, 0.0])
    return bool(abs(right) < cabinet.width / 2 + 0.04 and out < cabinet.travel + 0.10)


class _Actor:
    """Moves the gripper and records every step."""

    def __init__(self, room: Room, world: World, rng: np.random.Generator) -> None:
        self.room, self.world, self.rng = room, world, rng
        self.pose = Pose(np.asarray(room.home) + rng.uniform(-0.02, 0.02, 3), self._tilt(0.0), _OPEN)
        self.steps = [DemoStep(self.pose, 1.0, world.snapshot())]

    def _tilt(self, yaw: float, freedom: float = 0.12) -> Floats:
        if not self.room.turns:
            return np.zeros(3)
        return np.array([*self.rng.uniform(-freedom, freedom, 2), yaw])

    def _step(self, pose: Pose, command: float) -> None:
        self.steps[-1] = replace(self.steps[-1], command=command)
        self.world.follow(self.pose, pose)
        self.pose = pose
        self.steps.append(DemoStep(pose, command, self.world.snapshot()))

    def move(self, target: Floats, yaw: float | None = None, *, straight: bool = False) -> None:
        """Move to a position, accelerating and decelerating; with a little sway unless `straight`."""
        start = self.pose
        yaw = float(start.rpy[2]) if yaw is None else yaw
        rpy = self._tilt(yaw, 0.0 if straight else 0.12)
        steps = max(2, round(float(np.linalg.norm(target - start.position)) / self.room.speed * 1.4))
        if self.room.turns:
            steps = max(steps, round(float(abs(rpy - start.rpy).max()) / 0.22))
        for k in range(1, steps + 1):
            s = k / steps
            s = s * s * (3 - 2 * s)
            sway = np.zeros(6) if straight or k == steps else self.rng.normal(0, [0.0015] * 3 + [0.012] * 3)
            angles = start.rpy + s * (rpy - start.rpy) + (sway[3:] if self.room.turns else 0)
            position = start.position + s * (target - start.position) + sway[:3]
            self._step(Pose(position, angles, start.opening), self.steps[-1].command)

    def open(self, opening: float = _OPEN) -> None:
        """Open the fingers over two steps and release what they hold."""
        self.world.release()
        self._squeeze(opening, 1.0)

    def close(self) -> None:
        """Close the fingers over two steps and hold what is between them."""
        opening = self.world.grasp(self.pose)
        held, self.world.held = self.world.held, None  # it does not move yet
        self._squeeze(opening, 0.0)
        self.world.held = held

    def _squeeze(self, opening: float, command: float) -> None:
        first = self.pose.opening
        for share in (0.5, 1.0):
            self._step(replace(self.pose, opening=first + share * (opening - first)), command)

    def above(self, position: Floats, height: float = 0.09) -> Floats:
        """A point above a position, with a small random offset."""
        offset: Floats = np.array([*self.rng.uniform(-0.006, 0.006, 2), height + self.rng.uniform(0, 0.02)])
        return position + offset

    def pick(self, color: str) -> None:
        """Grasp a block and lift it."""
        block = self.world.blocks[color]
        self.move(self.above(block.position), block.yaw if self.room.turns else 0.0)
        self.move(block.position.copy(), straight=True)
        self.close()
        self.move(self.above(block.position, 0.12))

    def put(self, spot: Floats) -> None:
        """Set down what is held at a position of the gripper, and move up."""
        self.move(self.above(spot, 0.07))
        self.move(spot, straight=True)
        self.open()
        self.move(self.above(spot, 0.08))


def _pick(actor: _Actor, task: DemoTask) -> None:
    actor.pick(task.color)


def _plate(actor: _Actor, task: DemoTask) -> None:
    actor.pick(task.color)
    plate = actor.world.plate
    assert plate is not None
    actor.put(np.array([plate.x, plate.y, plate.height + BLOCK / 2 + 0.004]))


def _stack(actor: _Actor, task: DemoTask) -> None:
    actor.pick(task.color)
    actor.put(actor.world.blocks[task.other].position + np.array([0, 0, BLOCK + 0.004]))


def _stow(actor: _Actor, task: DemoTask) -> None:
    cabinet = actor.world.cabinet
    assert cabinet is not None
    actor.pick(task.color)
    actor.move(cabinet.point(0, 0.055, 0.22))
    actor.put(cabinet.point(0, 0.055, 0.120))


def _push(actor: _Actor, task: DemoTask) -> None:
    """Left and right are as seen by the robot."""
    side = 1.0 if task.other == "left" else -1.0
    block = actor.world.blocks[task.color].position
    start = block - [0, side * 0.075, 0.004]
    actor.move(actor.above(start), 0.0)
    actor.close()
    actor.move(start, straight=True)
    actor.move(start + np.array([0, side * (0.075 + 0.05), 0]), straight=True)
    actor.move(actor.above(actor.pose.position, 0.08))


def _slide(actor: _Actor, out: float) -> None:
    """Grasp the handle and move the drawer."""
    world = actor.world
    cabinet = world.cabinet
    assert cabinet is not None
    yaw = 0.0 if cabinet.facing[0] == 0 else np.pi / 2  # fingers on both sides of the bar
    handle = cabinet.handle(world.extent)
    actor.open(_PREPARED)
    actor.move(actor.above(handle), yaw)
    actor.move(handle, straight=True)
    actor.close()
    actor.move(handle + cabinet.rotation @ [0, out, 0], straight=True)
    actor.open(_PREPARED)
    actor.move(actor.above(actor.pose.position, 0.08))


_SCRIPTS: dict[TaskKind, Callable[[_Actor, DemoTask], None]] = {
    "pick": _pick,
    "plate": _plate,
    "stack": _stack,
    "stow": _stow,
    "push": _push,
    "open": lambda actor, task: _slide(actor, 0.11),
    "close": lambda actor, task: _slide(actor, -0.11),
}
