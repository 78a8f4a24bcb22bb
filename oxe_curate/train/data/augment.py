"""OpenVLA's image augmentation for a whole batch at once, on the device of the images.

In this order, each clipped to [0, 1]: a random square crop of 0.9 of the area, resized back bilinearly; brightness
+-0.2; contrast x0.8 to 1.2 about each channel's mean; saturation x0.8 to 1.2 and hue +-0.05 of a turn in HSV. The
definitions are TensorFlow's (`tf.image.crop_and_resize`, `adjust_brightness`, `adjust_contrast`, `adjust_saturation`,
`adjust_hue`), the values those of OpenVLA's training data (prismatic/vla/datasets/datasets.py). The random numbers come
from `Rows.random`, so a resumed run augments like an uninterrupted one.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

_AREA = 0.9
_BRIGHTNESS = 0.2
_CONTRAST = (0.8, 1.2)
_SATURATION = (0.8, 1.2)
_HUE = 0.05


def augment(images: torch.Tensor, random: torch.Tensor) -> torch.Tensor:
    """Augment images, each with its own random numbers.

    Args:
        images: uint8 (n, S, S, 3).
        random: float32 (n, k), k >= 6, in [0, 1): vertical and horizontal position of the crop, brightness, contrast,
            saturation, hue. Images of one sample (cameras, a window) share a row.

    Returns:
        float32 (n, 3, S, S) in [0, 1].
    """
    x = unit(images)
    side = _AREA**0.5
    x = crop_and_resize(x, random[:, 0] * (1 - side), random[:, 1] * (1 - side), side)
    x = adjust_brightness(x, (random[:, 2] * 2 - 1) * _BRIGHTNESS).clamp_(0, 1)
    x = adjust_contrast(x, _between(_CONTRAST, random[:, 3])).clamp_(0, 1)
    return adjust_color(x, _between(_SATURATION, random[:, 4]), (random[:, 5] * 2 - 1) * _HUE)


def center_crop(images: torch.Tensor, area: float = _AREA) -> torch.Tensor:
    """The center crop of `area` of the image, resized back: the input of models trained with `augment`.

    Args:
        images: uint8 (n, S, S, 3).
        area: share of the image.

    Returns:
        float32 (n, 3, S, S) in [0, 1].
    """
    x = unit(images)
    side = area**0.5
    start = x.new_full((len(x),), (1 - side) / 2)
    return crop_and_resize(x, start, start, side).clamp_(0, 1)


def crop_middle(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Center-crop images by `_AREA` and resize them back, rounded to uint8 as in OpenVLA's evaluation.

    Args:
        images: uint8 (..., S, S, 3).

    Returns:
        uint8 of the same shape: `floor(255.5 * x)` of `center_crop`'s x, the rule of TensorFlow's convert_image_dtype.
    """
    size = images.shape[-2]
    cut = cut_middle(torch.from_numpy(np.ascontiguousarray(images)).view(-1, size, size, 3))
    return np.asarray(cut.numpy()).reshape(images.shape)


def cut_middle(images: torch.Tensor) -> torch.Tensor:
    """`crop_middle` of a tensor, uint8 (n, S, S, 3), on its device."""
    return (center_crop(images) * 255.5).clamp_(max=255).to(torch.uint8).permute(0, 2, 3, 1)


def unit(images: torch.Tensor) -> torch.Tensor:
    """uint8 (n, H, W, 3) -> float32 (n, 3, H, W) in [0, 1]."""
    return images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).mul_(1 / 255)


def crop_and_resize(x: torch.Tensor, top: torch.Tensor, left: torch.Tensor, side: float) -> torch.Tensor:
    """Square crops resized bilinearly to the image's size, by TensorFlow's rule.

    Output pixel i of S samples the input at `top * (S - 1) + i * side`: corners map to corners, without antialiasing.

    Args:
        x: float32 (n, 3, S, S).
        top: float32 (n,), top of the crop, as a share of the image.
        left: float32 (n,), left of the crop, as a share of the image.
        side: of the crop, as a share of the image.
    """
    size = x.shape[-1]
    # grid_sample(align_corners=True) reads at (g + 1) / 2 * (S - 1)
    ramp = torch.linspace(0, side, size, device=x.device, dtype=x.dtype)
    rows = (top[:, None] + ramp) * 2 - 1
    columns = (left[:, None] + ramp) * 2 - 1
    grid = torch.stack((columns[:, None, :].expand(-1, size, -1), rows[:, :, None].expand(-1, -1, size)), dim=-1)
    return torch.nn.functional.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=True)


def adjust_brightness(x: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """Add delta (n,) to every channel of x (n, 3, H, W)."""
    return x + delta[:, None, None, None]


def adjust_contrast(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Scale each channel of x (n, 3, H, W) about its own mean by factor (n,)."""
    mean = x.mean(dim=(2, 3), keepdim=True)
    return torch.lerp(mean, x, factor[:, None, None, None])


def adjust_color(x: torch.Tensor, saturation: torch.Tensor, hue: torch.Tensor) -> torch.Tensor:
    """Scale the saturation and clip it to 1, then rotate the hue, in HSV; returns RGB.

    One conversion is enough: TensorFlow's conversion to RGB and back in between changes neither.

    Args:
        x: float32 (n, 3, H, W) in [0, 1].
        saturation: float32 (n,), factors.
        hue: float32 (n,), in turns.
    """
    value, _ = x.max(dim=1)
    chroma = value - x.min(dim=1).values
    red, green, blue = x.unbind(1)
    safe = torch.where(chroma > 0, chroma, 1)
    # in sixths of a turn; of equal channels the first of red, green, blue decides
    angle = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    angle = angle + hue[:, None, None] * 6
    # the chroma is V * S, so scaling S clipped at 1 is scaling the chroma clipped at V
    chroma = torch.minimum(chroma * saturation[:, None, None], value)
    turn = torch.tensor([5.0, 3.0, 1.0], device=x.device)[:, None, None]
    k = torch.remainder(turn + angle[:, None], 6)
    wave = torch.minimum(k, 4 - k).clamp_(0, 1)
    return torch.addcmul(value[:, None], chroma[:, None], wave, value=-1).clamp_(0, 1)


def _between(bounds: tuple[float, float], share: torch.Tensor) -> torch.Tensor:
    return bounds[0] + (bounds[1] - bounds[0]) * share
