"""Small RLDS sets in Bridge's structure, and an index of them."""

from pathlib import Path
from typing import Any

import numpy as np

from oxe_curate.filter.pipeline import FilterOptions, run_filter
from oxe_curate.index.store import Index
from oxe_curate.rlds.synthetic import write_dataset
from tests.structures import bridge

BRIDGE = bridge()


def flat_image(colour: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """uint8 (16, 16, 3): a flat colour with a darker left part that depends on the seed, so that scenes differ."""
    image = np.full((16, 16, 3), colour, np.uint8)
    image[:, : 4 + seed % 8] //= 2
    return image


def episode(text: str, image: np.ndarray, actions: np.ndarray) -> dict[str, Any]:
    """One episode in Bridge's structure whose recomputed actions are `actions` (T, 6): T + 2 source steps."""
    steps = len(actions) + 2
    state = np.zeros((steps, 7), np.float32)
    state[2:, :6] = np.cumsum(actions, axis=0)
    command = np.zeros((steps, 7), np.float32)
    command[:, 6] = np.arange(steps) % 2
    first, last = np.zeros(steps, bool), np.zeros(steps, bool)
    first[0] = last[-1] = True
    return {
        "steps": {
            "action": command,
            "language_instruction": [text] * steps,
            "is_first": first,
            "is_last": last,
            "is_terminal": last,
            "observation": {"state": state, **{f"image_{i}": [image] * steps for i in range(4)}},
        },
        "episode_metadata": {"file_path": "", "episode_id": 0},
    }


def index_of(folder: Path, sets: dict[str, tuple[str, Any]], **options: Any) -> Index:
    """Write data sets (name -> (version, episodes)) below `folder` and filter them."""
    for name, (version, episodes) in sets.items():
        write_dataset(folder / "raw", name, version, BRIDGE, episodes, shards=1)
    run_filter(folder / "raw", folder / "index", FilterOptions(workers=1, progress=False, **options))
    return Index.open(folder / "index")
