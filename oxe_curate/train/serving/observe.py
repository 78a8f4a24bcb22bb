"""Convert the observations of a robot into the input of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from oxe_curate.actions.bounds import Bounds
from oxe_curate.errors import ConfigError, did_you_mean
from oxe_curate.index.images import to_rgb
from oxe_curate.train.data.assemble import resize_image
from oxe_curate.train.data.augment import crop_middle
from oxe_curate.train.data.rows import normalize_proprio
from oxe_curate.train.settings import ResizeFilter


def as_images(
    images: Any, cameras: Sequence[str], size: int, center_crop: bool, resize: ResizeFilter = "bicubic"
) -> NDArray[np.uint8]:
    """Convert images into uint8 (C, S, S, 3), RGB, in the model's order of cameras.

    Args:
        images: one image, a sequence of images in the order of `cameras`, or a mapping of role to image. An image is a
            PIL image or an array (H, W, 3) of uint8, RGB.
        cameras: the model's roles.
        size: S.
        center_crop: crop the center of each image, as for a model trained with random crops.
        resize: the filter of the training.

    Raises:
        ConfigError: another number of images, an unknown or missing role, an array of another type or shape.
    """
    named = _by_role(images, cameras)
    # as in training, byte for byte
    resized = np.stack([resize_image(_image(named[role], role), size, resize) for role in cameras])
    return crop_middle(resized) if center_crop else resized


def as_proprio(proprio: ArrayLike | None, bounds: Bounds, width: int) -> NDArray[np.float32] | None:
    """Normalize a robot state as the loader does, and pad it with zeros to the model's width.

    Args:
        proprio: (P,) in the data set's units; None for a data set without it.
        bounds: of the data set.
        width: of the model's proprio, 0 for a model without it.

    Returns:
        float32 (width,), None for a model without proprio.

    Raises:
        ConfigError: given but the model or data set has none; missing but both have it; another length; not finite.
    """
    known = bounds.proprio
    if width == 0 or known is None:
        if proprio is not None:
            which = "this model was trained without proprio" if width == 0 else "this data set has no proprio"
            raise ConfigError(f"proprio: {which}; leave it out")
        return np.zeros(width, np.float32) if width else None
    if proprio is None:
        raise ConfigError(f"proprio: expected {known.width} numbers; this model was trained with the robot state")
    try:
        state = np.asarray(proprio, np.float32)
    except (TypeError, ValueError):
        raise ConfigError("proprio: expected a list of numbers") from None
    if state.shape != (known.width,) or not np.isfinite(state).all():
        raise ConfigError(f"proprio: expected {known.width} finite numbers, got shape {state.shape}")
    return normalize_proprio(state, known, width)


def _by_role(images: Any, cameras: Sequence[str]) -> dict[str, Any]:
    if isinstance(images, Mapping):
        for role in images:
            if role not in cameras:
                raise ConfigError(f"image: unknown camera {role!r}. {did_you_mean(str(role), cameras)}")
        missing = [role for role in cameras if role not in images]
        if missing:
            raise ConfigError(f"image: missing {', '.join(missing)}; expected the cameras {', '.join(cameras)}")
        return dict(images)
    if isinstance(images, list | tuple) and images and isinstance(images[0], list | tuple):
        images = _array(images, "list of lists")
    if isinstance(images, Image.Image) or (isinstance(images, np.ndarray) and images.ndim == 3):
        images = [images]
    if not isinstance(images, Sequence | np.ndarray) or isinstance(images, str | bytes):
        hint = " (over HTTP: an array in the json-numpy format, or nested lists)" if isinstance(images, str) else ""
        raise ConfigError(
            f"image: expected an image, a list of images, or camera -> image; got {type(images).__name__}{hint}"
        )
    if len(images) != len(cameras):
        raise ConfigError(
            f"image: expected {len(cameras)} image{'s' * (len(cameras) > 1)} ({', '.join(cameras)}), got {len(images)}"
        )
    return dict(zip(cameras, images, strict=True))


def _image(image: Any, role: str) -> Image.Image:
    if isinstance(image, Image.Image):
        try:
            return to_rgb(image)
        except ValueError as error:
            raise ConfigError(f"image: {role}: {error}") from None
    array = _array(image, role)
    if array.ndim != 3 or array.shape[-1] != 3 or 0 in array.shape:
        raise ConfigError(f"image: {role}: expected an RGB image (height, width, 3), got shape {array.shape}")
    whole = array.dtype.kind in "iu" and array.min() >= 0 and array.max() <= 255  # a JSON list of lists: int64
    if whole:
        return Image.fromarray(np.ascontiguousarray(array, np.uint8))
    raise ConfigError(f"image: {role}: expected uint8 values from 0 to 255, got {array.dtype}")


def _array(image: Any, what: str) -> NDArray[Any]:
    try:
        return np.asarray(image)
    except ValueError:  # lists of different lengths
        raise ConfigError(f"image: {what}: expected an RGB image (height, width, 3)") from None
