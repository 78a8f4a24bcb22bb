"""Every script reaches its goal, wherever the blocks lie."""

from dataclasses import replace

import numpy as np
import pytest

from oxe_curate.demo.rooms import BRIDGE, FRACTAL, JACO, Scene
from oxe_curate.demo.tasks import DemoStep, DemoTask, perform
from oxe_curate.demo.world import BLOCK, Block, Cabinet, Plate, World

SCENES = {"bridge": BRIDGE[0], "fractal": FRACTAL, "jaco": JACO}
CASES = [
    *[("bridge", kind) for kind in ("pick", "plate", "stack", "stow", "push", "open", "close")],
    *[("fractal", kind) for kind in ("pick", "stack", "stow", "open", "close")],
    *[("jaco", kind) for kind in ("pick", "plate", "push")],
]


def task_of(kind: str, seed: int) -> DemoTask:
    other = {"stack": "blue", "push": ("left", "right")[seed % 2]}.get(kind, "")
    return DemoTask(kind, "" if kind in ("open", "close") else "red", other)


def reached(task: DemoTask, frames: list[DemoStep]) -> bool:
    before, after = frames[0].world, frames[-1].world
    block = after.blocks.get("red")
    match task.kind:
        case "pick":
            return block.position[2] > 0.09 and after.held == "red"
        case "plate":
            return np.isclose(block.position[2], Plate.height + BLOCK / 2)
        case "stack":
            return np.isclose(block.position[2], 1.5 * BLOCK)
        case "stow":
            return after.cabinet.inside(block.position, after.extent) and BLOCK < block.position[2] < 0.1
        case "push":
            moved = (block.position - before.blocks["red"].position)[1]
            return (moved if task.other == "left" else -moved) > 0.05
        case "open":
            return after.extent == pytest.approx(Cabinet.travel)
        case "close":
            return after.extent == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("scene", "kind"), CASES)
def test_every_task_is_completed_within_reach(scene, kind):
    scene = SCENES[scene]
    for seed in range(8):
        task = task_of(kind, seed)
        frames = perform(task, scene.room, np.random.default_rng(seed))
        assert reached(task, frames), seed
        assert 10 <= len(frames) <= 45
        assert max(stretch(scene, frame) for frame in frames) < 0.98
        assert min(frame.pose.position[2] for frame in frames) > 0.01


def stretch(scene: Scene, frame: DemoStep) -> float:
    arm = scene.arm
    wrist = frame.pose.position + frame.pose.rotation[:, 2] * arm.hand
    shoulder = np.asarray(arm.base) + np.array([0, 0, arm.shoulder])
    return float(np.linalg.norm(wrist - shoulder)) / (arm.upper + arm.fore)


def test_the_same_seed_gives_the_same_episode():
    first, second = (perform(DemoTask("pick", "red"), JACO.room, np.random.default_rng(3)) for _ in range(2))
    assert [f.pose.position.tolist() for f in first] == [f.pose.position.tolist() for f in second]


def test_an_upright_hand_does_not_turn():
    frames = perform(DemoTask("plate", "red"), JACO.room, np.random.default_rng(0))
    assert not any(frame.pose.rpy.any() for frame in frames)


def test_a_held_block_moves_with_the_hand():
    frames = perform(DemoTask("pick", "red"), BRIDGE[0].room, np.random.default_rng(1))
    held = [frame for frame in frames if frame.world.held == "red"]
    assert len(held) > 3
    offsets = [f.pose.rotation.T @ (f.world.blocks["red"].position - f.pose.position) for f in held]
    np.testing.assert_allclose(offsets, [offsets[0]] * len(offsets), atol=1e-12)


def test_commands_precede_the_motion_of_the_fingers():
    frames = perform(DemoTask("pick", "red"), BRIDGE[0].room, np.random.default_rng(1))
    first_closing = next(t for t, f in enumerate(frames) if f.pose.opening < 1)
    assert [f.command for f in frames[: first_closing - 1]] == [1.0] * (first_closing - 1)
    assert [f.command for f in frames[first_closing - 1 :]] == [0.0] * (len(frames) - first_closing + 1)


def test_a_drawer_moves_its_blocks():
    cabinet = Cabinet(0.3, 0.2, (0, -1))
    world = World(
        blocks={"red": Block("red", cabinet.point(0, 0.05, 0.09))}, cabinet=cabinet, extent=0.11, held="drawer"
    )
    start = perform(DemoTask("pick", "red"), BRIDGE[0].room, np.random.default_rng(0))[0].pose
    end = replace(start, position=start.position + np.array([0.0, 0.03, 0.0]))
    world.follow(start, end)
    assert world.extent == pytest.approx(0.08)
    np.testing.assert_allclose(world.blocks["red"].position, cabinet.point(0, 0.02, 0.09))
