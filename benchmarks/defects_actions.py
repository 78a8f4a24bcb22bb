"""Defects of actions: what is stored is not what moved the arm."""

from __future__ import annotations

import numpy as np

from benchmarks.defects_episode import Floats, StoredEpisode
from benchmarks.defects_kinds import Scene, kind


def pose(scene: Scene, episode: StoredEpisode | None = None) -> Floats:
    """float64 (T, 3 or 6): the action's displacement, and its rotation where the recipe reads one."""
    episode = episode or scene.episode
    rpy = scene.parts.rpy
    xyz = scene.part("xyz").get(episode)
    return np.hstack([xyz, rpy.get(episode)]) if rpy else xyz


def put(scene: Scene, new: Floats) -> StoredEpisode:
    """The episode with another pose action."""
    episode = scene.part("xyz").put(scene.episode, new[:, :3])
    return scene.parts.rpy.put(episode, new[:, 3:]) if scene.parts.rpy else episode


def moving_axes(values: Floats) -> list[int]:
    """The axes that move, the one with the longest way first; those below a third of it hardly matter."""
    way = np.abs(values).sum(axis=0)
    order = np.argsort(-way)
    return [int(axis) for axis in order if way[axis] > 0 and way[axis] >= way[order[0]] / 3]


POSE = ("xyz",)
BOTH = ("xyz", "rpy")


@kind("one axis of the action has the wrong sign", *POSE)
def action_sign(scene: Scene) -> StoredEpisode | None:
    columns = scene.part("xyz")
    xyz = columns.get(scene.episode)
    axes = moving_axes(xyz)
    if not axes:
        return None
    xyz[:, scene.rng.choice(axes)] *= -1
    return columns.put(scene.episode, xyz)


@kind("two axes of the action are swapped", *POSE)
def action_swapped_axes(scene: Scene) -> StoredEpisode | None:
    columns = scene.part("xyz")
    xyz = columns.get(scene.episode)
    axes = moving_axes(xyz)[:2]
    if len(axes) < 2:
        return None
    xyz[:, axes] = xyz[:, axes[::-1]]
    return columns.put(scene.episode, xyz)


@kind("actions three times too large", *POSE, touches=BOTH)
def action_large(scene: Scene) -> StoredEpisode | None:
    return put(scene, pose(scene) * 3)


@kind("actions at 0.3 of their size", *POSE, touches=BOTH)
def action_small(scene: Scene) -> StoredEpisode | None:
    return put(scene, pose(scene) * 0.3)


@kind("actions 2 to 4 steps late or early", *POSE, touches=("steps",))
def action_lag(scene: Scene) -> StoredEpisode | None:
    by = int(scene.rng.integers(2, 5 if scene.steps > 20 else 4)) * int(scene.rng.choice([-1, 1]))
    columns = (scene.parts.xyz, scene.parts.rpy, scene.parts.gripper)
    return scene.shifted([part.name for part in columns if part], by)


@kind("the steps' actions in random order", *POSE, touches=BOTH)
def action_shuffled(scene: Scene) -> StoredEpisode | None:
    return put(scene, pose(scene)[scene.rng.permutation(scene.steps)])


@kind("the actions of another episode", *POSE, touches=("xyz", "rpy", "gripper"))
def action_other(scene: Scene) -> StoredEpisode | None:
    other = scene.as_long()
    if other is None:
        return None
    rows = np.arange(scene.steps)
    episode = put(scene, pose(scene, other)[rows])
    gripper = scene.parts.gripper
    return gripper.put(episode, gripper.get(other)[rows]) if gripper else episode


@kind("the same action at every step", *POSE, touches=BOTH)
def action_constant(scene: Scene) -> StoredEpisode | None:
    values = pose(scene)
    values[:] = values[np.argmax(np.abs(values[:, :3]).sum(axis=1) > 0)]
    return put(scene, values)


@kind("a block of actions stored twice in a row", *POSE, touches=BOTH)
def action_block(scene: Scene) -> StoredEpisode | None:
    values = pose(scene)
    length = max(2, round(scene.steps * 0.25))
    start = int(scene.rng.integers(1, scene.steps - 2 * length + 1))
    values[start + length : start + 2 * length] = values[start : start + length]
    return put(scene, values)


@kind("all pose actions are zero", *POSE, touches=BOTH)
def action_zero(scene: Scene) -> StoredEpisode | None:
    return put(scene, np.zeros_like(pose(scene)))


