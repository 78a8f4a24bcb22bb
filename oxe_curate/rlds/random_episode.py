"""One random episode for any RLDS structure: finite numbers, readable text, images, correct step flags."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tensorflow_datasets.core import features as tfds

from oxe_curate.arrays import Rng
from oxe_curate.errors import DataError
from oxe_curate.rlds.encode import EpisodeValues, encode_image

_INSTRUCTIONS = (
    "pick up the red block",
    "put the blue block in the drawer",
    "open the drawer",
    "close the drawer",
    "push the green block to the left",
    "place the cup on the plate",
)
_PICTURES = 4  # distinct images of each kind: encoding dominates the cost


def random_episode(
    features: tfds.FeaturesDict, rng: Rng, *, index: int = 0, num_steps: int | None = None
) -> EpisodeValues:
    """Return an episode that `flatten_episode(features, ...)` accepts.

    Values depend on the key: `is_first`, `is_last`, `is_terminal`, `reward` and `discount` are those
    of a finished demonstration; `terminate_episode` is one-hot or 0/1; gripper values are in [0, 1] (with
    "closedness" in [-1, 1]); quaternions have unit length; text and code points contain one instruction for
    the whole episode; other numbers vary smoothly within [-1, 1], or between the declared minimum and maximum.

    Args:
        features: the structure, from features.json.
        rng: the only source of randomness.
        index: number of the episode, for ids and file names.
        num_steps: steps of the episode; 5 to 9 if None.

    Raises:
        DataError: the structure contains a connector that RLDS data sets do not use (audio, video, ...).
    """
    steps = int(rng.integers(5, 10)) if num_steps is None else num_steps
    instruction = str(rng.choice(_INSTRUCTIONS))
    return {
        key: _sequence(feature.feature, key, steps, instruction, rng)
        if isinstance(feature, tfds.Dataset)
        else _metadata(feature, key, index, instruction, rng)
        for key, feature in sorted(features.items())
    }


def _metadata(feature: Any, key: str, index: int, instruction: str, rng: Rng) -> Any:
    if isinstance(feature, tfds.FeaturesDict):
        return {k: _metadata(f, k, index, instruction, rng) for k, f in sorted(feature.items())}
    if _is_text(feature) and not feature.shape and not _is_language(key):
        return f"synthetic/episode_{index:05d}"
    if key == "episode_id" and np.dtype(feature.np_dtype).kind in "iu":
        return index
    return _sequence(feature, key, 1, instruction, rng)[0]


def _sequence(feature: Any, key: str, steps: int, instruction: str, rng: Rng) -> Any:
    """`steps` values of one feature: an array with time first, a list, or a dict of such."""
    if isinstance(feature, tfds.FeaturesDict):
        return {k: _sequence(f, k, steps, instruction, rng) for k, f in sorted(feature.items())}
    if isinstance(feature, tfds.Sequence):
        lengths = [feature._length or int(rng.integers(0, 4)) for _ in range(steps)]
        rows = [_sequence(feature.feature, key, n, instruction, rng) for n in lengths]
        return _transpose(rows)
    if isinstance(feature, tfds.Image):
        pictures = _pictures(_fixed(feature.shape), np.dtype(feature.np_dtype).str, feature.encoding_format)
        start = int(rng.integers(len(pictures)))
        return [pictures[(start + t // 2) % len(pictures)] for t in range(steps)]
    if not isinstance(feature, (tfds.Tensor, tfds.ClassLabel)):  # Scalar and Text are subclasses of Tensor
        raise DataError(f"{key}: cannot make random values for {type(feature).__name__}")
    if _is_text(feature):
        text = np.full((steps, *_fixed(feature.shape)), instruction, dtype=object)
        return text.tolist()
    return _numbers(feature, key, steps, instruction, rng)


def _transpose(rows: list[Any]) -> Any:
    """Turn a list of dicts of columns into a dict of lists of columns, as `flatten_episode` expects."""
    if rows and isinstance(rows[0], dict):
        return {k: _transpose([row[k] for row in rows]) for k in rows[0]}
    return rows


def _numbers(feature: Any, key: str, steps: int, instruction: str, rng: Rng) -> NDArray[Any]:
    dtype = np.dtype(feature.np_dtype)
    shape = (steps, *_fixed(feature.shape))
    if key in _STEP_FLAGS:
        return np.broadcast_to(_STEP_FLAGS[key](steps).reshape(steps, *[1] * (len(shape) - 1)), shape).astype(dtype)
    if key == "terminate_episode":
        last = np.arange(steps) == steps - 1
        return (np.stack([last, ~last, np.zeros(steps, bool)], 1) if shape[1:] == (3,) else last).astype(dtype)
    if dtype.kind in "iu" and len(shape) == 2 and _is_language(key):
        points = np.zeros(shape[1:], dtype)
        points[: len(instruction)] = [ord(c) for c in instruction[: points.size]]
        return np.broadcast_to(points, shape).copy()
    if dtype.kind == "b":
        return np.full(shape, rng.random() < 0.8)
    if isinstance(feature, tfds.ClassLabel):
        return rng.integers(0, feature.num_classes or 1, shape).astype(dtype)
    low, high = _range(feature, key, dtype)
    if dtype.kind in "iu":
        return rng.integers(int(low), int(high), (steps, *[1] * (len(shape) - 1)), endpoint=True).astype(
            dtype
        ) + np.zeros(shape, dtype)
    values = _walk(shape, low, high, rng)
    if "quat" in key or "orientation_start" in key or ("pose" in key and shape[-1] == 7):
        values[..., -4:] /= np.linalg.norm(values[..., -4:], axis=-1, keepdims=True)
    return values.astype(dtype)


def _walk(shape: tuple[int, ...], low: float, high: float, rng: Rng) -> NDArray[np.float64]:
    """Sine of random phase and speed in each dimension, within [low, high]; large tensors repeat one row."""
    steps, *rest = shape
    width = int(np.prod(rest))
    distinct = min(width, 512)
    phase, speed = rng.uniform(0, 2 * np.pi, distinct), rng.uniform(0.2, 0.6, distinct)
    wave = np.sin(phase + speed * np.arange(steps)[:, None]) * 0.98
    columns = np.tile(wave, (1, -(-width // distinct)))[:, :width]
    return (low + (columns + 1) / 2 * (high - low)).reshape(shape)


def _range(feature: Any, key: str, dtype: np.dtype[Any]) -> tuple[float, float]:
    low, high = getattr(feature, "_minimum", None), getattr(feature, "_maximum", None)
    if isinstance(low, (int, float)) and isinstance(high, (int, float)):
        return low, high
    if "closedness" in key:
        return -1.0, 1.0
    return (0.0, 1.0) if "gripper" in key or dtype.kind in "iu" else (-1.0, 1.0)


_STEP_FLAGS: dict[str, Callable[[int], NDArray[Any]]] = {
    "is_first": lambda n: np.arange(n) == 0,
    "is_last": lambda n: np.arange(n) == n - 1,
    "is_terminal": lambda n: np.arange(n) == n - 1,
    "reward": lambda n: np.arange(n) == n - 1,
    "discount": lambda n: np.ones(n),
}


def _is_text(feature: Any) -> bool:
    return isinstance(feature, tfds.Tensor) and np.dtype(feature.np_dtype).kind in "OSU"


def _is_language(key: str) -> bool:
    return any(word in key for word in ("instruction", "language", "question", "task"))


def _fixed(shape: tuple[int | None, ...]) -> tuple[int, ...]:
    return tuple(3 if d is None else d for d in shape)


@functools.cache
def _pictures(shape: tuple[int, ...], dtype: str, encoding: str | None) -> tuple[bytes, ...]:
    """A few encoded images: a gradient with a moving square."""
    height, width, channels = shape
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    out = []
    for k in range(_PICTURES):
        picture = np.stack([x, y, (x + y) / 2, np.ones_like(x)][:channels], axis=-1) * 0.7
        left = 0.1 + 0.2 * k
        picture[(abs(y - 0.6) < 0.1) & (abs(x - left) < 0.1)] = 1.0
        pixels = picture if dtype.endswith("f4") else picture * np.iinfo(np.dtype(dtype)).max
        out.append(encode_image(pixels.astype(dtype), encoding))
    return tuple(out)
