"""The table: procedural textures seen from above, and their view through a camera."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_PIXELS_PER_METRE = 360
_X = (-0.75, 1.25)  # metres that the texture covers
_Y = (-1.0, 1.0)

Style = Literal["oak", "walnut", "stone", "cloth"]


@dataclass(frozen=True)
class Table:
    """A table top, the plane z = 0 from `x` to `y` (metres), and the floor around it.

    Attributes:
        style: of its surface.
        x, y: from and to.
        floor: colour of everything around it.
    """

    style: Style
    x: tuple[float, float] = (-0.28, 0.72)
    y: tuple[float, float] = (-0.62, 0.62)
    floor: tuple[int, int, int] = (88, 92, 98)

    def seen_through(self, to_ground: NDArray[np.float64], size: tuple[int, int], *, smooth: bool) -> Image.Image:
        """The table in a camera's picture.

        Args:
            to_ground: (3, 3) homography from pixels to homogeneous (x, y) on the plane z = 0.
            size: width and height of the picture.
            smooth: take four samples a pixel.
        """
        to_texture = np.array([[1, 0, -_X[0]], [0, -1, _Y[1]], [0, 0, 1 / _PIXELS_PER_METRE]])  # homogeneous
        matrix = to_texture @ to_ground
        factor = 2 if smooth else 1
        matrix = matrix @ np.diag([1 / factor, 1 / factor, 1])
        picture = self._texture.transform(
            (size[0] * factor, size[1] * factor),
            Image.Transform.PERSPECTIVE,
            tuple((matrix / matrix[2, 2]).ravel()[:8]),
            Image.Resampling.BICUBIC if smooth else Image.Resampling.BILINEAR,
            fillcolor=self.floor,
        )
        return picture.reduce(factor) if smooth else picture

    @functools.cached_property
    def _texture(self) -> Image.Image:
        return _draw_texture(self)


@functools.cache
def _draw_texture(table: Table) -> Image.Image:
    """Seen from above: x to the right, y up."""
    rng = np.random.default_rng(sum(map(ord, table.style)))
    height, width = (int((b - a) * _PIXELS_PER_METRE) for a, b in (_Y, _X))
    x = np.linspace(*_X, width)[None, :]
    y = np.linspace(_Y[1], _Y[0], height)[:, None]
    surface = _surface(table.style, x, y, rng)
    falloff = 1.08 - 0.30 * ((x - 0.25) ** 2 + (y + 0.1) ** 2)  # the lamp above the middle
    surface = surface * falloff[..., None]
    inside = (x > table.x[0]) & (x < table.x[1]) & (y > table.y[0]) & (y < table.y[1])
    rim = 0.012
    edge = inside & ~((x > table.x[0] + rim) & (x < table.x[1] - rim) & (y > table.y[0] + rim) & (y < table.y[1] - rim))
    surface[np.broadcast_to(edge, inside.shape)] *= 0.72
    floor = np.array(table.floor) * (1 - 0.10 * _noise(rng, (height, width), 90))[..., None]
    return Image.fromarray(np.clip(np.where(inside[..., None], surface, floor), 0, 255).astype(np.uint8))


def _surface(
    style: Style, x: NDArray[np.float64], y: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    shape = (y.shape[0], x.shape[1])
    if style in ("oak", "walnut"):
        base = np.array([196, 158, 112] if style == "oak" else [126, 88, 62])
        plank = np.floor((y - _Y[0]) / 0.115).astype(int)
        tone = rng.normal(0, 0.045, plank.max() + 1)[plank]
        seam = abs((y - _Y[0]) / 0.115 - np.round((y - _Y[0]) / 0.115)) < 0.018
        grain = _noise(rng, shape, (4, 110)) * 0.10 + _noise(rng, shape, (2, 30)) * 0.05
        wood: NDArray[np.float64] = base * ((1 + tone + grain) * np.where(seam, 0.80, 1.0))[..., None]
        return wood
    if style == "stone":
        mottled = _noise(rng, shape, 40) * 0.05 + _noise(rng, shape, 6) * 0.03 + rng.normal(0, 0.012, shape)
        return np.array([205, 205, 202]) * (1 + mottled)[..., None]
    weave = 0.02 * (np.sin(x * 900) + np.sin(y * 900))
    return np.array([92, 116, 142]) * (1 + weave + _noise(rng, shape, 60) * 0.05)[..., None]


def _noise(rng: np.random.Generator, shape: tuple[int, int], cell: int | tuple[int, int]) -> NDArray[np.float64]:
    """Smooth noise of unit range; `cell` is the size of its features in pixels (down, across)."""
    down, across = (cell, cell) if isinstance(cell, int) else cell
    coarse = rng.uniform(-1, 1, (shape[0] // down + 2, shape[1] // across + 2)).astype(np.float32)
    picture = Image.fromarray(coarse).resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
    return np.array(picture, np.float64)
