"""Actions that explain, or do not explain, the motion of the state."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from oxe_curate.quality.explained import ExplainedMotion
from oxe_curate.quality.response import POSITION, ROTATION, learn_responses
from tests.quality.arms import Steps, change, judge, marked, teleoperated

ARM = teleoperated()
RNG = np.random.default_rng(1)


def edit(index: object, value: Callable[[np.ndarray], object]) -> Callable[[Steps], Steps]:
    def defect(steps: Steps) -> Steps:
        steps[0][index] = value(steps[0][index])
        return steps

    return defect


def pose(value: Callable[[np.ndarray], object]) -> Callable[[Steps], Steps]:
    return edit(np.s_[:, :6], value)


def state_frozen(steps: Steps) -> Steps:
    steps[1][:] = steps[1][0]
    return steps


DEFECTS = {
    "x: sign flipped": ("unexplained_motion", edit(np.s_[:, 0], np.negative)),
    "yaw: sign flipped": ("unexplained_motion", edit(np.s_[:, 5], np.negative)),
    "x and y swapped": ("unexplained_motion", edit(np.s_[:, :2], lambda a: a[:, ::-1].copy())),
    "do not explain the motion": ("unexplained_motion", pose(RNG.permutation)),
    "the state does not follow": ("unexplained_motion", state_frozen),
    "moves without actions": ("unexplained_motion", pose(np.zeros_like)),
    "4 steps late": ("shifted_actions", pose(lambda a: np.roll(a, 4, axis=0))),
    "3 steps early": ("shifted_actions", pose(lambda a: np.roll(a, -3, axis=0))),
    "2 times": ("scaled_actions", pose(lambda a: 2 * a)),
    "0.5 times": ("scaled_actions", pose(lambda a: a / 2)),
    "z: the actions are 0.4 times": ("scaled_actions", edit(np.s_[:, 2], lambda a: 0.4 * a)),
}


def test_the_response_of_each_group_is_found() -> None:
    found = learn_responses(ARM)
    assert [(r.action, r.state) for r in found] == [(POSITION, 0), (ROTATION, 3)]
    assert max(r.share for r in found) < 0.05


@pytest.mark.parametrize("seed", range(4))
def test_clean_episodes_are_explained(seed: int) -> None:
    for count, steps in ((60, 12), (20, 3), (8, 12)):
        assert marked(ExplainedMotion(), teleoperated(count, seed, steps=steps)) == {}


@pytest.mark.parametrize("words", DEFECTS)
def test_each_defect_is_named(words: str) -> None:
    criterion, defect = DEFECTS[words]
    judged = judge(ExplainedMotion(), change(ARM, 7, defect))
    assert np.flatnonzero(judged[criterion].exceeds).tolist() == [7]
    assert words in judged[criterion].detail(7)


def test_actions_computed_from_the_state_leave_nothing_unexplained() -> None:
    exact = replace(ARM, action=ARM.action.copy())
    exact.action[:, :6] = exact.state_steps[:6].T
    assert marked(ExplainedMotion(), exact) == {}
    scaled = change(exact, 3, pose(lambda a: 1.2 * a))
    assert marked(ExplainedMotion(), scaled)["scaled_actions"] == [3]


def test_a_part_of_an_episode_is_enough() -> None:
    broken = change(ARM, 5, edit(np.s_[20:32, :6], lambda a: -a))
    judged = judge(ExplainedMotion(), broken)["unexplained_motion"]
    assert np.flatnonzero(judged.exceeds).tolist() == [5]


def test_nothing_is_measured_without_a_state_that_follows() -> None:
    nothing = replace(ARM, proprio=np.empty((len(ARM.action), 0), np.float32))
    joints = replace(ARM, proprio=np.cumsum(RNG.normal(size=(len(ARM.action), 7)), axis=0).astype(np.float32))
    constant = replace(ARM, proprio=np.ones_like(ARM.proprio))
    for batch in (nothing, joints, constant, teleoperated(2)):
        assert judge(ExplainedMotion(), batch) == {}


def test_values_that_are_not_finite_do_not_spread() -> None:
    broken = change(ARM, 2, edit(np.s_[4:8, :6], lambda a: np.full_like(a, np.nan)))
    broken = change(broken, 3, edit(np.s_[4:8, :6], lambda a: np.full_like(a, np.inf)))
    assert set(marked(ExplainedMotion(), broken).get("unexplained_motion", [])) <= {2, 3}
