"""The features of an episode, flat: what each holds, how it is stored, and why some cannot be read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from oxe_curate.errors import DataError

STEPS = "steps"
FeatureKind = Literal["number", "text", "image", "ragged", "rare", "unreadable"]


@dataclass(frozen=True, slots=True)
class Leaf:
    """A feature with values.

    Attributes:
        key: flat key; below the step for a step feature ("observation/state"), from the top otherwise.
        wire: its name in the record.
        kind: number (float or int list, or a tensor stored as bytes), text, image (encoded bytes), ragged (a sequence
            of numbers or texts inside a step), rare (deeper sequences and dynamic shapes, which tfds decodes), or
            unreadable.
        dtype: of the values; bfloat16 is read as float32.
        shape: of one step's value.
        encoding: "none", "bytes" or "zlib": how a tensor is stored.
        problem: why it is unreadable, as the predicate of a sentence.
        width: numbers per step.
    """

    key: str
    wire: bytes
    kind: FeatureKind
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]
    encoding: str
    feature: Any = field(repr=False, compare=False)
    problem: str = ""
    width: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "width", math.prod(d or 0 for d in self.shape))


def leaves(features: Any) -> tuple[dict[str, Leaf], dict[str, Leaf]]:
    """Flatten a tfds FeaturesDict into (step leaves, other leaves), keyed as `Leaf.key`.

    Raises:
        DataError: there is no `steps` sequence, so the data set is not RLDS.
    """
    from oxe_curate.rlds.structure import Unreadable

    if STEPS in features and isinstance(features[STEPS], Unreadable):
        raise DataError(f"features.json: the feature {STEPS!r} {features[STEPS].why}")
    if STEPS not in features or not hasattr(features[STEPS], "feature"):
        raise DataError(f"features.json has no sequence {STEPS!r}, so it does not describe an RLDS data set")
    steps = _flatten(features[STEPS].feature, "", f"{STEPS}/")
    if "" in steps:
        raise DataError(f"features.json has no features inside {STEPS!r}, so it does not describe an RLDS data set")
    other: dict[str, Leaf] = {}
    for name, feature in features.items():
        if name != STEPS:
            other.update(_flatten(feature, name, ""))
    return steps, other


def _flatten(feature: Any, key: str, prefix: str) -> dict[str, Leaf]:
    from tensorflow_datasets.core import features as tfds

    if isinstance(feature, tfds.FeaturesDict):
        found: dict[str, Leaf] = {}
        for name, below in feature.items():
            found.update(_flatten(below, f"{key}/{name}" if key else name, prefix))
        return found
    kind, dtype, shape, encoding, problem = _describe(feature, in_step=bool(prefix))
    return {key: Leaf(key, f"{prefix}{key}".encode(), kind, dtype, shape, encoding, feature, problem)}


def _describe(feature: Any, in_step: bool) -> tuple[FeatureKind, np.dtype[Any], tuple[int | None, ...], str, str]:
    """Kind, dtype, shape, encoding and problem of a feature that is not a dict; see `Leaf`."""
    from tensorflow_datasets.core import features as tfds

    from oxe_curate.rlds.structure import BFloat16, Unreadable

    nothing = np.dtype(object)
    if isinstance(feature, Unreadable):
        return "unreadable", nothing, (), "none", feature.why
    if isinstance(feature, tfds.Image):
        return "image", np.dtype(feature.np_dtype), tuple(feature.shape), "none", ""
    if isinstance(feature, tfds.Sequence) and not isinstance(feature, tfds.Dataset | tfds.Video):
        inner = feature.feature
        if not isinstance(inner, tfds.FeaturesDict):
            kind, dtype, shape, encoding, problem = _describe(inner, in_step=False)
            shape = (feature._length or None, *shape)
            if in_step and kind in ("number", "text"):
                return "ragged", dtype, shape, encoding, ""
            if kind != "image":
                return ("unreadable" if problem else "rare"), dtype, shape, encoding, problem
    if not isinstance(feature, tfds.Tensor | tfds.ClassLabel) or isinstance(feature, tfds.Audio):
        below = "features" if isinstance(getattr(feature, "feature", None), tfds.FeaturesDict) else "images"
        name = f"Sequence of {below}" if type(feature) is tfds.Sequence else type(feature).__name__
        return "unreadable", nothing, (), "none", f"is a {name}, expected numbers, texts or an Image per step"
    dtype, shape = np.dtype(feature.np_dtype), tuple(feature.shape)
    encoding = str(getattr(getattr(feature, "_encoding", None), "value", "none"))
    kind = "number"
    if dtype.kind in "OSU":
        kind, dtype = "text", nothing
    if None in shape:
        kind = "rare"
        if in_step and encoding == "none" and shape.count(None) == 1:
            problem = f"has the shape {shape} in features.json, for which tensorflow_datasets stores no lengths"
            return "unreadable", dtype, shape, encoding, problem
        if isinstance(feature, BFloat16):
            return "unreadable", dtype, shape, encoding, f"is a bfloat16 tensor of the shape {shape}"
    return kind, dtype, shape, encoding, ""


def camera_problem(leaf: Leaf) -> str:
    """Why a feature cannot be a camera, as the predicate of a sentence; "" if it can.

    A camera is an Image of uint8 or uint16, of which the upper 8 bits are used, as TensorFlow's decoder does.
    """
    if leaf.problem:
        return leaf.problem
    if leaf.kind != "image":
        what = f"{leaf.dtype} of shape {leaf.shape}" if leaf.kind in ("number", "ragged", "rare") else "text"
        return f"is not an image: features.json has {what}; write the data set with tfds.features.Image"
    if leaf.dtype not in (np.uint8, np.uint16):
        return f"has the dtype {leaf.dtype} in features.json, expected uint8 or uint16: a depth image has a depth role"
    return ""


def camera_key(key: str, step_leaves: Mapping[str, Leaf]) -> str:
    """The full step key of a camera, which cards name below `observation/`."""
    return key if key in step_leaves or f"observation/{key}" not in step_leaves else f"observation/{key}"
