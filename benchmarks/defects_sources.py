"""The clean episodes that defects are planted into, and which of their features mean what."""

from __future__ import annotations

import functools
import importlib.util
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.defects_episode import Floats, StoredEpisode, read_episodes, write_episodes
from oxe_curate.demo import DATASETS
from oxe_curate.demo.structure import features_json
from oxe_curate.rlds.synthetic import write_dataset

CARDS = Path(__file__).parent / "cards"
DEMO_EPISODES = 40


@dataclass(frozen=True)
class Columns:
    """Some columns of a step feature with numbers."""

    name: str
    start: int
    stop: int

    def get(self, episode: StoredEpisode) -> Floats:
        """float64 (T, columns), a copy."""
        value: Floats = np.asarray(episode.values[self.name]).reshape(episode.steps, -1)
        return value[:, self.start : self.stop].astype(np.float64)

    def put(self, episode: StoredEpisode, new: Floats) -> StoredEpisode:
        """The episode with other values in these columns; they keep their type."""
        value = np.array(episode.values[self.name])
        value.reshape(episode.steps, -1)[:, self.start : self.stop] = new
        return episode.with_values(**{self.name: value})


@dataclass(frozen=True)
class Parts:
    """Where a data set keeps what defects change; None where it has no such thing.

    Attributes:
        xyz, rpy, gripper: of the action, only where the card's recipe reads them.
        gripper_range: the gripper's command at its two ends; opposite commands add up to their sum.
        gripper_relative: a command of 0 keeps the gripper as it is.
        position, angles, aperture: of the state.
        cameras: frames of the primary camera, then of others.
        text, embedding: the instruction, and the features that depend only on it.
        success: the flag that the card names.
        whole: the episodes are complete demonstrations, not pieces of some.
    """

    position: Columns
    text: str
    cameras: tuple[str, ...]
    xyz: Columns | None = None
    rpy: Columns | None = None
    gripper: Columns | None = None
    gripper_range: tuple[float, float] = (0.0, 1.0)
    gripper_relative: bool = False
    angles: Columns | None = None
    aperture: Columns | None = None
    embedding: tuple[str, ...] = ()
    success: str | None = None
    whole: bool = True


@dataclass(frozen=True)
class Source:
    """A clean data set.

    Attributes:
        name: in the tables.
        dataset, version: its TFDS name.
        cards: folder of the card that describes it; None for the registry's.
        only: regular expression of the kinds that are planted; "" for all.
        make: (folder of the benchmark) -> version folder with the episodes; made or found there.
    """

    name: str
    dataset: str
    version: str
    parts: Parts
    make: Callable[[Path], Path | None]
    cards: Path | None = None
    only: str = ""
    note: str = ""


@dataclass(frozen=True, eq=False)
class Clean:
    """A source's clean episodes, read.

    Attributes:
        folder: a version folder with exactly these episodes, in a root that holds nothing else.
    """

    source: Source
    folder: Path
    episodes: tuple[StoredEpisode, ...]


def open_source(source: Source, data: Path, folder: Path) -> Clean | None:
    """Read a source; None if it is not available on this machine.

    Args:
        source: which one.
        data: folder of the clean episodes, where those that can be made are kept.
        folder: of this run.
    """
    original = source.make(data)
    if original is None:
        return None
    episodes = read_episodes(original)
    copy = folder / "clean" / source.name / source.dataset / source.version
    write_episodes(original, copy, {"train": [episode.record for episode in episodes]})
    return Clean(source, copy, tuple(episodes))


def sources(shared: Path) -> list[Source]:
    """Every source; `shared` has the real data sets in data/rlds."""
    real = shared / "data" / "rlds"
    return [
        Source("bridge", "bridge_dataset", "1.0.0", _BRIDGE, functools.partial(_real, real), note=_REAL_BRIDGE),
        Source(
            "bridge-raw", "bridge_dataset", "1.0.0", _BRIDGE_RAW, functools.partial(_real, real), CARDS,
            "^action|^state|^angle", "the same, with a card that reads the data set's own actions",
        ),
        Source("demo-bridge", "bridge_dataset", "1.0.0", _DEMO_BRIDGE, functools.partial(_demo, 0)),
        Source("demo-fractal", "fractal20220817_data", "0.1.0", _FRACTAL, functools.partial(_demo, 1)),
        Source("demo-jaco", "jaco_play", "0.1.0", _JACO, functools.partial(_demo, 2)),
        Source(
            "metaworld-small", "metaworld2_small", "1.0.0", _SMALL, functools.partial(_real_small, real), CARDS,
            note="two Meta-World tasks",
        ),
        Source("metaworld", "metaworld", "1.0.0", _METAWORLD, _metaworld, CARDS, note="six Meta-World tasks"),
    ]  # fmt: skip


