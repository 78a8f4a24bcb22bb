"""The demo's episodes, in the structure and conventions of four Open X-Embodiment data sets.

The registry's cards describe the conventions. Choices of the demo: language embeddings are random unit vectors, equal
for equal texts; rotations are relative to a hand that points straight down.
"""

from __future__ import annotations

import functools
import itertools
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from oxe_curate.arrays import Floats, Rng
from oxe_curate.demo.door import Door, door_image, open_door
from oxe_curate.demo.robot import rotation_from_rpy
from oxe_curate.demo.rooms import BRIDGE, FRACTAL, JACO
from oxe_curate.demo.tasks import DemoStep, DemoTask, TaskKind, perform
from oxe_curate.demo.world import COLORS
from oxe_curate.rlds.encode import EpisodeValues

_Floats32 = NDArray[np.float32]

_SENTENCES: dict[str, dict[TaskKind, str]] = {
    "bridge_dataset": {
        "pick": "pick up the {color} block",
        "plate": "put the {color} block on the plate",
        "stack": "put the {color} block on top of the {other} block",
        "stow": "put the {color} block in the drawer",
        "push": "push the {color} block to the {other}",
        "open": "open the drawer",
        "close": "close the drawer",
    },
    "fractal20220817_data": {
        "pick": "pick {color} block",
        "stack": "place {color} block on {other} block",
        "stow": "place {color} block into top drawer",
        "open": "open top drawer",
        "close": "close top drawer",
    },
    "jaco_play": {
        "pick": "pick up the {color} block",
        "plate": "place the {color} block on the plate",
        "push": "push the {color} block to the {other}",
    },
}


def bridge(index: int, rng: Rng, *, language: bool = True, num_steps: int | None = None) -> EpisodeValues:
    """A WidowX episode: state xyz, rpy, gripper; action = the next state's difference, gripper 1 = open.

    As in the release, the first action does not move, and missing cameras have black frames.

    Args:
        index: number of the episode; determines the task and the scene.
        rng: the only source of randomness.
        language: whether it has an instruction.
        num_steps: maximum length.
    """
    scene = BRIDGE[index % len(BRIDGE)]
    task, text = _task("bridge_dataset", index, rng)
    frames = perform(task, scene.room, rng)
    frames = [frames[0], *frames][:num_steps]
    cameras = int(rng.choice([1, 2, 3], p=[0.60, 0.25, 0.15]))
    wrist = bool(rng.random() < 0.2)
    state = np.array([[*f.pose.position, *f.pose.rpy, f.pose.opening] for f in frames], np.float32)
    action = np.zeros_like(state)
    action[:-1, :6] = state[1:, :6] - state[:-1, :6]
    action[:, 6] = [f.command for f in frames]
    size, steps = scene.cameras[0].size, len(frames)
    images = {f"image_{k}": [_black(size)] * steps for k in range(4)}
    for k in range(cameras):
        images[f"image_{k}"] = [_jpeg(scene.image(f, scene.cameras[k])) for f in frames]
    if wrist:
        images["image_3"] = [_jpeg(scene.wrist_image(f, size)) for f in frames]
    text = text if language else ""
    return {
        "steps": {
            "observation": {"state": state, **images},
            "action": action,
            "language_instruction": [text] * steps,
            "language_embedding": _embeddings(text, steps),
            "discount": np.ones(steps, np.float32),
            **_flags(steps),
        },
        "episode_metadata": {
            "episode_id": index,
            "file_path": f"demo/bridge/episode_{index:03d}",
            **{f"has_image_{k}": k < cameras or (k == 3 and wrist) for k in range(4)},
            "has_language": language,
        },
    }


