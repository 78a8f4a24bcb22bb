"""Defects of states, of success flags, and copies of episodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.defects_episode import StoredEpisode, again
from benchmarks.defects_kinds import Scene, kind

OBSERVED = ("observed",)
"""Every number that the robot reports (see `observed`)."""


def observed(episode: StoredEpisode, embedding: tuple[str, ...] = ()) -> list[str]:
    """Names of the numbers of the observation, without embeddings of texts."""
    names = [name for name in episode.step_names if name.startswith("steps/observation/") and name not in embedding]
    return [name for name in names if isinstance(episode.values[name], np.ndarray)]


def _each(scene: Scene, change: Callable[[NDArray[Any]], NDArray[Any]]) -> StoredEpisode:
    """Change every number of the observation alike."""
    names = observed(scene.episode, scene.parts.embedding)
    return scene.episode.with_values(**{name: change(scene.episode.values[name]) for name in names})


@kind("the state never changes", "position", touches=OBSERVED)
def state_frozen(scene: Scene) -> StoredEpisode | None:
    return _each(scene, lambda value: np.repeat(value[:1], scene.steps, axis=0))


@kind("the state stops changing in the middle", "position", touches=OBSERVED)
def state_stuck(scene: Scene) -> StoredEpisode | None:
    rows = np.minimum(np.arange(scene.steps), round(scene.steps * scene.rng.uniform(0.3, 0.5)))
    return _each(scene, lambda value: value[rows])


@kind("the position jumps by 0.2 to 0.4 m in the middle and stays there", "position")
def state_jump(scene: Scene) -> StoredEpisode | None:
    columns = scene.part("position")
    position = columns.get(scene.episode)
    step = int(scene.rng.integers(scene.steps // 4, 3 * scene.steps // 4 + 1))
    position[step:, scene.rng.integers(3)] += scene.rng.uniform(0.2, 0.4) * scene.rng.choice([-1, 1])
    return columns.put(scene.episode, position)


@kind("one or two steps of the state are zero", "position", touches=OBSERVED)
def state_gap(scene: Scene) -> StoredEpisode | None:
    steps = scene.rng.choice(np.arange(2, scene.steps - 2), int(scene.rng.integers(1, 3)), replace=False)

    def zero(value: NDArray[Any]) -> NDArray[Any]:
        new = value.copy()
        new[steps] = 0
        return new

    return _each(scene, zero)


@kind("a state that is NaN", "position")
def state_nan(scene: Scene) -> StoredEpisode | None:
    columns = scene.part("position")
    position = columns.get(scene.episode)
    position[scene.rng.integers(1, scene.steps - 1)] = np.nan
    return columns.put(scene.episode, position)


@kind("positions measured from another origin, 0.5 to 1 m away", "position")
def state_offset(scene: Scene) -> StoredEpisode | None:
    columns = scene.part("position")
    away = scene.rng.normal(0, 1, 3)
    away *= scene.rng.uniform(0.5, 1) / np.linalg.norm(away)
    return columns.put(scene.episode, columns.get(scene.episode) + away)


@kind("positions in millimetres", "position")
def state_units(scene: Scene) -> StoredEpisode | None:
    columns = scene.part("position")
    return columns.put(scene.episode, columns.get(scene.episode) * 1000)


@kind("the states of another episode", "position", touches=OBSERVED)
def state_other(scene: Scene) -> StoredEpisode | None:
    other = scene.as_long()
    if other is None:
        return None
    names = observed(scene.episode, scene.parts.embedding)
    return scene.episode.with_values(**{name: other.values[name][: scene.steps] for name in names})


@kind("states 2 to 4 steps late", "position", touches=("steps",))
def state_late(scene: Scene) -> StoredEpisode | None:
    by = int(scene.rng.integers(2, 5 if scene.steps > 20 else 4))
    return scene.shifted(observed(scene.episode, scene.parts.embedding), by)


@kind("noise of 1 to 2 cm on the position", "position")
def state_noise(scene: Scene) -> StoredEpisode | None:
    columns = scene.part("position")
    position = columns.get(scene.episode)
    return columns.put(scene.episode, position + scene.rng.normal(0, scene.rng.uniform(0.01, 0.02), position.shape))


@kind("the gripper's state never changes though it is commanded", "aperture", "gripper", touches=("aperture",))
def state_gripper_frozen(scene: Scene) -> StoredEpisode | None:
    columns = scene.part("aperture")
    aperture = columns.get(scene.episode)
    if np.ptp(aperture) < 0.3 or np.ptp(scene.part("gripper").get(scene.episode)) < 0.5:
        return None
    return columns.put(scene.episode, np.broadcast_to(aperture[:1], aperture.shape))


# --- success flags ---


@kind("flag says success, the episode ends at 30 %", "success", touches=("steps",), whole=True)
def success_truncated(scene: Scene) -> StoredEpisode | None:
    return scene.episode.take(np.arange(max(4, round(scene.steps * 0.3)))) if _succeeded(scene) else None


@kind("flag says failure, the episode is complete", "success", whole=True)
def success_denied(scene: Scene) -> StoredEpisode | None:
    if not _succeeded(scene):
        return None
    name = str(scene.parts.success)
    return scene.episode.with_values(**{name: np.zeros_like(scene.episode.values[name])})


@kind("flag says success, the arm never moves", "success", touches=("steps",), whole=True)
def success_without_motion(scene: Scene) -> StoredEpisode | None:
    if not _succeeded(scene):
        return None
    first = scene.episode.take(np.zeros(scene.steps, np.int64))
    changes: dict[str, Any] = {
        camera: [again(frame, scene.rng) for frame in first.values[camera]] for camera in scene.parts.cameras
    }
    return scene.part("xyz").put(first.with_values(**changes), np.zeros((scene.steps, 3))) if scene.parts.xyz else None


def _succeeded(scene: Scene) -> bool:
    return bool(np.all(scene.episode.values[str(scene.parts.success)]))


# --- copies ---


@kind("the same episode once more", "position", touches=("",), copies="train")
def duplicate_exact(scene: Scene) -> StoredEpisode | None:
    return scene.episode


def _resampled(scene: Scene) -> StoredEpisode:
    """The episode recorded again: other noise on numbers (0.5 % of each column's range) and frames."""
    episode, changes = scene.episode, {}
    for name in episode.step_names:
        value = episode.values[name]
        if isinstance(value, np.ndarray) and value.dtype.kind == "f" and name not in scene.parts.embedding:
            if name.rsplit("/", 1)[-1] in ("reward", "discount"):
                continue
            noise = scene.rng.normal(0, 1, value.shape) * np.ptp(value, axis=0) * 0.005
            changes[name] = (value + noise).astype(value.dtype)
    for camera in scene.parts.cameras:
        changes[camera] = [again(frame, scene.rng) for frame in episode.values[camera]]
    return episode.with_values(**changes)


@kind("a copy with noise on the numbers, its frames encoded again", "position", touches=("",), copies="train")
def duplicate_noisy(scene: Scene) -> StoredEpisode | None:
    return _resampled(scene)


@kind("a copy without its first 2 or 3 steps", "position", touches=("",), copies="train")
def duplicate_trimmed(scene: Scene) -> StoredEpisode | None:
    return scene.episode.take(np.arange(int(scene.rng.integers(2, 4)), scene.steps))


@kind("a copy with another instruction", "position", touches=("",), copies="train")
def duplicate_renamed(scene: Scene) -> StoredEpisode | None:
    name = scene.parts.text
    own = scene.episode.values[name]
    other = scene.other(lambda episode: episode.values[name][0] != own[0])
    return scene.episode.with_values(**{name: [other.values[name][0]] * scene.steps}) if other else None


@kind("the same episode in another split", "position", touches=("",), copies="val")
def duplicate_in_val(scene: Scene) -> StoredEpisode | None:
    return scene.episode


@kind("a noisy copy in another split", "position", touches=("",), copies="val")
def duplicate_noisy_in_val(scene: Scene) -> StoredEpisode | None:
    return _resampled(scene)
