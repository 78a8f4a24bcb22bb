"""All criteria from numbers together, on clean data of many kinds."""

from dataclasses import replace

import numpy as np
import pytest

from oxe_curate.quality.copies import NearCopies
from oxe_curate.quality.endings import Endings
from oxe_curate.quality.episodes import EpisodeBatch
from oxe_curate.quality.explained import ExplainedMotion
from oxe_curate.quality.idling import Idling
from oxe_curate.quality.measure import Measure, judge_batches
from oxe_curate.quality.measures import MEASURES
from oxe_curate.quality.states import StateValues
from oxe_curate.quality.values import ActionValues, FullTurns
from tests.quality.arms import batch_of, judge, teleoperated

NUMBERS: tuple[Measure, ...] = (
    ExplainedMotion(), ActionValues(), FullTurns(), StateValues(), Idling(), Endings(), NearCopies(),
)  # fmt: skip


def above(batch: EpisodeBatch) -> set[int]:
    """The episodes above any limit."""
    return {int(i) for m in NUMBERS for j in judge(m, batch).values() for i in np.flatnonzero(j.exceeds)}


def without_state(batch: EpisodeBatch) -> EpisodeBatch:
    return replace(batch, proprio=np.empty((len(batch.action), 0), np.float32))


def exact(batch: EpisodeBatch) -> EpisodeBatch:
    """Actions that a recipe computed from the state."""
    return replace(batch, action=np.column_stack([batch.state_steps[:6].T, batch.action[:, 6]]))


def joints(batch: EpisodeBatch) -> EpisodeBatch:
    """A state of joints, which depend on the pose in curves."""
    pose = batch.proprio[:, :6]
    return replace(batch, proprio=np.column_stack([np.sin(3 * pose + 1), batch.proprio[:, 7]]).astype(np.float32))


def rounded(batch: EpisodeBatch) -> EpisodeBatch:
    """A keyboard's actions: few values."""
    return replace(batch, action=np.round(batch.action / 0.02).astype(np.float32) * np.float32(0.02))


@pytest.mark.parametrize("kind", [lambda b: b, without_state, exact, joints, rounded])
def test_at_most_one_of_a_hundred_clean_episodes_is_above_a_limit(kind: object) -> None:
    found = total = 0
    for seed, noise in enumerate((0.0, 5e-4, 3e-3)):
        batch = kind(teleoperated(150, seed, tasks=3 + 5 * seed, noise=noise))  # type: ignore[operator]
        found, total = found + len(above(batch)), total + len(batch)
    assert found <= 0.01 * total


@pytest.mark.parametrize("count", [1, 2, 5, 9, 12])
def test_a_tiny_data_set_is_left_alone(count: int) -> None:
    for steps in (3, 6, 12):
        assert above(teleoperated(count, 3, steps=steps, tasks=2)) == set()
        assert above(without_state(teleoperated(count, 3, steps=steps, tasks=2))) == set()


def test_extreme_numbers_raise_no_warning() -> None:
    rng = np.random.default_rng(0)
    episodes = []
    for number in range(12):
        action, proprio = (rng.normal(size=(1 + number, width)).astype(np.float32) for width in (7, 8))
        value = [0, np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45, 1, -1, 1e20, 5, 7][number]
        action[number // 2] = value
        proprio[number // 3] = value
        episodes.append((action, proprio))
    judged = judge_batches(MEASURES, batch_of(episodes), lambda: [batch_of(episodes)], _all_criteria())
    assert set(judged) >= {"action_outlier", "state_jump", "idle_start", "truncated", "near_duplicate"}
    assert not any(np.isinf(j.value).any() for j in judged.values())


def test_constant_episodes_raise_no_warning() -> None:
    still = [(np.zeros((5, 7), np.float32), np.zeros((5, 8), np.float32))] * 10
    judge_batches(MEASURES, batch_of(still), lambda: [batch_of(still)], _all_criteria())


def _all_criteria() -> list[str]:
    return [criterion for measure in NUMBERS for criterion in measure.criteria]