def fractal(index: int, rng: Rng, *, broken: bool = False) -> EpisodeValues:
    """A mobile manipulator's episode: displacements, and gripper commands +1 close, -1 open, 0 keep.

    Args:
        index: number of the episode; determines the task.
        rng: the only source of randomness.
        broken: whether one action is NaN.
    """
    task, text = _task("fractal20220817_data", index, rng)
    frames = perform(task, FRACTAL.room, rng)
    steps = len(frames)
    position, rpy, opening = _poses(frames)
    rotation = np.stack([rotation_from_rpy(angles) for angles in rpy.astype(np.float64)])
    quaternion = np.stack([_quaternion(r) for r in rotation]).astype(np.float32)
    world_vector = _differences(position)
    if broken:
        world_vector[steps // 3] = np.nan
    turns = np.zeros((steps, 3), np.float32)
    turns[:-1] = [_rpy(after @ before.T) for before, after in itertools.pairwise(rotation)]
    bounds = np.array([[*FRACTAL.room.x, 0], [*FRACTAL.room.y, 0], [0, 0.5, 0]], np.float32)
    start = np.broadcast_to(quaternion[0], (steps, 4))
    names = {"collection_mode": "script", "data_type": "demo", "env": "demo counter", "location": "simulated"}
    names |= {"objects_family": "blocks", "task_family": task.kind}
    return {
        "steps": {
            "observation": {
                "image": [_jpeg(FRACTAL.image(f, FRACTAL.cameras[0])) for f in frames],
                **_language(text, steps),
                "base_pose_tool_reached": np.hstack([position, quaternion]),
                "gripper_closed": 1 - opening,
                "gripper_closedness_commanded": np.array([[1 - f.command] for f in frames], np.float32),
                "height_to_bottom": position[:, 2:],
                "orientation_box": np.zeros((steps, 2, 3), np.float32),
                "orientation_start": start,
                "src_rotation": start,
                "robot_orientation_positions_box": np.zeros((steps, 3, 3), np.float32),
                "rotation_delta_to_go": rpy[-1] - rpy,
                "vector_to_go": position[-1] - position,
                "workspace_bounds": np.broadcast_to(bounds, (steps, 3, 3)),
            },
            "action": {
                "world_vector": world_vector,
                "rotation_delta": turns,
                "gripper_closedness_action": _relative_gripper(opening[:, 0], [f.command for f in frames]),
                "terminate_episode": _terminate(steps),
                "base_displacement_vector": np.zeros((steps, 2), np.float32),
                "base_displacement_vertical_rotation": np.zeros((steps, 1), np.float32),
            },
            **_flags(steps),
        },
        "aspects": {k: k in ("success", "feasible", "has_aspects") for k in _ASPECTS},
        "attributes": dict.fromkeys(names, 0) | {f"{k}_name": v for k, v in names.items()},
    }


_ASPECTS = ("success", "feasible", "has_aspects", "already_success", "undesirable")


def jaco(index: int, rng: Rng) -> EpisodeValues:
    """A Kinova episode: displacements without rotation, relative gripper commands; a front and a wrist camera."""
    task, text = _task("jaco_play", index, rng)
    frames = perform(task, JACO.room, rng)
    steps = len(frames)
    position, _, opening = _poses(frames)
    displacement = _differences(position)
    joints = np.stack([JACO.arm.joints(f.pose) for f in frames])
    upright = np.broadcast_to(np.array([0, 0, 0, 1], np.float32), (steps, 4))
    return {
        "steps": {
            "observation": {
                "image": [_jpeg(JACO.image(f, JACO.cameras[0])) for f in frames],
                "image_wrist": [_jpeg(JACO.wrist_image(f, (224, 224))) for f in frames],
                **_language(text, steps),
                "end_effector_cartesian_pos": np.hstack([position, upright]),
                "end_effector_cartesian_velocity": np.hstack([displacement * 10, np.zeros_like(displacement)]),  # 10 Hz
                "joint_pos": np.hstack([joints, 1 - opening, 1 - opening]).astype(np.float32),
            },
            "action": {
                "world_vector": displacement,
                "gripper_closedness_action": _relative_gripper(opening[:, 0], [f.command for f in frames]),
                "terminate_episode": _terminate(steps),
            },
            **_flags(steps),
        }
    }


_DOORS = (
    Door(0.60, 1.50, 0.80, 1, (214, 206, 190), (168, 182, 190), panels=True),
    Door(0.45, 0.70, 0.35, -1, (160, 112, 70), (206, 200, 188), panels=False),
    Door(0.55, 1.20, 0.60, 1, (188, 196, 204), (120, 130, 126), panels=False),
)


def door(index: int, rng: Rng) -> EpisodeValues:
    """A door opened by a hand with the only camera; displacements in the axes of the hand at the start."""
    kind = _DOORS[index % len(_DOORS)]
    frames = open_door(kind, rng)
    steps, text = len(frames), "open the door"
    turn = np.zeros((steps, 3), np.float32)
    turn[:-1, 2] = np.diff([f.yaw for f in frames])
    opening = np.array([f.opening for f in frames])
    return {
        "steps": {
            "observation": {"image": [_jpeg(door_image(kind, f)) for f in frames], **_language(text, steps)},
            "action": {
                "world_vector": _differences(np.array([f.position for f in frames], np.float32)),
                "rotation_delta": turn,
                "gripper_closedness_action": _relative_gripper(opening, [f.command for f in frames]),
                "terminate_episode": _terminate(steps)[:, 0].astype(np.float32),
            },
            **_flags(steps),
        }
    }


def _task(dataset: str, index: int, rng: Rng) -> tuple[DemoTask, str]:
    """A task and its instruction: kinds in turn, random colours."""
    sentences = _SENTENCES[dataset]
    kind = list(sentences)[index % len(sentences)]
    color, other = (str(c) for c in rng.permutation(list(COLORS))[:2])
    if kind == "push":
        other = str(rng.choice(["left", "right"]))
    task = DemoTask(kind, "" if kind in ("open", "close") else color, other if kind in ("stack", "push") else "")
    return task, sentences[kind].format(color=color, other=other)


def _poses(frames: Sequence[DemoStep]) -> tuple[_Floats32, _Floats32, _Floats32]:
    """Position (T, 3), rpy (T, 3), opening (T, 1)."""
    table = np.array([[*f.pose.position, *f.pose.rpy, f.pose.opening] for f in frames], np.float32)
    return table[:, :3], table[:, 3:6], table[:, 6:]


def _differences(values: _Floats32) -> _Floats32:
    """values[t + 1] - values[t], and zero at the end."""
    differences = np.zeros_like(values)
    differences[:-1] = values[1:] - values[:-1]
    return differences


def _relative_gripper(opening: NDArray[Any], commands: Sequence[float]) -> _Floats32:
    """(T, 1): +1 while the fingers close on command, -1 while they open, else 0."""
    change, command = np.diff(opening, append=opening[-1]), np.array(commands)
    action = np.zeros((len(opening), 1), np.float32)
    action[(change < 0) & (command == 0)] = 1
    action[(change > 0) & (command == 1)] = -1
    return action


def _terminate(steps: int) -> NDArray[np.int32]:
    """(T, 3): [1, 0, 0] at the last step, else [0, 1, 0]."""
    return np.eye(3, dtype=np.int32)[[1] * (steps - 1) + [0]]


def _flags(steps: int) -> dict[str, NDArray[Any]]:
    last = np.arange(steps) == steps - 1
    return {"is_first": np.arange(steps) == 0, "is_last": last, "is_terminal": last, "reward": last.astype(np.float32)}


def _quaternion(rotation: Floats) -> Floats:
    """x, y, z, w of a rotation by less than half a turn."""
    w = np.sqrt(max(0.0, 1 + np.trace(rotation))) / 2
    x, y, z = (rotation[a, b] - rotation[b, a] for a, b in ((2, 1), (0, 2), (1, 0)))
    return np.array([x / (4 * w), y / (4 * w), z / (4 * w), w])


def _rpy(rotation: Floats) -> Floats:
    """Inverse of `rotation_from_rpy` for small rotations."""
    return np.array(
        [
            np.arctan2(rotation[2, 1], rotation[2, 2]),
            -np.arcsin(np.clip(rotation[2, 0], -1, 1)),
            np.arctan2(rotation[1, 0], rotation[0, 0]),
        ]
    )


def _language(text: str, steps: int) -> dict[str, Any]:
    return {"natural_language_instruction": [text] * steps, "natural_language_embedding": _embeddings(text, steps)}


def _embeddings(text: str, steps: int) -> _Floats32:
    vector = np.random.default_rng(zlib.crc32(text.encode())).normal(size=512) if text else np.zeros(512)
    vector = vector / max(float(np.linalg.norm(vector)), 1.0)
    return np.broadcast_to(vector.astype(np.float32), (steps, 512))


def _jpeg(image: Image.Image) -> bytes:
    data: bytes = simplejpeg.encode_jpeg(np.asarray(image), quality=92, colorspace="RGB", colorsubsampling="420")
    return data


@functools.cache
def _black(size: tuple[int, int]) -> bytes:
    return _jpeg(Image.new("RGB", size))
