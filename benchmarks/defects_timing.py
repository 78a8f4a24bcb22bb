"""Defects of timing: when an episode begins and ends, and which steps it has. All features of a step stay together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchmarks.defects_episode import StoredEpisode, again
from benchmarks.defects_kinds import Scene, kind

ALL = ("steps",)


def _paused(scene: Scene, at: int, count: int) -> StoredEpisode:
    """The episode with `count` further steps before step `at`, in which nothing moves; cameras go on."""
    rows = np.concatenate([np.arange(at), np.full(count, at), np.arange(at, scene.steps)])
    episode = scene.episode.take(rows)
    idle = np.arange(at, at + count)
    changes = {}
    for camera in scene.parts.cameras:
        frames = list(episode.values[camera])
        for row in idle:
            frames[row] = again(frames[row], scene.rng)
        changes[camera] = frames
    episode = episode.with_values(**changes)
    for field in ("xyz", "rpy"):
        columns = getattr(scene.parts, field)
        if columns is not None:
            value = columns.get(episode)
            value[idle] = 0
            episode = columns.put(episode, value)
    position = scene.part("position")
    value = position.get(episode)
    value[idle] += scene.rng.normal(0, 1e-4, (count, value.shape[1]))  # encoders are never still
    episode = position.put(episode, value)
    gripper = scene.parts.gripper
    if gripper and scene.parts.gripper_relative:
        value = gripper.get(episode)
        value[idle] = 0
        episode = gripper.put(episode, value)
    return episode


def _long(scene: Scene) -> int:
    return max(8, round(scene.steps * scene.rng.uniform(0.6, 1.0)))


@kind("nothing moves for a long time before it begins", "position", touches=ALL)
def idle_head(scene: Scene) -> StoredEpisode | None:
    return _paused(scene, 0, _long(scene))


@kind("nothing moves for a long time after it ends", "position", touches=ALL)
def idle_tail(scene: Scene) -> StoredEpisode | None:
    return _paused(scene, scene.steps - 1, _long(scene))


@kind("a long pause in the middle", "position", touches=ALL)
def idle_middle(scene: Scene) -> StoredEpisode | None:
    return _paused(scene, scene.steps // 2, _long(scene))


@kind("ends at 40 %", "position", touches=ALL, whole=True)
def cut_truncated(scene: Scene) -> StoredEpisode | None:
    return scene.episode.take(np.arange(max(4, round(scene.steps * 0.4))))


@kind("stops in the middle of a motion", "position", touches=ALL, whole=True)
def cut_aborted(scene: Scene) -> StoredEpisode | None:
    speed = np.linalg.norm(np.diff(scene.part("position").get(scene.episode), axis=0), axis=1)
    first, last = scene.steps // 2, round(scene.steps * 0.8)
    stop = first + int(np.argmax(speed[first:last]))
    return scene.episode.take(np.arange(stop + 1)) if stop + 1 < scene.steps else None


@kind("begins at 40 %", "position", touches=ALL, whole=True)
def cut_late_start(scene: Scene) -> StoredEpisode | None:
    return scene.episode.take(np.arange(round(scene.steps * 0.4), scene.steps))


@kind("only two steps are left", "position", touches=ALL)
def cut_two_steps(scene: Scene) -> StoredEpisode | None:
    return scene.episode.take([0, 1])


@kind("all steps in reverse order", "position", touches=ALL)
def time_reversed(scene: Scene) -> StoredEpisode | None:
    return scene.episode.take(np.arange(scene.steps)[::-1])


@kind("30 % of the steps lost in the middle", "position", touches=ALL)
def time_gap(scene: Scene) -> StoredEpisode | None:
    length = max(2, round(scene.steps * 0.3))
    start = int(scene.rng.integers(2, max(3, scene.steps - length - 1)))
    return scene.episode.take(np.delete(np.arange(scene.steps), slice(start, start + length)))


@kind("a stretch of steps stored twice", "position", touches=ALL)
def time_repeated(scene: Scene) -> StoredEpisode | None:
    part = scene.stretch(0.2, 0.4, at_least=3)
    return scene.episode.take(np.insert(np.arange(scene.steps), part.stop, np.arange(part.start, part.stop)))


@kind("the steps in random order", "position", touches=ALL)
def time_shuffled(scene: Scene) -> StoredEpisode | None:
    return scene.episode.take(scene.rng.permutation(scene.steps))


@kind("two episodes stored as one", "position", touches=ALL)
def time_joined(scene: Scene) -> StoredEpisode | None:
    other = scene.other()
    if other is None:
        return None
    own, count = scene.episode, scene.steps + other.steps
    rows: NDArray[np.int64] = np.minimum(np.arange(count), own.steps - 1)
    joined = own.take(rows)
    tail = other.take(np.maximum(np.arange(count) - own.steps, 0))
    changes = {}
    for name in joined.step_names:
        first, second = joined.values[name], tail.values[name]
        if name.rsplit("/", 1)[-1] in ("is_first", "is_last", "is_terminal", "reward", "discount"):
            continue
        parts = (first[: own.steps], second[own.steps :])
        changes[name] = np.concatenate(parts) if isinstance(first, np.ndarray) else [*parts[0], *parts[1]]
    changes[scene.parts.text] = [own.values[scene.parts.text][0]] * count
    return joined.with_values(**changes)
