"""How episodes begin and end, and their success flags."""

from dataclasses import replace

import numpy as np
import pytest

from oxe_curate.quality.endings import Endings
from oxe_curate.quality.tasks import deviations, task_of
from tests.quality.arms import Steps, change, judge, marked, teleoperated

ARM = teleoperated(80)
FLAGS = np.ones(80, np.int8)


def part(first: float, last: float) -> object:
    def defect(steps: Steps) -> Steps:
        count = len(steps[0])
        kept = slice(round(first * count), round(last * count))
        return steps[0][kept], steps[1][kept]

    return defect


def backwards(steps: Steps) -> Steps:
    action = steps[0][::-1].copy()
    action[:, :6] *= -1
    return action, steps[1][::-1].copy()


@pytest.mark.parametrize("seed", range(4))
def test_clean_episodes_begin_and_end_as_usual(seed: int) -> None:
    for count, steps, tasks in ((80, 12, 4), (24, 3, 3), (40, 12, 20), (8, 12, 1), (3, 12, 1)):
        batch = teleoperated(count, seed, steps=steps, tasks=tasks)
        assert marked(Endings(), replace(batch, success=np.ones(count, np.int8))) == {}
        assert "success_contradicted" not in judge(Endings(), batch)


def test_cut_and_reversed_episodes_are_found() -> None:
    cut = judge(Endings(), change(ARM, 12, part(0, 0.4)))["truncated"]  # type: ignore[arg-type]
    assert np.flatnonzero(cut.exceeds).tolist() == [12]
    assert "few steps" in cut.detail(12)
    assert marked(Endings(), change(ARM, 12, part(0.5, 1)))["unusual_start"] == [12]  # type: ignore[arg-type]
    assert marked(Endings(), change(ARM, 12, backwards))["reversed"] == [12]


def test_only_two_steps_are_too_few_whatever_the_task() -> None:
    rare = teleoperated(40, 1, tasks=20)
    assert marked(Endings(), change(rare, 3, lambda s: (s[0][:2], s[1][:2])))["truncated"] == [3]


def test_flags_that_contradict_the_motion_are_found() -> None:
    def still(steps: Steps) -> Steps:
        return np.zeros_like(steps[0]), np.repeat(steps[1][:1], len(steps[1]), axis=0)

    flagged = replace(ARM, success=FLAGS)
    judged = judge(Endings(), change(flagged, 7, still))["success_contradicted"]
    assert np.flatnonzero(judged.exceeds).tolist() == [7]
    assert judged.detail(7).startswith("success, but")
    assert marked(Endings(), change(flagged, 7, part(0, 0.3)))["success_contradicted"] == [7]  # type: ignore[arg-type]


def test_a_failure_like_the_successes_is_doubted_and_one_unlike_them_is_not() -> None:
    failed = FLAGS.copy()
    failed[[5, 7]] = 0
    unlike = change(replace(ARM, success=failed), 7, part(0, 0.3))  # type: ignore[arg-type]
    judged = judge(Endings(), unlike)["success_contradicted"]
    assert np.flatnonzero(judged.exceeds).tolist() == [5]
    assert "of the successes differ more" in judged.detail(5)


def test_failures_that_mostly_look_like_successes_are_left_alone() -> None:
    failed = FLAGS.copy()
    failed[::3] = 0
    assert "success_contradicted" not in marked(Endings(), replace(ARM, success=failed))


def test_a_rare_task_may_differ_from_frequent_ones() -> None:
    values = np.concatenate([np.zeros(40), np.full(4, 50.0), [50.0]])[:, None]
    values += np.random.default_rng(0).normal(0, 0.1, values.shape)
    task = np.array([0] * 40 + [1] * 4 + [0])
    far = deviations(values, task, np.array([0.5]))[:, 0]
    assert np.abs(far[40:44]).max() < 1
    assert far[44] > 20


def test_case_and_spaces_make_no_task() -> None:
    assert task_of(" Pick  up the cup.") == task_of("pick up the cup")
    assert task_of("pick up the cup") != task_of("pick up the can")
