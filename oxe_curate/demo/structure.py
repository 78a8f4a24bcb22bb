"""The demo's feature structures, stored in a short notation and expanded to TFDS's features.json.

Notation of a leaf: "float32[7]", "bool", "string" (a Tensor), "bool scalar" (a Scalar), "text" (a Text),
"jpeg[256,256,3]", "image[224,224,3]" (no encoding declared). "steps" is the nested Dataset.
"""

from __future__ import annotations

import json
import re
from importlib.resources import files
from typing import Any

import numpy as np
from tensorflow_datasets.core import features as tfds

_LEAF = re.compile(r"(\w+)(?:\[([\d,]+)\])?( scalar)?")


def features_json(name: str) -> dict[str, Any]:
    """The features.json of one of the demo's data sets, parsed."""
    notation = json.loads((files("oxe_curate.demo") / "features" / f"{name}.json").read_text())
    features = {key: _expand(value) for key, value in notation.items()}
    features["steps"] = tfds.Dataset(features["steps"])
    expanded = json.dumps(tfds.FeaturesDict(features).to_json(), sort_keys=True)  # protobuf maps are unordered
    result: dict[str, Any] = json.loads(expanded)
    return result


def _expand(notation: Any) -> Any:
    if isinstance(notation, dict):
        return tfds.FeaturesDict({key: _expand(value) for key, value in notation.items()})
    match = _LEAF.fullmatch(notation)
    if not match:
        raise ValueError(f"invalid feature notation {notation!r}")
    kind, dimensions, scalar = match.groups()
    shape = tuple(int(d) for d in dimensions.split(",")) if dimensions else ()
    if kind == "text":
        return tfds.Text()
    if kind in ("jpeg", "png", "image"):
        return tfds.Image(shape=shape, encoding_format=None if kind == "image" else kind)
    dtype = np.object_ if kind == "string" else np.dtype(kind).type
    return tfds.Scalar(dtype=dtype) if scalar else tfds.Tensor(shape=shape, dtype=dtype)
