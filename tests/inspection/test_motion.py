"""The meaning of an action, from the least data that shows it."""

import numpy as np
import pytest

from oxe_curate.inspection import motion
from oxe_curate.inspection.finding import Finding
from oxe_curate.inspection.matching import match
from oxe_curate.inspection.series import Columns, Episodes
from tests.inspection.constructed import Truth, episodes

ACTION, STATE = Columns("action", 0, 3), Columns("observation/state", 0, 3)


def kind(found: Episodes, hz: float | None = None) -> Finding:
    (best, *_) = match(found, ACTION, STATE)
    return motion.kind_of(found, best, hz)


@pytest.mark.parametrize(
    ("truth", "hz", "answer"),
    [
        (Truth("delta"), None, "delta"),
        (Truth("delta", follow=0.5, noise=0.001), None, "delta"),
        (Truth("scaled", unit=0.01), None, "scaled delta"),
        (Truth("velocity", hz=10), 10.0, "velocity"),
        (Truth("velocity", hz=10), None, "scaled delta"),
        (Truth("absolute"), None, "absolute"),
    ],
)
def test_the_kind_of_action(truth: Truth, hz: float | None, answer: str) -> None:
    finding = kind(episodes(truth, np.random.default_rng(0)), hz)
    assert finding.answer == answer
    assert finding.confidence > 0.6
    assert f"{finding.evidence['r_delta']:.2f}" in finding.why or finding.evidence.get("exact")


def test_an_exact_difference_is_reported_as_exact() -> None:
    finding = kind(episodes(Truth("delta"), np.random.default_rng(1)))
    assert finding.evidence["exact"]
    assert finding.confidence == 0.99


def test_a_scaled_displacement_gives_the_rate_of_an_equal_velocity() -> None:
    finding = kind(episodes(Truth("velocity", hz=10), np.random.default_rng(0)))
    assert "10 Hz" in finding.why


def test_unrelated_numbers_have_no_meaning() -> None:
    rng = np.random.default_rng(0)
    found = [{"action": rng.normal(size=(30, 7)), "observation/state": rng.normal(size=(30, 7))} for _ in range(6)]
    finding = kind(found)
    assert not finding.known
    assert "neither" in finding.why


def test_an_action_that_does_not_vary() -> None:
    found = [{"action": np.zeros((9, 7)), "observation/state": np.random.default_rng(0).normal(size=(9, 7))}]
    assert match(found, ACTION, STATE) == []
    constant = motion.kind_without_state(found, ACTION)
    assert (constant.answer, constant.why) == ("constant", "the value is 0, 0, 0 at every step")


def test_without_a_state_only_the_name_counts() -> None:
    rng = np.random.default_rng(0)
    found = [{"action/world_vector": rng.normal(size=(20, 3)), "action": rng.normal(size=(20, 3))}]
    named = motion.kind_without_state(found, Columns("action/world_vector", 0, 3))
    assert (named.answer, named.confidence) == ("delta", 0.5)
    assert not motion.kind_without_state(found, ACTION).known


def test_a_smooth_action_far_from_zero_is_a_weak_sign_of_a_pose() -> None:
    path = 5 + np.linspace(0, 1, 50)[:, None] * [1, 2, 3]
    finding = motion.kind_without_state([{"action": path}], ACTION)
    assert finding.answer == "absolute"
    assert finding.confidence < 0.5


@pytest.mark.parametrize(("idle", "answer"), [(True, "yes"), (False, "no")])
def test_the_first_step_of_bridge_is_idle(idle: bool, answer: str) -> None:
    first, _ = motion.idle_ends(episodes(Truth(idle_first=idle), np.random.default_rng(0)), [Columns("action", 0, 6)])
    assert first.answer == answer


def test_two_episodes_are_too_few_for_idle_ends() -> None:
    first, last = motion.idle_ends(episodes(Truth(), np.random.default_rng(0), 2), [ACTION])
    assert not first.known
    assert not last.known
