"""The table: procedural textures, and their view through a camera."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from oxe_curate.arrays import Floats

_PIXELS_PER_METRE = 360
_X = (-0.75, 1.25)  # metres that the texture covers
_Y = (-1.0, 1.0)
_RIM = 0.012  # metres

_Style = Literal["oak", "walnut", "stone", "cloth"]


@dataclass(frozen=True)
class Table:
    """A table top, the plane z = 0 from `x` to `y` (metres), and the colour of the floor around it."""

    style: _Style
    x: tuple[float, float] = (-0.28, 0.72)
    y: tuple[float, float] = (-0.62, 0.62)
    floor: tuple[int, int, int] = (88, 92, 98)

    def seen_through(self, to_ground: Floats, size: tuple[int, int]) -> Image.Image:
        """The table in a camera's image.

        Args:
            to_ground: (3, 3) homography from pixels to homogeneous (x, y) on the plane z = 0.
            size: width and height of the image.
        """
        to_texture = np.array([[1, 0, -_X[0]], [0, -1, _Y[1]], [0, 0, 1 / _PIXELS_PER_METRE]])  # homogeneous
        matrix = to_texture @ to_ground @ np.diag([0.5, 0.5, 1])  # four samples per pixel
        image = _texture(self).transform(
            (size[0] * 2, size[1] * 2), Image.Transform.PERSPECTIVE, tuple((matrix / matrix[2, 2]).ravel()[:8]),
            Image.Resampling.BILINEAR, fillcolor=self.floor,
        )  # fmt: skip
        return image.reduce(2)


@functools.cache
def _texture(table: Table) -> Image.Image:
    """The table and the floor from above: x to the right, y up."""
    rng = np.random.default_rng(sum(map(ord, table.style)))
    height, width = (int((b - a) * _PIXELS_PER_METRE) for a, b in (_Y, _X))
    x = np.linspace(*_X, width)[None, :]
    y = np.linspace(_Y[1], _Y[0], height)[:, None]
    lamp = 1.08 - 0.30 * ((x - 0.25) ** 2 + (y + 0.1) ** 2)  # above the middle
    surface = _surface(table.style, x, y, rng) * lamp[..., None]
    inner, inside = (
        (x > table.x[0] + rim) & (x < table.x[1] - rim) & (y > table.y[0] + rim) & (y < table.y[1] - rim)
        for rim in (_RIM, 0.0)
    )
    surface[inside & ~inner] *= 0.72
    floor = np.array(table.floor) * (1 - 0.10 * _noise(rng, (height, width), 90, 90))[..., None]
    return Image.fromarray(np.clip(np.where(inside[..., None], surface, floor), 0, 255).astype(np.uint8))


def _surface(style: _Style, x: Floats, y: Floats, rng: np.random.Generator) -> Floats:
    shape = (y.shape[0], x.shape[1])
    if style == "stone":
        shade = _noise(rng, shape, 40, 40) * 0.05 + _noise(rng, shape, 6, 6) * 0.03 + rng.normal(0, 0.012, shape)
    elif style == "cloth":
        shade = 0.02 * (np.sin(x * 900) + np.sin(y * 900)) + _noise(rng, shape, 60, 60) * 0.05
    else:
        place = (y - _Y[0]) / 0.115  # in planks
        tone = rng.normal(0, 0.045, int(place.max()) + 1)[place.astype(int)]
        grain = _noise(rng, shape, 4, 110) * 0.10 + _noise(rng, shape, 2, 30) * 0.05
        shade = (1 + tone + grain) * np.where(abs(place - np.round(place)) < 0.018, 0.80, 1.0) - 1
    color = {"oak": (196, 158, 112), "walnut": (126, 88, 62), "stone": (205, 205, 202), "cloth": (92, 116, 142)}[style]
    return np.asarray(np.array(color) * (1 + shade)[..., None], np.float64)


def _noise(rng: np.random.Generator, shape: tuple[int, int], down: int, across: int) -> Floats:
    """Smooth noise between -1 and 1; its features are `down` x `across` pixels."""
    coarse = rng.uniform(-1, 1, (shape[0] // down + 2, shape[1] // across + 2)).astype(np.float32)
    return np.array(Image.fromarray(coarse).resize((shape[1], shape[0]), Image.Resampling.BICUBIC), np.float64)
