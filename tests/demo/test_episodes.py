"""The numbers of an episode agree with each other, with the images, and with the data set's conventions."""

import io

import numpy as np
import pytest
from PIL import Image

from oxe_curate.demo import episodes
from oxe_curate.demo.robot import rotation_from_rpy
from oxe_curate.demo.structure import features_json
from oxe_curate.rlds.encode import flatten_episode
from oxe_curate.rlds.synthetic import load_features

MAKERS = {
    "bridge_dataset": episodes.bridge,
    "fractal20220817_data": episodes.fractal,
    "jaco_play": episodes.jaco,
    "nyu_door_opening_surprising_effectiveness": episodes.door,
}


def make(name: str, index: int = 0, **options) -> dict:
    return MAKERS[name](index, np.random.default_rng(index), **options)


def relative_to_absolute(commands: np.ndarray) -> list[float]:
    """Gripper commands +1 close, -1 open, 0 keep, from an open start -> 1 open, 0 closed."""
    state, states = 1.0, []
    for command in commands.ravel():
        state = {1: 0.0, -1: 1.0}.get(int(command), state)
        states.append(state)
    return states


@pytest.mark.parametrize("name", MAKERS)
def test_an_episode_has_the_declared_structure(name):
    structure = load_features(features_json(name))
    episode = make(name)
    flatten_episode(structure, episode)  # raises if a key, shape or type is wrong
    steps = episode["steps"]
    assert steps["is_first"].tolist() == [True] + [False] * (len(steps["is_last"]) - 1)
    assert steps["is_last"].tolist() == steps["is_terminal"].tolist() == steps["is_first"][::-1].tolist()
    for key, feature in structure["steps"].feature["observation"].items():
        if key.startswith("image"):
            image = Image.open(io.BytesIO(steps["observation"][key][-1]))
            assert (image.height, image.width, len(image.getbands())) == feature.shape


def test_bridge_actions_are_the_differences_of_states():
    steps = make("bridge_dataset")["steps"]
    state, action = steps["observation"]["state"], steps["action"]
    np.testing.assert_array_equal(action[:-1, :6], np.diff(state[:, :6], axis=0))
    assert not action[0, :6].any()
    assert np.linalg.norm(action[:, :3], axis=1).max() > 0.02
    fingers_close = np.flatnonzero(np.diff(state[:, 6]) < 0)
    assert not action[fingers_close, 6].any()  # commanded to close where they do


def test_bridge_flags_match_the_cameras():
    for index in range(4):
        episode = make("bridge_dataset", index)
        for k in range(4):
            first = Image.open(io.BytesIO(episode["steps"]["observation"][f"image_{k}"][0]))
            assert episode["episode_metadata"][f"has_image_{k}"] == (np.asarray(first).max() > 0)
        assert episode["episode_metadata"]["has_image_0"]


def test_fractal_actions_are_the_differences_of_poses():
    steps = make("fractal20220817_data", 1)["steps"]
    action, pose = steps["action"], steps["observation"]["base_pose_tool_reached"]
    np.testing.assert_allclose(pose[:-1, :3] + action["world_vector"][:-1], pose[1:, :3], atol=1e-6)
    for t in range(len(pose) - 1):
        turned = rotation_from_rpy(action["rotation_delta"][t].astype(float)) @ matrix(pose[t, 3:])
        np.testing.assert_allclose(turned, matrix(pose[t + 1, 3:]), atol=1e-5)
    commanded = 1 - steps["observation"]["gripper_closedness_commanded"]
    assert relative_to_absolute(action["gripper_closedness_action"]) == commanded.ravel().tolist()
    assert action["terminate_episode"].argmax(1).tolist() == [1] * (len(pose) - 1) + [0]


def matrix(quaternion: np.ndarray) -> np.ndarray:
    """Rotation of x, y, z, w (Rodrigues)."""
    x, y, z, w = quaternion.astype(float)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + 2 * w * cross + 2 * cross @ cross


def test_jaco_does_not_rotate():
    steps = make("jaco_play", 1)["steps"]
    observation, action = steps["observation"], steps["action"]
    position = observation["end_effector_cartesian_pos"][:, :3]
    np.testing.assert_allclose(position[:-1] + action["world_vector"][:-1], position[1:], atol=1e-6)
    assert {-1, 0, 1} == set(action["gripper_closedness_action"].ravel().tolist())  # place: close, then open
    closed = observation["joint_pos"][:, 6] > 0.3
    assert closed.any()
    assert relative_to_absolute(action["gripper_closedness_action"])[int(np.argmax(closed))] == 0


def test_the_door_is_opened_by_a_closed_hand():
    steps = make("nyu_door_opening_surprising_effectiveness")["steps"]
    closing = np.flatnonzero(steps["action"]["gripper_closedness_action"].ravel() == 1)
    vector = steps["action"]["world_vector"]
    assert (vector[: closing[0] - 1, 1] > 0).all()  # ahead, to the handle
    assert (vector[closing[-1] + 1 : -1, 1] < 0).all()  # back, along the door's arc


def test_spoiled_episodes():
    silent = make("bridge_dataset", language=False)
    assert set(silent["steps"]["language_instruction"]) == {""}
    assert not silent["episode_metadata"]["has_language"]
    short = make("bridge_dataset", num_steps=2)["steps"]
    assert short["is_first"].tolist() == [True, False]
    assert len(short["action"]) == len(short["observation"]["image_0"]) == 2
    broken = make("fractal20220817_data", broken=True)["steps"]["action"]["world_vector"]
    assert np.isnan(broken).any(axis=1).sum() == 1


def test_equal_texts_have_equal_embeddings():
    one, same, other = (episodes._embeddings(text, 2) for text in ("open the drawer", "open the drawer", "close it"))
    np.testing.assert_array_equal(one, same)
    assert abs(one[0] @ other[0]) < 0.2
    assert np.linalg.norm(one[0]) == pytest.approx(1)


def test_quaternions_and_angles_invert_rotations():
    np.testing.assert_allclose(
        episodes._quaternion(rotation_from_rpy(np.array([0, 0, np.pi / 2]))), [0, 0, 0.5**0.5, 0.5**0.5]
    )
    angles = np.array([0.1, -0.2, 0.3])
    np.testing.assert_allclose(episodes._rpy(rotation_from_rpy(angles)), angles)
