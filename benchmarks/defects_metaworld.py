"""Meta-World demonstrations as an RLDS data set: scripted experts in MuJoCo, written with this project's encoder.

    MUJOCO_GL=egl python -m benchmarks.defects_metaworld FOLDER

Needs `metaworld` (3.1.1) and `mujoco`, which this project does not: install them in a separate environment. Six tasks,
25 successful episodes of each, in turn; two episodes in three follow the expert with noise of 0.3 on its actions.
The data set becomes FOLDER/metaworld/1.0.0, with the card `benchmarks/cards/metaworld.yaml`.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from tensorflow_datasets.core import features as tfds

from oxe_curate.rlds.encode import EpisodeValues
from oxe_curate.rlds.synthetic import write_dataset

NAME, VERSION = "metaworld", "1.0.0"
SIZE = 112
AFTER_SUCCESS = 3
LONGEST = 250


@dataclass(frozen=True)
class Task:
    """A Meta-World task: its environment, the class of its expert, and instructions of equal meaning."""

    name: str
    policy: str
    texts: tuple[str, ...]


TASKS = (
    Task("reach-v3", "SawyerReachV3Policy", ("move the gripper to the red target", "reach the red ball")),
    Task("push-v3", "SawyerPushV3Policy", ("push the puck to the goal", "slide the red puck to the green target")),
    Task("pick-place-v3", "SawyerPickPlaceV3Policy", ("pick up the puck and lift it to the target", "lift the puck")),
    Task("drawer-open-v3", "SawyerDrawerOpenV3Policy", ("open the drawer", "pull the green drawer open")),
    Task("door-open-v3", "SawyerDoorOpenV3Policy", ("open the door", "swing the safe's door open")),
    Task(
        "button-press-topdown-v3",
        "SawyerButtonPressTopdownV3Policy",
        ("press the button from above", "push the button"),
    ),
)


def structure() -> tfds.FeaturesDict:
    """The features of an episode."""
    image = tfds.Image(shape=(SIZE, SIZE, 3), encoding_format="jpeg")
    return tfds.FeaturesDict(
        {
            "steps": tfds.Dataset(
                {
                    "observation": {
                        "image": image,
                        "image_wrist": image,
                        "state": tfds.Tensor(shape=(8,), dtype=np.float32),
                    },
                    "action": tfds.Tensor(shape=(7,), dtype=np.float32),
                    "language_instruction": tfds.Text(),
                    "is_first": tfds.Scalar(dtype=np.bool_),
                    "is_last": tfds.Scalar(dtype=np.bool_),
                    "is_terminal": tfds.Scalar(dtype=np.bool_),
                    "reward": tfds.Scalar(dtype=np.float32),
                    "discount": tfds.Scalar(dtype=np.float32),
                }
            ),
            "episode_metadata": {"success": tfds.Scalar(dtype=np.bool_), "task": tfds.Text()},
        }
    )


def demonstrations(episodes: int, seed: int = 0) -> Iterator[EpisodeValues]:
    """`episodes` successful demonstrations of each task, the tasks in turn."""
    makers = [_of_task(task, seed + number) for number, task in enumerate(TASKS)]
    for _ in range(episodes):
        for maker in makers:
            yield next(maker)


def _of_task(task: Task, seed: int) -> Iterator[EpisodeValues]:
    """Demonstrations of one task, at most one for each of its 50 goals; attempts that fail are left out."""
    metaworld, mujoco = importlib.import_module("metaworld"), importlib.import_module("mujoco")
    expert = getattr(importlib.import_module("metaworld.policies"), task.policy)()
    benchmark = metaworld.MT1(task.name, seed=seed)
    env = benchmark.train_classes[task.name]()
    env.model.vis.quality.offsamples = 0
    renderer = mujoco.Renderer(env.model, SIZE, SIZE)
    for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
        renderer.scene.flags[flag] = 0  # a sixth of the time where a processor renders
    rng = np.random.default_rng(seed)
    goals = rng.permutation(len(benchmark.train_tasks))  # each once: without noise, equal goals give equal episodes
    for number, goal in enumerate(goals.tolist()):
        env.set_task(benchmark.train_tasks[goal])
        steps = _attempt(env, expert, renderer, rng, noise=0.0 if number % 3 == 0 else 0.3)
        if steps is not None:
            yield _episode(steps, str(rng.choice(task.texts)), task.name)


def _attempt(env: Any, expert: Any, renderer: Any, rng: np.random.Generator, noise: float) -> list[Any] | None:
    """(state, action, image, wrist image) of each step until just after success; None without success."""
    observation, _ = env.reset()
    steps: list[Any] = []
    left = AFTER_SUCCESS
    for _ in range(LONGEST):
        action = np.clip(np.asarray(expert.get_action(observation)), -1, 1)
        action[:3] = np.clip(action[:3] + rng.normal(0, noise, 3), -1, 1)
        state = [*observation[:3], 0, 0, 0, 0, observation[3]]
        steps.append((state, [*action[:3], 0, 0, 0, action[3]], _see(env, renderer, "corner4"), _see(env, renderer)))
        observation, _, _, _, info = env.step(action)
        left -= bool(info["success"])
        if not left:
            return steps
    return None


def _see(env: Any, renderer: Any, camera: str = "gripperPOV") -> bytes:
    renderer.update_scene(env.data, camera=camera)
    pixels: NDArray[np.uint8] = renderer.render()
    if camera == "corner4":
        pixels = pixels[::-1, ::-1]  # Meta-World's corner cameras hang upside down
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=85, colorsubsampling="420"))


def _episode(steps: list[Any], text: str, task: str) -> EpisodeValues:
    state, action, image, wrist = zip(*steps, strict=True)
    last = np.arange(len(steps)) == len(steps) - 1
    return {
        "steps": {
            "observation": {
                "image": list(image),
                "image_wrist": list(wrist),
                "state": np.array(state, np.float32),
            },
            "action": np.array(action, np.float32),
            "language_instruction": [text] * len(steps),
            "is_first": np.arange(len(steps)) == 0,
            "is_last": last,
            "is_terminal": last,
            "reward": last.astype(np.float32),
            "discount": np.ones(len(steps), np.float32),
        },
        "episode_metadata": {"success": True, "task": task},
    }


def write(folder: Path, episodes: int = 25, seed: int = 0) -> None:
    """Write FOLDER/metaworld/1.0.0 with `episodes` demonstrations of each task."""
    write_dataset(folder, NAME, VERSION, structure().to_json(), demonstrations(episodes, seed), shards=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--episodes", type=int, default=25, help="per task (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write(args.folder, args.episodes, args.seed)


if __name__ == "__main__":
    main()