@kind("a third of the actions lost, stored as zero", *POSE, touches=BOTH)
def action_gaps(scene: Scene) -> StoredEpisode | None:
    values = pose(scene)
    values[scene.rng.choice(scene.steps, scene.steps // 3, replace=False)] = 0
    return put(scene, values)


@kind("the action stays at one value for the second half", *POSE, touches=BOTH)
def action_stuck(scene: Scene) -> StoredEpisode | None:
    values = pose(scene)
    values[scene.steps // 2 :] = values[scene.steps // 2]
    return put(scene, values)


def _spike(scene: Scene, count: int) -> StoredEpisode:
    values = pose(scene)
    size = np.abs(values[:, :3]).max()
    for step in scene.rng.choice(np.arange(1, scene.steps - 1), count, replace=False):
        values[step, scene.rng.integers(3)] = size * scene.rng.uniform(5, 12) * scene.rng.choice([-1, 1])
    return put(scene, values)


@kind("one step with 5 to 12 times the largest action", *POSE, touches=BOTH)
def action_spike(scene: Scene) -> StoredEpisode | None:
    return _spike(scene, 1)


@kind("three to five such steps", *POSE, touches=BOTH)
def action_spikes(scene: Scene) -> StoredEpisode | None:
    return _spike(scene, int(scene.rng.integers(3, 6)))


@kind("an action of 1e6", *POSE)
def action_impossible(scene: Scene) -> StoredEpisode | None:
    columns = scene.part("xyz")
    xyz = columns.get(scene.episode)
    xyz[scene.rng.integers(1, scene.steps - 1), scene.rng.integers(3)] = 1e6
    return columns.put(scene.episode, xyz)


@kind("noise of 1.5 standard deviations on the actions", *POSE, touches=BOTH)
def action_noise(scene: Scene) -> StoredEpisode | None:
    values = pose(scene)
    return put(scene, values + scene.rng.normal(0, 1, values.shape) * values.std(axis=0) * 1.5)


@kind("actions clipped at 30 % of their largest value", *POSE, touches=BOTH)
def action_clipped(scene: Scene) -> StoredEpisode | None:
    values = pose(scene)
    limit = np.abs(values).max(axis=0) * 0.3
    return put(scene, np.clip(values, -limit, limit))


@kind("every action at one end of its range", *POSE, touches=BOTH)
def action_saturated(scene: Scene) -> StoredEpisode | None:
    values = pose(scene)
    return put(scene, np.sign(values) * np.abs(values).max(axis=0))


@kind("a constant added to one axis of the action", *POSE)
def action_bias(scene: Scene) -> StoredEpisode | None:
    columns = scene.part("xyz")
    xyz = columns.get(scene.episode)
    axis = moving_axes(xyz)[:1]
    if not axis:
        return None
    xyz[:, axis] += np.abs(xyz[:, axis]).max() * 0.8 * scene.rng.choice([-1, 1])
    return columns.put(scene.episode, xyz)


@kind("an action that is NaN", *POSE)
def action_nan(scene: Scene) -> StoredEpisode | None:
    columns = scene.part("xyz")
    xyz = columns.get(scene.episode)
    xyz[scene.rng.integers(1, scene.steps - 1)] = np.nan
    return columns.put(scene.episode, xyz)


@kind("an angle that jumps by 2 pi: one action turns the hand around", "rpy")
def angle_jump(scene: Scene) -> StoredEpisode | None:
    columns = scene.part("rpy")
    rpy = columns.get(scene.episode)
    rpy[scene.rng.integers(1, scene.steps - 1), scene.rng.integers(3)] += 2 * np.pi * scene.rng.choice([-1, 1])
    return columns.put(scene.episode, rpy)


@kind("a state's angle that wraps by 2 pi in the middle", "angles")
def angle_wrap(scene: Scene) -> StoredEpisode | None:
    columns = scene.part("angles")
    angles = columns.get(scene.episode)
    angles[scene.rng.integers(2, scene.steps - 2) :, scene.rng.integers(3)] += 2 * np.pi * scene.rng.choice([-1, 1])
    return columns.put(scene.episode, angles)


@kind("gripper commands inverted", "gripper")
def gripper_inverted(scene: Scene) -> StoredEpisode | None:
    columns = scene.part("gripper")
    return columns.put(scene.episode, sum(scene.parts.gripper_range) - columns.get(scene.episode))


@kind("gripper command constant though the gripper moves", "gripper")
def gripper_constant(scene: Scene) -> StoredEpisode | None:
    columns = scene.part("gripper")
    command = columns.get(scene.episode)
    if np.ptp(command) < 0.5:
        return None
    return columns.put(scene.episode, np.broadcast_to(command[:1], command.shape))


@kind("gripper commands 5 to 8 steps late", "gripper")
def gripper_late(scene: Scene) -> StoredEpisode | None:
    columns = scene.part("gripper")
    command = columns.get(scene.episode)
    if np.ptp(command) < 0.5:
        return None
    by = int(scene.rng.integers(5, 9)) if scene.steps > 20 else 3
    return columns.put(scene.episode, command[np.maximum(np.arange(scene.steps) - by, 0)])


@kind("gripper command flickers at random steps", "gripper")
def gripper_flicker(scene: Scene) -> StoredEpisode | None:
    columns = scene.part("gripper")
    command = columns.get(scene.episode)
    flipped = scene.rng.choice(scene.steps, max(3, scene.steps // 4), replace=False)
    low, high = scene.parts.gripper_range
    command[flipped] = np.where(command[flipped] > (low + high) / 2, low, high)
    return columns.put(scene.episode, command)


@kind("absolute positions instead of displacements", *POSE)
def action_absolute(scene: Scene) -> StoredEpisode | None:
    return scene.part("xyz").put(scene.episode, scene.part("position").get(scene.episode))


@kind("displacements in millimetres: 1000 times too large", *POSE)
def action_units(scene: Scene) -> StoredEpisode | None:
    columns = scene.part("xyz")
    return columns.put(scene.episode, columns.get(scene.episode) * 1000)


@kind("rotations in degrees", "rpy")
def angle_degrees(scene: Scene) -> StoredEpisode | None:
    columns = scene.part("rpy")
    return columns.put(scene.episode, np.degrees(columns.get(scene.episode)))


@kind("gripper commands in percent or of 255", "gripper")
def gripper_units(scene: Scene) -> StoredEpisode | None:
    columns = scene.part("gripper")
    return columns.put(scene.episode, columns.get(scene.episode) * scene.rng.choice([100, 255]))
