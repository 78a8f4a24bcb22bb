"""States that jump, stand still, are noisy or elsewhere; and a gripper that does not follow."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from oxe_curate.quality.explained import ExplainedMotion
from oxe_curate.quality.states import StateValues
from tests.quality.arms import Steps, change, judge, marked, teleoperated

ARM = teleoperated()
RNG = np.random.default_rng(0)


def jumps(steps: Steps) -> Steps:
    steps[1][20:, 1] += 0.5
    return steps


def stops(steps: Steps) -> Steps:
    steps[1][20:35] = steps[1][20]
    return steps


def trembles(steps: Steps) -> Steps:
    steps[1][:, :3] += RNG.normal(0, 0.02, (len(steps[1]), 3))
    return steps


def elsewhere(steps: Steps) -> Steps:
    steps[1][:, 2] += 2
    return steps


DEFECTS: dict[str, tuple[Any, int]] = {
    "state_jump": (jumps, 19),
    "frozen_state": (stops, 20),
    "noisy_state": (trembles, -1),
    "state_offset": (elsewhere, -1),
}


@pytest.mark.parametrize("seed", range(4))
def test_clean_states_are_not_marked(seed: int) -> None:
    for count, steps in ((60, 12), (24, 3), (8, 12), (3, 12)):
        assert marked(StateValues(), teleoperated(count, seed, steps=steps)) == {}


@pytest.mark.parametrize("criterion", DEFECTS)
def test_each_defect_is_found(criterion: str) -> None:
    defect, step = DEFECTS[criterion]
    judged = judge(StateValues(), change(ARM, 11, defect))[criterion]
    assert np.flatnonzero(judged.exceeds).tolist() == [11]
    assert step <= judged.step[11] <= step + 10


def test_nothing_is_measured_without_a_state() -> None:
    none = replace(ARM, proprio=np.empty((len(ARM.action), 0), np.float32))
    assert judge(StateValues(), none) == {}
    assert judge(StateValues(), replace(ARM, proprio=np.full_like(ARM.proprio, 3))) == {}


def gripper(value: Any) -> Any:
    def defect(steps: Steps) -> Steps:
        steps[0][:, 6] = value(steps[0][:, 6])
        return steps

    return defect


GRIPPERS = {
    "inverted": gripper(lambda g: 1 - g),
    "late": gripper(lambda g: np.concatenate([np.full(8, g[0]), g[:-8]])),
    "does not follow": gripper(lambda g: np.full_like(g, g[0])),
}


@pytest.mark.parametrize("words", GRIPPERS)
def test_a_gripper_that_does_not_follow_is_found(words: str) -> None:
    judged = judge(ExplainedMotion(), change(ARM, 5, GRIPPERS[words]))["gripper_mismatch"]
    assert np.flatnonzero(judged.exceeds).tolist() == [5]
    assert words in judged.detail(5)


def test_a_fifth_of_inverted_grippers_does_not_hide_itself() -> None:
    batch = ARM
    for episode in range(0, len(ARM), 6):
        batch = change(batch, episode, GRIPPERS["inverted"])
    assert marked(ExplainedMotion(), batch)["gripper_mismatch"] == list(range(0, len(ARM), 6))


def test_a_gripper_without_a_measured_opening_is_not_judged() -> None:
    blind = replace(ARM, proprio=ARM.proprio[:, :6])
    assert "gripper_mismatch" not in judge(ExplainedMotion(), blind)
