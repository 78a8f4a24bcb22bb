"""Actions that no robot of the data set performs."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from oxe_curate.quality.values import ActionValues, FullTurns
from tests.quality.arms import Steps, change, judge, marked, teleoperated

ARM = teleoperated()
RNG = np.random.default_rng(0)
NINTH = ARM.action[ARM.steps_of(9)]


def edit(index: Any, value: Callable[[Any], Any], part: int = 0) -> Callable[[Steps], Steps]:
    def defect(steps: Steps) -> Steps:
        steps[part][index] = value(steps[part][index])
        return steps

    return defect


def held(action: Any) -> Any:
    return np.repeat(action[::2], 2, axis=0)[: len(action)]


DEFECTS = {
    "a huge value": ("action_outlier", edit(np.s_[20, 1], lambda a: a + 1e6), 20, "y: "),
    "a gripper in percent": ("action_outlier", edit(np.s_[:, 6], lambda a: a * 100), -2, "gripper: "),
    "a single step": ("action_spike", edit(np.s_[15, 2], lambda a: a + 0.2), 15, "z: "),
    "the same action": ("repeated_actions", edit(np.s_[10:, :6], lambda a: a[4]), 10, "equal actions in a row"),
    "a block again": ("repeated_actions", edit(np.s_[24:36, :6], lambda a: NINTH[8:20, :6]), -1, "%"),
    "every action twice": ("repeated_actions", edit(np.s_[:, :6], held), -1, "%"),
    "clipped": ("saturated_actions", edit(np.s_[:, :3], lambda a: np.clip(a, -0.004, 0.004)), -1, "largest value"),
    "noise": ("noisy_actions", edit(np.s_[:, :3], lambda a: a + RNG.normal(0, 0.03, a.shape)), -1, "position"),
    "a gripper that flickers": ("gripper_flicker", edit(np.s_[::3, 6], lambda g: 1 - g), -1, "changes"),
}  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_clean_actions_are_not_marked(seed: int) -> None:
    for count, steps in ((60, 12), (24, 3), (8, 12), (3, 12)):
        assert marked(ActionValues(), teleoperated(count, seed, steps=steps)) == {}
        assert marked(FullTurns(), teleoperated(count, seed, steps=steps)) == {}


@pytest.mark.parametrize("name", DEFECTS)
def test_each_defect_is_found(name: str) -> None:
    criterion, defect, step, words = DEFECTS[name]
    judged = judge(ActionValues(), change(ARM, 9, defect))[criterion]
    assert np.flatnonzero(judged.exceeds).tolist() == [9]
    assert words in judged.detail(9)
    if step >= -1:
        assert judged.step[9] == step


def test_a_data_set_that_repeats_its_actions_may() -> None:
    batch = ARM
    for episode in range(0, len(ARM), 2):
        batch = change(batch, episode, edit(np.s_[:, :6], held))
    assert "repeated_actions" not in marked(ActionValues(), batch)


def test_a_controller_at_its_limit_may_stay_there() -> None:
    batch = ARM
    for episode in range(len(ARM)):
        batch = change(batch, episode, edit(np.s_[:, :3], lambda a: np.clip(a * 5, -0.03, 0.03)))
    assert marked(ActionValues(), batch) == {}


def test_jumps_by_a_full_turn_are_found_unless_an_angle_wraps() -> None:
    assert marked(FullTurns(), change(ARM, 4, edit(np.s_[8, 5], lambda a: a + 2 * np.pi))) == {"full_turn": [4]}
    jumped = change(ARM, 4, edit(np.s_[8:, 5], lambda s: s - 2 * np.pi, part=1))
    assert marked(FullTurns(), jumped) == {"full_turn": [4]}

    def wrapped(steps: Steps) -> Steps:
        angle = steps[1][:, 5] - steps[1][8, 5] + np.pi
        steps[1][:, 5] = (angle + np.pi) % (2 * np.pi) - np.pi
        return steps

    assert marked(FullTurns(), change(ARM, 4, wrapped)) == {}


def test_a_fifth_of_wrong_units_does_not_hide_itself() -> None:
    batch = ARM
    for episode in range(0, len(ARM), 7):
        batch = change(batch, episode, edit(np.s_[:, :6], lambda a: a * 1000))
    assert marked(ActionValues(), batch)["action_outlier"] == list(range(0, len(ARM), 7))


def test_values_that_are_not_finite_do_no_harm() -> None:
    broken = change(ARM, 2, edit(np.s_[4:8], lambda a: np.full_like(a, np.nan)))
    broken = change(broken, 3, edit(np.s_[4:8], lambda a: np.full_like(a, -np.inf)))
    judged = judge(ActionValues(), broken)
    assert set(judged) == set(ActionValues().criteria)
    assert all(np.isfinite(j.value).all() for j in judged.values())
