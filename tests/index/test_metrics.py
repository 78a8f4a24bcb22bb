"""Hash and metrics of literal actions."""

import numpy as np
import pytest

from oxe_curate.episode import Trajectory
from oxe_curate.index.metrics import action_hash, metrics


def trajectory(action: np.ndarray) -> Trajectory:
    return Trajectory(action, np.arange(len(action), dtype=np.int32), np.zeros((len(action), 0), np.float32))


def test_metrics_of_two_episodes_and_an_empty_one_between():
    action = np.zeros((5, 7), np.float32)
    action[1, :3] = (3, 4, 0)
    action[3, 5] = -2
    action[4, 0] = 1
    found = metrics(action, np.array([2, 0, 3]), [5.0, 5.0, None])
    assert found["idle_share"].tolist() == pytest.approx([0.5, np.nan, 1 / 3], nan_ok=True)
    assert found["largest_action"].tolist() == pytest.approx([4, np.nan, 2], nan_ok=True)
    assert found["path_length"].tolist() == pytest.approx([5, np.nan, 1], nan_ok=True)
    assert found["seconds"].tolist() == pytest.approx([0.4, 0, np.nan], nan_ok=True)


def test_no_actions_at_all():
    assert np.isnan(metrics(np.zeros((0, 7), np.float32), np.zeros(2, np.int64), [None, None])["path_length"]).all()


def test_hashes_are_equal_only_for_equal_actions():
    action = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    other = action.copy()
    assert action_hash(trajectory(action)) == action_hash(trajectory(other))
    other[4, 6] = np.nextafter(other[4, 6], np.float32(9))
    assert action_hash(trajectory(action)) != action_hash(trajectory(other))


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_uninformative_actions_have_no_hash(steps):
    assert action_hash(trajectory(np.ones((steps, 7), np.float32))) is None


def test_hashes_are_the_same_in_every_release():
    """An index holds them: two data sets scanned by two releases are compared by them."""
    action = np.arange(14, dtype=np.float32).reshape(2, 7) / 8
    assert action_hash(trajectory(action)) == 0xD7FF5C5B848F223
    assert action_hash(trajectory(-action)) == 0x3C787C03D74B47A5
    assert action_hash(trajectory(action[[0, 0, 1]])) is not None
