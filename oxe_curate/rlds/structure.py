"""features.json -> tfds features, of which those that cannot be read become placeholders instead of errors.

tfds itself refuses the whole file for one feature that it does not know, imports any module that the file names, and
imports TensorFlow for bfloat16.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from tensorflow_datasets.core import features as tfds

from oxe_curate.errors import DataError

_TFDS = "tensorflow_datasets."
_BUILT = {
    "Tensor", "Scalar", "Text", "Image", "LabeledImage", "ClassLabel", "BBoxFeature", "Translation",
    "TranslationVariableLanguages",
}  # fmt: skip
"""Classes that tfds builds; it may import TensorFlow for others."""
BFLOAT16 = "bfloat16"


class Unreadable(tfds.Tensor):  # type: ignore[misc]
    """A feature that cannot be read; `why` is the predicate of a sentence."""

    def __init__(self, why: str) -> None:
        super().__init__(shape=(), dtype=np.object_)
        self.why = why


class BFloat16(tfds.Tensor):  # type: ignore[misc]
    """A tensor of bfloat16, which numpy has not: it is read as the float32 of the same value."""


def parse_features(node: Any) -> tfds.FeaturesDict:
    """Build the features of one episode from a parsed features.json.

    Raises:
        DataError: the top level is not a dict of features.
    """
    try:
        features = _parse(node)
    except (TypeError, KeyError, AttributeError, ValueError, RecursionError) as error:
        raise DataError(f"not a features.json of tensorflow_datasets ({type(error).__name__}: {error})") from None
    if not isinstance(features, tfds.FeaturesDict):
        found = features.why if isinstance(features, Unreadable) else f"is a {type(features).__name__}"
        raise DataError(f"expected a FeaturesDict at the top level, which {found}")
    return features


def _parse(node: Any) -> Any:
    if not isinstance(node, Mapping):
        raise TypeError(f"expected a JSON object, got {type(node).__name__}")
    name = str(_get(node, "pythonClassName") or node.get("type") or "")
    if not name:
        raise KeyError("pythonClassName")
    content = node.get("content", node)
    if isinstance(content, str):
        content = json.loads(content)
    kind = name.rpartition(".")[2] if name.startswith(_TFDS) else ""
    below = _below(content, kind, bool(node.get("proto_cls")))
    if kind == "FeaturesDict" and isinstance(below, Mapping):
        return tfds.FeaturesDict({key: _parse(child) for key, child in below.items()})
    if kind in ("Sequence", "Dataset") and isinstance(below, Mapping) and "feature" in below:
        length = below.get("length")
        length = None if length in (None, -1, "-1") else int(length)
        return getattr(tfds, kind)(_parse(below["feature"]), length=length)
    return _leaf(node, name, content)


def _below(content: Any, kind: str, is_proto: bool) -> Any:
    """The children of a dict or sequence, as each of the three forms of features.json has them."""
    if kind == "FeaturesDict":
        found = content if is_proto else _get(content, "featuresDict")
        return found.get("features", {}) if isinstance(found, Mapping) else content
    if kind in ("Sequence", "Dataset"):
        return content.get("sequence") or content.get("dataset") or content
    return None


def _leaf(node: Mapping[str, Any], name: str, content: Any) -> Any:
    if not name.startswith(_TFDS):
        return Unreadable(f"has the class {name}, which tensorflow_datasets does not have")
    tensor = content.get("tensor", content) if isinstance(content, Mapping) else {}
    dtype = str(tensor.get("dtype", "")) if isinstance(tensor, Mapping) else ""
    short = name.rpartition(".")[2]
    if short not in _BUILT:
        article = "an" if short[:1] in "AEIOU" else "a"
        return Unreadable(f"is {article} {short}, expected numbers, texts or an Image per step")
    if dtype and dtype not in (BFLOAT16, "string", "bool") and not _is_numpy(dtype):
        return Unreadable(f"has the dtype {dtype}, expected numbers, booleans or texts of a type that numpy has")
    try:
        if dtype == BFLOAT16:
            if short not in ("Tensor", "Scalar"):
                return Unreadable(f"is a {short} of bfloat16")
            other = tfds.FeatureConnector.from_json(_with_dtype(node, "float32"))
            encoding = getattr(getattr(other, "_encoding", None), "value", "none")
            return BFloat16(shape=other.shape, dtype=np.float32, encoding=encoding)
        return tfds.FeatureConnector.from_json(dict(node))
    except Exception as error:  # tfds and protobuf raise many kinds of errors
        line = (str(error).splitlines() or [type(error).__name__])[0]
        return Unreadable(f"has the class {short}, which the installed tensorflow_datasets cannot build ({line})")


def _with_dtype(node: Any, dtype: str) -> Any:
    if isinstance(node, Mapping):
        return {key: dtype if key == "dtype" else _with_dtype(value, dtype) for key, value in node.items()}
    return node


def _is_numpy(dtype: str) -> bool:
    try:
        return np.dtype(dtype).kind in "fbiuOSU"
    except TypeError:
        return False


def _get(node: Any, key: str) -> Any:
    """A key of protobuf's JSON, which may be written in either case."""
    snake = "".join(f"_{c.lower()}" if c.isupper() else c for c in key)
    return node.get(key, node.get(snake)) if isinstance(node, Mapping) else None
