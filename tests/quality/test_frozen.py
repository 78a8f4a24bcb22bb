"""Frames that stay the same while the arm moves."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from oxe_curate.quality.episodes import EpisodeBatch
from oxe_curate.quality.frozen import FrozenFrames
from oxe_curate.quality.measure import Judgement, judge_batches
from oxe_curate.quality.moving import learn_motion, longest_run, step_motion


def moving(count: int = 24, steps: int = 30, seed: int = 0, spread: int = 40) -> EpisodeBatch:
    """An arm that never stops, and frames whose lengths are as good as random."""
    rng = np.random.default_rng(seed)
    action = rng.normal(0, 1, (count * steps, 7)).astype(np.float32)
    return EpisodeBatch(
        action=action,
        proprio=np.cumsum(action[:, :3], axis=0),
        starts=np.arange(count + 1) * steps,
        instruction=["lift"] * count,
        success=np.full(count, -1, np.int8),
        frame_bytes={
            "primary": rng.integers(3000, 3000 + spread, count * steps).astype(np.int32),
            "wrist": rng.integers(5000, 5000 + spread, count * steps).astype(np.int32),
        },
    )


def judged(batch: EpisodeBatch) -> Judgement | None:
    halves = np.array_split(np.arange(len(batch)), 2)
    return judge_batches([FrozenFrames()], batch, lambda: map(batch.take, halves), ["frozen_frames"]).get(
        "frozen_frames"
    )


def with_frames(batch: EpisodeBatch, episode: int, role: str, chosen: list[int]) -> EpisodeBatch:
    """The same, but the steps of an episode show the chosen frames."""
    lengths = batch.frame_bytes[role].copy()
    steps = batch.steps_of(episode)
    lengths[steps] = lengths[steps][chosen]
    return replace(batch, frame_bytes={**batch.frame_bytes, role: lengths})


def test_different_frames_are_not_frozen() -> None:
    for seed in range(20):
        found = judged(moving(seed=seed))
        assert found is not None
        assert not found.exceeds.any()


@pytest.mark.parametrize(
    ("chosen", "words", "step"),
    [
        ([*range(10), *[10] * 6, *range(16, 30)], "wrist: the same frame", 10),
        ([7] * 30, "wrist: the same frame", 0),
        ([*range(20), *[20] * 10], "wrist: the same frame", 20),
        ([t // 2 * 2 for t in range(30)], "wrist: every frame twice", None),
        ([t % 5 for t in range(30)], "wrist: the same frames again", 0),
    ],
    ids=["pause", "always", "end", "twice", "loop"],
)
def test_repeated_frames_are_found_with_camera_and_step(chosen: list[int], words: str, step: int | None) -> None:
    found = judged(with_frames(moving(), 5, "wrist", chosen))
    assert found is not None
    assert np.flatnonzero(found.exceeds).tolist() == [5]
    assert found.detail(5) == words
    assert step is None or abs(found.step[5] - step) <= 1


def test_an_arm_that_rests_may_show_the_same_frame() -> None:
    batch = with_frames(moving(), 5, "primary", [*range(10), *[10] * 20])
    proprio = batch.proprio.copy()
    proprio[batch.steps_of(5)][10:] = proprio[batch.steps_of(5)][10]
    found = judged(replace(batch, proprio=proprio))
    assert found is not None
    assert not found.exceeds.any()


def test_a_camera_that_is_off_in_several_episodes_is_not_frozen() -> None:
    batch = moving()
    lengths = batch.frame_bytes["wrist"].copy()
    for episode in (1, 2, 3, 9):
        lengths[batch.steps_of(episode)] = 1651
    found = judged(replace(batch, frame_bytes={**batch.frame_bytes, "wrist": lengths}))
    assert found is not None
    assert not found.exceeds.any()


def test_plain_images_of_equal_length_tell_nothing() -> None:
    batch = moving(spread=1)
    assert judged(batch) is None


def test_actions_show_the_motion_where_there_is_no_state() -> None:
    batch = replace(moving(), proprio=np.zeros((720, 0), np.float32))
    found = judged(with_frames(batch, 3, "primary", [*range(20), *[20] * 10]))
    assert found is not None
    assert np.flatnonzero(found.exceeds).tolist() == [3]


def test_motion_is_measured_in_usual_steps() -> None:
    batch = moving()
    motion = step_motion(batch, learn_motion(batch))
    assert np.median(motion[motion > 0]) == pytest.approx(1)
    assert not motion[batch.starts[1:] - 1].any()


def test_longest_run() -> None:
    def flags(text: str) -> NDArray[np.bool_]:
        return np.array([letter == "x" for letter in text])

    run, begin = longest_run(flags("xx.xxx.|...|.xxx|".replace("|", ".")), flags("x" * 17), np.array([0, 8, 12, 17]))
    assert (run.tolist(), begin.tolist()) == ([3, 0, 3], [3, -1, 1])
    run, begin = longest_run(flags("xxxx."), flags(".x.xx"), np.array([0, 5]))
    assert (run.tolist(), begin.tolist()) == ([2], [0])
