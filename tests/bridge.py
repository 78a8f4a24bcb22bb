"""Small Bridge-like data sets whose every number is known."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from oxe_curate.rlds.synthetic import write_dataset
from tests.structures import BRIDGE


def episode(seed: int, steps: int = 8, text: str = "lift the cup", **change: Any) -> dict[str, Any]:
    """One raw episode; frame (t, camera) is a plain colour that identifies both."""
    rng = np.random.default_rng(seed)
    state = np.cumsum(rng.normal(0, 0.01, (steps, 7)), axis=0).astype(np.float32)
    action = rng.normal(0, 0.01, (steps, 7)).astype(np.float32)
    action[:, 6] = rng.integers(0, 2, steps)
    frames = {f"image_{c}": [colour(seed, t, c) for t in range(steps)] for c in range(4)}
    step = {
        "action": action,
        "language_instruction": [text] * steps,
        "is_first": np.arange(steps) == 0,
        "is_last": np.arange(steps) == steps - 1,
        "is_terminal": np.arange(steps) == steps - 1,
        "observation": {"state": state, **frames},
    }
    step.update({key: value for key, value in change.items() if key in step})
    return {"steps": step, "episode_metadata": {"file_path": f"e{seed}", "episode_id": seed}}


def colour(seed: int, step: int, camera: int) -> np.ndarray:
    """A 16 x 16 image of one colour."""
    return np.full((16, 16, 3), (seed * 20 % 256, step * 10 % 256, camera * 60), np.uint8)


def write(
    root: Path, name: str = "bridge_dataset", episodes: Iterable[Any] | dict[str, Any] = (), shards: int = 2
) -> Path:
    """Write `<root>/<name>/1.0.0`, train and val by default; return the version folder."""
    chosen = episodes or {
        "train": [episode(i, 6 + i % 5) for i in range(8)],
        "val": [episode(100 + i) for i in range(2)],
    }
    write_dataset(root, name, "1.0.0", BRIDGE, chosen, shards=shards)
    return root / name / "1.0.0"
