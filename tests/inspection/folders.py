"""Small data sets on disk with constructed conventions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from oxe_curate.rlds.synthetic import write_dataset
from tests.inspection.constructed import Truth, episodes
from tests.inspection.test_vision import fixed, panning

_FEATURES = "tensorflow_datasets.core.features."


def _tensor(*shape: int, dtype: str = "float32") -> dict[str, Any]:
    dimensions = {"dimensions": [str(d) for d in shape]} if shape else {}
    name = f"{_FEATURES}tensor_feature.Tensor"
    return {"pythonClassName": name, "tensor": {"shape": dimensions, "dtype": dtype, "encoding": "none"}}


def _dict(**features: Any) -> dict[str, Any]:
    name = f"{_FEATURES}features_dict.FeaturesDict"
    return {"pythonClassName": name, "featuresDict": {"features": features}}


def _image() -> dict[str, Any]:
    shape = {"dimensions": ["96", "96", "3"]}
    name = f"{_FEATURES}image_feature.Image"
    return {"pythonClassName": name, "image": {"shape": shape, "dtype": "uint8", "encodingFormat": "jpeg"}}


def structure(state: int = 7) -> dict[str, Any]:
    """features.json of the data sets below."""
    steps = _dict(
        observation=_dict(state=_tensor(state), image=_image(), image_hand=_image(), note=_tensor(dtype="string")),
        action=_tensor(7),
        language_instruction=_tensor(dtype="string"),
        codes=_tensor(24, dtype="int32"),
        is_first=_tensor(dtype="bool"),
    )
    sequence = {"pythonClassName": f"{_FEATURES}dataset_feature.Dataset", "sequence": {"feature": steps}}
    metadata = _dict(
        success=_tensor(dtype="bool"),
        has_image=_tensor(dtype="bool"),
        has_image_hand=_tensor(dtype="bool"),
        quality=_tensor(dtype="string"),
    )
    return {
        "type": f"{_FEATURES}features_dict.FeaturesDict",
        "proto_cls": "tensorflow_datasets.FeaturesDict",
        "content": {"features": {"steps": sequence, "episode_metadata": metadata}},
    }


def write(root: Path, truth: Truth, count: int = 8, seed: int = 0, *, bgr: bool = False) -> Path:
    """Write `root`/arm/1.0.0 with a fixed and a hand camera; returns the folder."""
    rng = np.random.default_rng(seed)
    made = []
    for number, steps in enumerate(episodes(truth, rng, count)):
        moved = 8 * np.linalg.norm(np.diff(steps["observation/state"][:, :3], axis=0), axis=1)
        images = {"image": fixed(rng, moved / 4), "image_hand": panning(rng, moved)}
        length = len(steps["action"])
        text = f"put block {number % 3} away"
        made.append(
            {
                "steps": {
                    "observation": {
                        "state": steps["observation/state"],
                        "note": [b""] * length,
                        **{k: list(v[..., ::-1] if bgr else v) for k, v in images.items()},
                    },
                    "action": steps["action"],
                    "language_instruction": [text.encode()] * length,
                    "codes": np.tile([*text.encode(), *[0] * (24 - len(text))], (length, 1)).astype(np.int32),
                    "is_first": np.arange(length) == 0,
                },
                "episode_metadata": {
                    "success": number != 1,
                    "has_image": True,
                    "has_image_hand": False,
                    "quality": b"never read",
                },
            }
        )
    state = episodes(truth, np.random.default_rng(0), 1)[0]["observation/state"].shape[1]
    return write_dataset(root, "arm", "1.0.0", structure(state), made, shards=3).path
