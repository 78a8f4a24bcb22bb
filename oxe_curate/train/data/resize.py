"""Resize batches to a model's size on their device, by the filters that released models were trained with.

Both filters are separable and antialiased: one matrix for the rows of an image, and one for its columns.

- bicubic: Pillow's `BICUBIC`, as in the processor of the released checkpoints. Pillow rounds to 8 bits between its
  horizontal and its vertical pass, and so do we: the result equals Pillow's in every byte.
- lanczos3: `tf.image.resize(method="lanczos3", antialias=True)`, then rounded, as in OpenVLA's training data.
  TensorFlow does not round in between, which matters where the filter overshoots, at edges of black and white.

The weights are integers of 22 bits, as in Pillow, split into two parts of at most 12 bits. Products with 8-bit pixels
and their sums are then exact in float32, and even in TF32: no device, setting or order of additions changes a result.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from oxe_curate.index.resample import lanczos3
from oxe_curate.train.settings import ResizeFilter

_BITS, _LOW = 22, 12
"""Bits of a weight after the binary point, and how many of them are in its lower part."""
_FRACTION = 11
"""Bits after the binary point that remain between the passes where values are not rounded to integers."""
_TALL = 100
"""Pillow begins with the vertical pass if an image that is to become lower is that many times as tall as wide."""
_MEMORY = 128 << 20
"""Bytes of pixels as floats at once."""


def resize_matrix(source: int, target: int, resize: ResizeFilter) -> NDArray[np.float64]:
    """The weights that resize a line of `source` pixels to `target` pixels.

    Pixel i of the result is centred at (i + 0.5) * source / target. The filter is stretched by source / target if that
    is above 1, cut off at the ends of the line, and normalized.

    Args:
        source: pixels, at least 1.
        target: pixels, at least 1.
        resize: "bicubic" (a = -0.5, two pixels to each side) or "lanczos3" (three pixels).

    Returns:
        (target, source); rows add up to 1.
    """
    if resize == "lanczos3":
        return lanczos3(source, target)
    step = source / target
    x = np.abs(np.arange(source) + 0.5 - (np.arange(target)[:, None] + 0.5) * step) / max(step, 1.0)
    weights = np.where(x < 1, (1.5 * x - 2.5) * x**2 + 1, np.where(x < 2, ((2.5 - 0.5 * x) * x - 4) * x + 2, 0.0))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def resize_images(images: torch.Tensor, size: int, resize: ResizeFilter, rounded: bool | None = None) -> torch.Tensor:
    """Resize a batch of images of one size, ignoring the aspect ratio.

    Args:
        images: uint8 (n, H, W, 3), on any device.
        size: S.
        resize: the filter.
        rounded: round to 8 bits between the passes, as Pillow does; None: as the filter's reference does.

    Returns:
        uint8 (n, S, S, 3) on the same device; the images themselves if they have that size.
    """
    n, height, width, _ = images.shape
    if height == width == size or n == 0:
        return images if n else images.new_empty((0, size, size, 3))
    rounded = resize == "bicubic" if rounded is None else rounded
    if rounded and height > _TALL * width and size < height:
        return resize_images(images.transpose(1, 2), size, resize, True).transpose(1, 2)
    at_once = max(1, _MEMORY // (12 * width * height))
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        split = images.device.type != "cpu"  # which has fast float64
        parts = [_resize(part, size, resize, rounded, split) for part in images.split(at_once)]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).permute(0, 2, 3, 1)


def _resize(images: torch.Tensor, size: int, resize: ResizeFilter, rounded: bool, split: bool) -> torch.Tensor:
    """uint8 (n, H, W, 3) -> uint8 (n, 3, S, S), in float64, or in float32 with the weights split in two parts."""
    _, height, width, _ = images.shape
    dtype = torch.float32 if split else torch.float64
    x = images.permute(0, 3, 1, 2).to(dtype, memory_format=torch.contiguous_format)
    if width != size:
        across = _weights(width, size, resize, split, images.device).T
        sums = torch.matmul(x, across).unflatten(-1, (-1, size)).unbind(-2)
        x = _to_bytes(sums) if rounded or height == size else _to_values(sums)
    if height != size:
        down = _weights(height, size, resize, split, images.device)

        def product(y: torch.Tensor) -> tuple[torch.Tensor, ...]:
            sums: tuple[torch.Tensor, ...] = torch.matmul(down, y).unflatten(-2, (-1, size)).unbind(-3)
            return sums

        if rounded or width == size:
            x = _to_bytes(product(x))
        else:  # the fraction is multiplied as an integer of its own, so that the products stay exact
            whole = x.floor()
            fraction = (x - whole).mul_(1 << _FRACTION).round_()
            x = _to_values(product(whole)).add_(_to_values(product(fraction)), alpha=2.0**-_FRACTION)
            x = x.add_(0.5).floor_().clamp_(0, 255)
    return x.to(torch.uint8)


@lru_cache(maxsize=64)
def _weights(source: int, target: int, resize: ResizeFilter, split: bool, device: torch.device) -> torch.Tensor:
    """`_integers` on a device; the copy to a GPU waits for nothing."""
    weights = torch.from_numpy(_integers(source, target, resize, split))
    return weights.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else weights.to(device)


@lru_cache(maxsize=512)
def _integers(source: int, target: int, resize: ResizeFilter, split: bool) -> NDArray[Any]:
    """The matrix in units of 2**-22, float64 (target, source); or split, float32 (2 * target, source): the upper parts
    in units of 2**-10, then the lower parts in units of 2**-22, all integers up to 2**11.
    """
    whole = np.rint(resize_matrix(source, target, resize) * (1 << _BITS))
    if not split:
        return whole
    upper = np.rint(whole / (1 << _LOW))
    return np.concatenate([upper, whole - upper * (1 << _LOW)]).astype(np.float32)


def _to_bytes(sums: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Sums by `_integers` -> integers from 0 to 255, as Pillow rounds; exact."""
    if len(sums) == 1:
        return sums[0].add_(1 << _BITS - 1).mul_(2.0**-_BITS).floor_().clamp_(0, 255)
    upper, lower = sums
    carried = torch.floor(lower * 2.0**-_LOW)
    return carried.add_(upper).add_(1 << _BITS - _LOW - 1).mul_(2.0 ** (_LOW - _BITS)).floor_().clamp_(0, 255)


def _to_values(sums: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Sums by `_integers` -> values, rounded once."""
    if len(sums) == 1:
        return sums[0].mul_(2.0**-_BITS)
    upper, lower = sums
    return (upper * 2.0 ** (_LOW - _BITS)).add_(lower, alpha=2.0**-_BITS)