def door_frames(folder: Path) -> list[list[bytes]]:
    """The frames of episodes with another robot in other rooms, as a wrong camera shows them."""
    return [list(episode.values["steps/observation/image"]) for episode in read_episodes(_demo(3, folder))]


# --- where they come from ---

_REAL_BRIDGE = "the real Bridge shard: 25 episodes cut to 10 steps; the card computes the pose action from the states"


def _real(real: Path, folder: Path) -> Path | None:
    found = real / "bridge_dataset" / "1.0.0"
    return found if found.is_dir() else None


def _real_small(real: Path, folder: Path) -> Path | None:
    found = real / "metaworld2_small" / "1.0.0"
    return found if found.is_dir() else None


def _demo(number: int, folder: Path) -> Path:
    """One of the demo's data sets, without the episodes that the demo spoils."""
    made = DATASETS[number]
    root = folder / "demo"
    target = root / made.name / made.version
    if not (target / "dataset_info.json").exists():
        count = 6 if number == 3 else DEMO_EPISODES
        episodes = (made.make(i, np.random.default_rng([11, number, i])) for i in range(count))
        write_dataset(root, made.name, made.version, features_json(made.name), episodes, shards=1, replace=True)
    return target


def _metaworld(folder: Path) -> Path | None:
    from benchmarks import defects_metaworld

    target = folder / defects_metaworld.NAME / defects_metaworld.VERSION
    if not target.is_dir():
        if importlib.util.find_spec("metaworld") is None:
            return None
        with tempfile.TemporaryDirectory(dir=folder) as draft:
            defects_metaworld.write(Path(draft))
            shutil.move(Path(draft) / defects_metaworld.NAME, folder / defects_metaworld.NAME)
    return target


# --- what their features mean ---


def _columns(name: str, start: int, stop: int) -> Columns:
    return Columns(f"steps/{name}", start, stop)


def _bridge(**more: Any) -> Parts:
    return Parts(
        position=_columns("observation/state", 0, 3),
        angles=_columns("observation/state", 3, 6),
        aperture=_columns("observation/state", 6, 7),
        gripper=_columns("action", 6, 7),
        text="steps/language_instruction",
        embedding=("steps/language_embedding",),
        **more,
    )


_BRIDGE = _bridge(cameras=tuple(f"steps/observation/image_{k}" for k in range(3)), whole=False)
_BRIDGE_RAW = _bridge(cameras=_BRIDGE.cameras, whole=False, xyz=_columns("action", 0, 3), rpy=_columns("action", 3, 6))
_DEMO_BRIDGE = _bridge(cameras=("steps/observation/image_0",))
_FRACTAL = Parts(
    position=_columns("observation/base_pose_tool_reached", 0, 3),
    aperture=_columns("observation/gripper_closed", 0, 1),
    xyz=_columns("action/world_vector", 0, 3),
    rpy=_columns("action/rotation_delta", 0, 3),
    gripper=_columns("action/gripper_closedness_action", 0, 1),
    gripper_range=(-1, 1),
    gripper_relative=True,
    text="steps/observation/natural_language_instruction",
    embedding=("steps/observation/natural_language_embedding",),
    cameras=("steps/observation/image",),
)
_JACO = Parts(
    position=_columns("observation/end_effector_cartesian_pos", 0, 3),
    xyz=_columns("action/world_vector", 0, 3),
    gripper=_columns("action/gripper_closedness_action", 0, 1),
    gripper_range=(-1, 1),
    gripper_relative=True,
    text="steps/observation/natural_language_instruction",
    embedding=("steps/observation/natural_language_embedding",),
    cameras=("steps/observation/image", "steps/observation/image_wrist"),
)


def _sawyer(*cameras: str) -> Parts:
    return Parts(
        position=_columns("observation/state", 0, 3),
        aperture=_columns("observation/state", 7, 8),
        xyz=_columns("action", 0, 3),
        gripper=_columns("action", 6, 7),
        gripper_range=(-1, 1),
        text="steps/language_instruction",
        cameras=cameras,
        success="episode_metadata/success",
    )


_SMALL = _sawyer("steps/observation/image")
_METAWORLD = _sawyer("steps/observation/image", "steps/observation/image_wrist")
