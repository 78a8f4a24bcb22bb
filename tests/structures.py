"""Feature structures for small data sets."""

from typing import Any

import numpy as np
from tensorflow_datasets.core import features as tfds


def bridge(**extra: Any) -> Any:
    """BridgeData V2's structure with small images; `extra` adds step features."""
    image = tfds.Image(shape=(16, 16, 3), encoding_format="jpeg")
    cameras = {f"image_{i}": image for i in range(4)}
    return tfds.FeaturesDict(
        {
            "steps": tfds.Dataset(
                {
                    "action": tfds.Tensor(shape=(7,), dtype=np.float32),
                    "language_instruction": tfds.Text(),
                    "is_first": np.bool_,
                    "is_last": np.bool_,
                    "is_terminal": np.bool_,
                    "observation": {"state": tfds.Tensor(shape=(7,), dtype=np.float32), **cameras},
                    **extra,
                }
            ),
            "episode_metadata": {"file_path": tfds.Text(), "episode_id": np.int32},
        }
    ).to_json()


BRIDGE = bridge()
