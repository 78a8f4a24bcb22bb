"""Idle steps by OpenVLA's rules for LIBERO and DROID, on literal actions."""

import numpy as np
import pytest

from oxe_curate.episode import Trajectory
from oxe_curate.index import idle


def actions(x: list[float], gripper: list[float]) -> np.ndarray:
    action = np.zeros((len(x), 7), np.float32)
    action[:, 0], action[:, 6] = x, gripper
    return action


@pytest.mark.parametrize(
    ("x", "gripper", "expected"),
    [
        ([1, 0, 0, 1], [1, 1, 1, 1], [0, 1, 1, 0]),
        ([1, 0, 0, 0], [1, 0, 0, 1], [0, 0, 1, 0]),  # a gripper that changes is something that happens
        ([0, 0, 1, 0], [0, 1, 0, 0], [1, 1, 0, 1]),  # before the first kept step only the norm counts
        ([0, 0], [0, 1], [1, 1]),
        ([9e-5, 1.1e-4], [0, 0], [1, 0]),
        ([np.nan, 0], [0, 0], [0, 1]),
        ([], [], []),
    ],
)
def test_libero(x, gripper, expected):
    assert idle.libero(actions(x, gripper)).tolist() == [bool(e) for e in expected]


def as_published(action: np.ndarray) -> list[bool]:
    """The rule word for word: a loop that remembers the step kept last."""
    kept, result = None, []
    for step in action:
        still = np.linalg.norm(step[:6]) < 1e-4
        is_idle = still if kept is None else still and step[6] == kept[6]
        kept = kept if is_idle else step
        result.append(bool(is_idle))
    return result


def test_libero_equals_its_loop():
    rng = np.random.default_rng(0)
    for _ in range(200):
        length = int(rng.integers(1, 12))
        action = actions(rng.choice([0, 1], length, p=[0.7, 0.3]), rng.integers(0, 2, length))
        assert idle.libero(action).tolist() == as_published(action)


def test_libero_of_several_episodes_is_that_of_each():
    rng = np.random.default_rng(1)
    parts = [
        actions(rng.choice([0, 1], n, p=[0.7, 0.3]), rng.integers(0, 2, n)) for n in rng.integers(1, 9, 50).tolist()
    ]
    starts = np.cumsum([0] + [len(part) for part in parts[:-1]])
    expected = np.concatenate([idle.libero(part) for part in parts])
    assert idle.libero(np.concatenate(parts), starts).tolist() == expected.tolist()


def test_droid_checks_every_pose_value_but_not_the_gripper():
    # x: q99 - q01 = 1.5374, so that 1e-5 after normalisation is 7.687e-6
    action = actions([0, 7.6e-6, 7.8e-6, -7.8e-6, 0], [0, 1, 0, 0, 1])
    assert idle.droid(action).tolist() == [True, True, False, False, True]
    action[0, 5] = 1e-5  # yaw: span 1.7793, limit 8.896e-6
    assert not idle.droid(action)[0]


def test_idle_frames_are_removed_from_every_array():
    action = actions([1, 0, 0, 2], [0, 0, 1, 1])
    index = np.array([3, 4, 5, 6], np.int32)
    trajectory = Trajectory(action, index, action[:, :2], "a", ("a", "b"), np.array([0, 0, 1, 1], np.int32))
    cut = idle.drop_idle_frames(trajectory, "libero")
    assert cut.frame_index.tolist() == [3, 5, 6]
    assert cut.action[:, 0].tolist() == [1, 0, 2]
    assert cut.proprio[:, 0].tolist() == [1, 0, 2]
    assert cut.instruction_index.tolist() == [0, 1, 1]
    assert idle.drop_idle_frames(cut, "libero") is cut
