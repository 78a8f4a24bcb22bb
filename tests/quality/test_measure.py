"""Batches of episodes, and limits learned from them."""

import numpy as np
import pytest

from oxe_curate.quality.episodes import EpisodeBatch, join
from oxe_curate.quality.limits import robust_limit


def batch(lengths: list[int]) -> EpisodeBatch:
    """Episodes whose first action column counts the steps."""
    starts = np.cumsum([0, *lengths])
    action = np.zeros((starts[-1], 7), np.float32)
    action[:, 0] = np.arange(len(action))
    texts = [f"task {i}" for i in range(len(lengths))]
    return EpisodeBatch(
        action=action,
        proprio=action[:, :2],
        starts=starts,
        instruction=texts,
        success=np.full(len(lengths), -1, np.int8),
        frame_bytes={"primary": np.arange(len(action), dtype=np.int32)},
    )


def test_take_selects_the_steps_of_episodes() -> None:
    taken = batch([2, 3, 1]).take(np.array([2, 0]))
    assert taken.action[:, 0].tolist() == [5, 0, 1]
    assert taken.starts.tolist() == [0, 1, 3]
    assert taken.instruction == ["task 2", "task 0"]
    assert taken.frame_bytes["primary"].tolist() == [5, 0, 1]


def test_join_is_the_inverse_of_take() -> None:
    whole = batch([2, 3, 1])
    again = join([whole.take(np.array([0])), whole.take(np.array([1, 2]))])
    assert again.action.tolist() == whole.action.tolist()
    assert again.starts.tolist() == whole.starts.tolist()
    assert again.episode.tolist() == [0, 0, 1, 1, 1, 2]


def test_a_few_bad_episodes_do_not_move_a_limit() -> None:
    good = np.linspace(1, 2, 90)
    limit = robust_limit(good, least=0)
    assert 2 < limit < 8
    assert robust_limit(np.append(good, np.full(10, 1e6)), least=0) == pytest.approx(limit, rel=0.2)
    assert robust_limit(np.append(good, np.nan), least=50) == 50
    assert robust_limit(np.zeros(7), least=0) == np.inf
