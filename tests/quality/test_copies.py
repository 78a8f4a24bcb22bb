"""Near copies: found with noise and without their ends, but not among experts that repeat themselves."""

import numpy as np
import pytest

from oxe_curate.quality.copies import NearCopies
from oxe_curate.quality.episodes import EpisodeBatch, join
from tests.quality.arms import Steps, batch_of, judge, marked, teleoperated

ARM = teleoperated(60)
RNG = np.random.default_rng(0)


def noisy(steps: Steps) -> Steps:
    return tuple(  # type: ignore[return-value]
        (v + RNG.normal(0, 0.005, v.shape) * np.ptp(v, axis=0)).astype(np.float32) for v in steps
    )


def trimmed(steps: Steps) -> Steps:
    return steps[0][3:-3], steps[1][3:-3]


def with_copy(batch: EpisodeBatch, episode: int, change: object, text: str | None = None) -> EpisodeBatch:
    part = batch.steps_of(episode)
    copy = change((batch.action[part], batch.proprio[part]))  # type: ignore[operator]
    return join([batch, batch_of([copy], [text or batch.instruction[episode]])])


@pytest.mark.parametrize("seed", range(6))
def test_episodes_of_one_task_are_no_copies(seed: int) -> None:
    for count, steps, tasks in ((120, 12, 4), (60, 3, 2), (8, 12, 1), (3, 12, 1)):
        assert marked(NearCopies(), teleoperated(count, seed, steps=steps, tasks=tasks)) == {}


@pytest.mark.parametrize("change", [noisy, trimmed, lambda s: trimmed(noisy(s)), lambda s: s])
def test_a_copy_is_found_and_its_original_named(change: object) -> None:
    judged = judge(NearCopies(), with_copy(ARM, 21, change))["near_duplicate"]
    assert np.flatnonzero(judged.exceeds).tolist() == [60]
    assert judged.copy_of is not None
    assert judged.copy_of[60] == 21
    assert set(judged.copy_of[:60]) == {-1}


def test_another_instruction_does_not_hide_a_copy() -> None:
    assert marked(NearCopies(), with_copy(ARM, 21, noisy, "something else")) == {"near_duplicate": [60]}


def test_a_copy_of_a_copy_is_one_of_the_original() -> None:
    twice = with_copy(with_copy(ARM, 21, noisy), 60, noisy)
    judged = judge(NearCopies(), twice)["near_duplicate"]
    assert judged.copy_of is not None
    assert judged.copy_of[[60, 61]].tolist() == [21, 21]


def test_scripted_experts_with_nearly_equal_starts_are_no_copies() -> None:
    # one number differs: the goal along a line; by chance some neighbours are ten times closer than others
    time = np.linspace(0, 1, 40)[:, None]
    goals = np.sort(RNG.uniform(0.2, 0.4, 60))
    episodes = []
    for goal in goals:
        state = np.hstack([time * goal, time * 0.1, np.sin(time), np.ones_like(time)]).astype(np.float32)
        action = np.zeros((40, 7), np.float32)
        action[:-1, :3] = np.diff(state[:, :3], axis=0)
        episodes.append((action, state))
    assert marked(NearCopies(), batch_of(episodes)) == {}


def test_episodes_that_do_not_move_are_no_copies() -> None:
    still = [(np.zeros((30, 7), np.float32), np.full((30, 8), i, np.float32)) for i in (0, 0, 0)]
    assert marked(NearCopies(), join([ARM, batch_of(still)])) == {}
