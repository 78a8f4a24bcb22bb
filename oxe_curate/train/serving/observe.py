"""What a camera and a robot give, brought into the shape that a model was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from oxe_curate.actions.bounds import Bounds
from oxe_curate.errors import ConfigError, did_you_mean
from oxe_curate.train.data.assemble import resize
from oxe_curate.train.data.augment import crop_middle
from oxe_curate.train.data.rows import normalize_proprio


def as_images(images: Any, cameras: Sequence[str], size: int, center_crop: bool) -> NDArray[np.uint8]:
    """Bring what the caller has into uint8 (C, S, S, 3), RGB, in the model's order of cameras.

    Args:
        images: one picture, a sequence of them in the order of `cameras`, or a mapping of role to picture. A picture
            is a PIL image or an array (H, W, 3) of uint8, RGB.
        cameras: the model's roles.
        size: S.
        center_crop: cut out the middle of each picture, as for a model trained with random crops.

    Raises:
        ConfigError: another number of pictures, an unknown or missing role, an array of another type or shape.
    """
    named = _by_role(images, cameras)
    resized = np.stack([resize(_picture(named[role], role), size) for role in cameras])  # as the loader does
    return crop_middle(resized) if center_crop else resized


def as_proprio(proprio: ArrayLike | None, bounds: Bounds, width: int) -> NDArray[np.float32] | None:
    """Normalise a robot's state as the loader does, and pad it with zeros to the model's width.

    Args:
        proprio: (P,) in the data set's units; None for a data set without.
        bounds: of the data set.
        width: of the model's state, 0 for a model without.

    Returns:
        float32 (width,), None for a model without.

    Raises:
        ConfigError: given where model or data set has none, missing where both have it, of another length, not finite.
    """
    known = bounds.proprio
    if width == 0 or known is None:
        if proprio is not None:
            who = "this model was trained without the robot's state" if width == 0 else "this data set has no state"
            raise ConfigError(f"proprio: {who}; leave it out")
        return np.zeros(width, np.float32) if width else None
    if proprio is None:
        raise ConfigError(f"proprio: this model was trained with the robot's state: {known.width} numbers are needed")
    try:
        state = np.asarray(proprio, np.float32)
    except (TypeError, ValueError):
        raise ConfigError("proprio: expected a list of numbers") from None
    if state.shape != (known.width,) or not np.isfinite(state).all():
        raise ConfigError(f"proprio: expected {known.width} finite numbers, found the shape {state.shape}")
    return normalize_proprio(state, known, width)


def _by_role(images: Any, cameras: Sequence[str]) -> dict[str, Any]:
    if isinstance(images, Mapping):
        for role in images:
            if role not in cameras:
                raise ConfigError(f"image: this model has no {role!r} camera. {did_you_mean(str(role), cameras)}")
        missing = [role for role in cameras if role not in images]
        if missing:
            raise ConfigError(f"image: the {' and the '.join(missing)} camera is missing; wanted: {', '.join(cameras)}")
        return dict(images)
    if isinstance(images, list | tuple) and images and isinstance(images[0], list | tuple):
        images = _array(images, "list of lists")
    if isinstance(images, Image.Image) or (isinstance(images, np.ndarray) and images.ndim == 3):
        images = [images]
    if not isinstance(images, Sequence | np.ndarray) or isinstance(images, str | bytes):
        hint = " (over HTTP: an array as json-numpy writes it, or nested lists)" if isinstance(images, str) else ""
        raise ConfigError(
            f"image: expected a picture, one for each camera, or camera -> picture; found {type(images).__name__}{hint}"
        )
    if len(images) != len(cameras):
        raise ConfigError(
            f"image: this model looks through {len(cameras)} camera{'s' * (len(cameras) > 1)} ({', '.join(cameras)}), "
            f"found {len(images)} picture{'s' * (len(images) != 1)}"
        )
    return dict(zip(cameras, images, strict=True))


def _picture(image: Any, role: str) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    array = _array(image, role)
    if array.ndim != 3 or array.shape[-1] != 3 or 0 in array.shape:
        raise ConfigError(f"image: {role}: expected a picture (height, width, 3), RGB; found the shape {array.shape}")
    whole = array.dtype.kind in "iu" and array.min() >= 0 and array.max() <= 255  # a JSON list of lists: int64
    if whole:
        return Image.fromarray(np.ascontiguousarray(array, np.uint8))
    raise ConfigError(f"image: {role}: expected uint8, 0 to 255; found {array.dtype}")


def _array(image: Any, what: str) -> NDArray[Any]:
    try:
        return np.asarray(image)
    except ValueError:  # lists of different lengths
        raise ConfigError(f"image: {what}: expected a picture (height, width, 3), RGB") from None
