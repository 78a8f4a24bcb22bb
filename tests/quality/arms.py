"""Constructed data sets: arms that perform several tasks, with pauses, noise and a gripper; and defects of episodes."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from oxe_curate.arrays import Floats, Rng
from oxe_curate.quality.episodes import EpisodeBatch
from oxe_curate.quality.measure import Judgement, Measure, judge_batches

Steps = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Action (T, 7) and proprio (T, 8)."""


def batch_of(episodes: list[Steps], texts: list[str] | None = None, success: list[int] | None = None) -> EpisodeBatch:
    """Concatenate episodes."""
    return EpisodeBatch(
        action=np.concatenate([a for a, _ in episodes]),
        proprio=np.concatenate([p for _, p in episodes]),
        starts=np.cumsum([0, *(len(a) for a, _ in episodes)]),
        instruction=texts or [""] * len(episodes),
        success=np.array(success or [-1] * len(episodes), np.int8),
    )


def teleoperated(
    count: int = 60, seed: int = 0, *, tasks: int = 4, steps: int = 12, noise: float = 5e-4
) -> EpisodeBatch:
    """Episodes of several tasks: a late controller, noisy encoders, pauses, a gripper that closes and opens.

    State: xyz, rpy, a constant, the gripper's opening. The arm approaches half of the commanded distance per step.
    """
    rng = np.random.default_rng(seed)
    places = [rng.uniform(-0.2, 0.2, (int(rng.integers(3, 6)), 6)) for _ in range(tasks)]
    chosen = rng.integers(tasks, size=count).tolist()
    episodes = [_perform(places[task] + rng.normal(0, 0.02, places[task].shape), rng, steps, noise) for task in chosen]
    return batch_of(episodes, [f"do task {task}" for task in chosen])


def _perform(places: Floats, rng: Rng, steps: int, noise: float) -> Steps:
    command = [np.zeros((int(rng.integers(0, 3)), 6))]
    grip = [np.ones(len(command[0]))]
    target, closed = np.zeros(6), False
    for number, place in enumerate(places):
        count = int(steps * rng.uniform(0.7, 1.3))
        share = np.linspace(0, 1, count + 1)
        way = np.diff(share * share * (3 - 2 * share))[:, None] * (place - target)
        pause = np.zeros((int(rng.integers(0, 4)), 6))
        command += [way + rng.normal(0, 3e-4, way.shape), pause]
        grip.append(np.full(len(way) + len(pause), 0.0 if closed else 1.0))
        closed, target = number == len(places) // 2 - 1 or (closed and number < len(places) - 2), place
    moves, gripper = np.concatenate(command), np.concatenate(grip)
    goal, pose, opening = np.zeros(6), np.zeros(6), 1.0
    states = []
    for move, wish in zip(moves, gripper, strict=True):
        states.append([*pose + rng.normal(0, noise, 6), 0.0, opening + rng.normal(0, 0.005)])
        goal = goal + move
        pose = pose + 0.5 * (goal - pose)
        opening = opening + np.clip(wish - opening, -0.4, 0.4)
    action = np.column_stack([moves, gripper]).astype(np.float32)
    return action, np.array(states, np.float32)


def change(batch: EpisodeBatch, episode: int, defect: Callable[[Steps], Steps]) -> EpisodeBatch:
    """The batch with a defect in one episode."""
    episodes: list[Steps] = []
    for number in range(len(batch)):
        part = batch.steps_of(number)
        steps = batch.action[part].copy(), batch.proprio[part].copy()
        episodes.append(defect(steps) if number == episode else steps)
    changed = batch_of(episodes, list(batch.instruction))
    return replace(changed, success=batch.success)


def judge(measure: Measure, batch: EpisodeBatch, parts: int = 3) -> Mapping[str, Judgement]:
    """All criteria of a measure, with the episodes in several batches."""
    pieces = np.array_split(np.arange(len(batch)), parts)
    return judge_batches([measure], batch, lambda: (batch.take(p) for p in pieces if len(p)), measure.criteria)


def marked(measure: Measure, batch: EpisodeBatch) -> dict[str, list[int]]:
    """Criterion -> the episodes above its limit."""
    return {name: np.flatnonzero(j.exceeds).tolist() for name, j in judge(measure, batch).items() if j.exceeds.any()}
