"""A small renderer: convex solids with flat shading, soft shadows on a textured table, antialiased by supersampling.

Solids are painted from far to near (painter's algorithm), which is correct as long as they are small and convex. A
frame of 256 x 256 pixels takes about three milliseconds.

World frame: x points away from the robot, y to its left, z up, in metres; the table is the plane z = 0.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from oxe_curate.arrays import Floats
from oxe_curate.demo.table import Table

Color: TypeAlias = tuple[int, int, int]
_Polygon: TypeAlias = tuple[float, list[float], Color]
"""Distance, outline x0, y0, x1, y1, ... in pixels (two corners: the bounding box of a disc), colour."""

_LIGHT = np.array([-0.38, -0.42, 0.82])  # unit vector towards the light
_SUPERSAMPLE = 2
_NEAR = 0.02  # metres; solids that extend behind this plane are not drawn
_CORNERS = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
_BOX_FACES = np.array([[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]])
_RING = 12  # sides of a tube
_ANGLES = np.arange(_RING) * (2 * np.pi / _RING)
_RING_POINTS = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)
_TUBE_SIDES = np.array([[k, k + _RING, (k + 1) % _RING + _RING, (k + 1) % _RING] for k in range(_RING)])
_TUBE_ENDS = np.array([[i, i + k, i + k + 1, i + k + 2] for i in (0, _RING) for k in range(1, _RING - 1, 2)])
_SHADOW = [int(value * share) for share in (0.52, 0.53, 0.58) for value in range(256)]  # of red, green and blue


@dataclass(frozen=True)
class Viewpoint:
    """Pinhole camera.

    Attributes:
        eye, target: world positions; the camera looks from one to the other.
        fov: vertical field of view in degrees.
        size: width and height in pixels.
        up: world direction that is up in the image.
    """

    eye: tuple[float, float, float]
    target: tuple[float, float, float]
    fov: float
    size: tuple[int, int]
    up: tuple[float, float, float] = (0.0, 0.0, 1.0)

    @functools.cached_property
    def rotation(self) -> Floats:
        """(3, 3): rows are the world directions of the image's right, down and depth."""
        forward = _unit(np.subtract(self.target, self.eye))
        right = _unit(np.cross(forward, self.up))
        return np.stack([right, np.cross(forward, right), forward])

    @property
    def focal(self) -> float:
        """Focal length in pixels."""
        return self.size[1] / 2 / float(np.tan(np.radians(self.fov) / 2))

    def project(self, points: Floats) -> tuple[Floats, Floats]:
        """World points (..., 3) -> pixels (..., 2) and depth in metres (...,)."""
        local = (points - self.eye) @ self.rotation.T
        depth = local[..., 2]
        pixels = local[..., :2] / np.where(depth > _NEAR, depth, 1.0)[..., None] * self.focal
        return pixels + np.array(self.size) / 2, depth


class Solids:
    """Boxes, tubes and balls of one frame, in world coordinates.

    Attributes:
        parts: corners (n, 3), faces (m, 4) as indices of corners, and colour of each box and tube.
        balls: centre, radius and colour.
    """

    def __init__(self) -> None:
        self.parts: list[tuple[Floats, NDArray[np.int64], Color]] = []
        self.balls: list[tuple[Floats, float, Color]] = []

    def box(
        self, center: Sequence[float] | Floats, size: Sequence[float], color: Color, rotation: Floats | None = None
    ) -> None:
        """Add a cuboid; `rotation` (3, 3) turns its axes."""
        turn = np.eye(3) if rotation is None else rotation
        self.parts.append(((_CORNERS * np.asarray(size)) @ turn.T + np.asarray(center), _BOX_FACES, color))

    def tube(self, start: Floats, end: Floats, radius: float, color: Color, *, end_radius: float | None = None) -> None:
        """Add a round bar, tapered if `end_radius` differs from `radius`."""
        x, y, z = axis = _unit(end - start)
        u = _unit(np.array([0.0, z, -y] if abs(z) > 0.9 else [y, -x, 0.0]))  # perpendicular to the axis
        ring = _RING_POINTS[:, :1] * u + _RING_POINTS[:, 1:] * np.cross(axis, u)
        corners = np.concatenate([start + ring * radius, end + ring * (radius if end_radius is None else end_radius)])
        self.parts.append((corners, np.concatenate([_TUBE_SIDES, _TUBE_ENDS]), color))

    def ball(self, center: Floats, radius: float, color: Color) -> None:
        """Add a sphere."""
        self.balls.append((center, radius, color))

    @functools.cached_property
    def faces(self) -> tuple[Floats, Floats, Floats, Floats]:
        """Corners (n, 4, 3), outward normals, colours, and middles of their solids (n, 3), of all faces."""
        if not self.parts:
            return np.empty((0, 4, 3)), np.empty((0, 3)), np.empty((0, 3)), np.empty((0, 3))
        corners = np.concatenate([points[faces] for points, faces, _ in self.parts])
        counts = [len(faces) for _, faces, _ in self.parts]
        middles = np.repeat([points.mean(0) for points, _, _ in self.parts], counts, axis=0)
        colors = np.repeat(np.array([color for *_, color in self.parts], float), counts, axis=0)
        normals = _unit(np.cross(corners[:, 2] - corners[:, 0], corners[:, 3] - corners[:, 1]))
        inward = ((corners.mean(1) - middles) * normals).sum(1) < 0
        return corners, np.where(inward[:, None], -normals, normals), colors, middles


def _unit(vectors: Any) -> Floats:
    return np.asarray(vectors / np.sqrt((vectors * vectors).sum(-1, keepdims=True)), np.float64)


def render(camera: Viewpoint, solids: Solids, table: Table) -> Image.Image:
    """Draw one frame: solids and their shadows on a table. Returns an RGB image of the camera's size."""
    lit, dark = _table_views(camera, table)
    width, height = camera.size
    shadow = Image.new("L", (width // 2, height // 2))  # half the resolution, since it is blurred
    draw = ImageDraw.Draw(shadow)
    corners, normals, *_ = solids.faces
    corners = corners[normals @ _LIGHT > 0]
    pixels, depth = camera.project(corners - _LIGHT * (np.maximum(corners[..., 2:], 0) / _LIGHT[2]))
    for outline in (pixels[depth.min(1) > _NEAR] / 2).reshape(-1, 8).tolist():
        draw.polygon(outline, fill=255)
    soft = shadow.filter(ImageFilter.BoxBlur(height / 180)).resize(camera.size, Image.Resampling.BILINEAR)
    large = (width * _SUPERSAMPLE, height * _SUPERSAMPLE)
    canvas = Image.composite(dark, lit, soft).resize(large, Image.Resampling.NEAREST)
    paint(canvas, camera, solids)
    return canvas.reduce(_SUPERSAMPLE)


def paint(canvas: Image.Image, camera: Viewpoint, solids: Solids) -> None:
    """Paint solids over a canvas that may be larger than the camera's image by a whole factor."""
    scale = canvas.size[0] // camera.size[0]
    draw = ImageDraw.Draw(canvas)
    polygons = [*_polygons(camera, solids, scale), *_discs(camera, solids, scale)]
    for _, outline, color in sorted(polygons, key=lambda polygon: -polygon[0]):
        (draw.ellipse if len(outline) == 4 else draw.polygon)(outline, fill=color)


def _polygons(camera: Viewpoint, solids: Solids, scale: int) -> Iterator[_Polygon]:
    """The faces that the camera sees. All faces of a solid have the distance of its middle."""
    corners, normals, colors, middles = solids.faces
    views = _unit(camera.eye - corners.mean(1))
    pixels, depth = camera.project(corners)
    seen = ((normals * views).sum(1) > 0) & (depth.min(1) > _NEAR)
    normals, views = normals[seen], views[seen]
    highlight = np.maximum((normals * _unit(views + _LIGHT)).sum(1), 0) ** 24
    light = 0.41 + 0.11 * normals[:, 2] + 0.62 * np.maximum(normals @ _LIGHT, 0)  # ambient and diffuse
    shaded = np.minimum(colors[seen] * light[:, None] + 77 * highlight[:, None], 255).astype(int)
    distances = np.linalg.norm(middles[seen] - camera.eye, axis=1).tolist()
    outlines = (pixels[seen] * scale).reshape(-1, 8).tolist()
    yield from zip(distances, outlines, map(tuple, shaded.tolist()), strict=True)


def _discs(camera: Viewpoint, solids: Solids, scale: int) -> Iterator[_Polygon]:
    """A ball is a stack of discs that become lighter and move towards the light."""
    toward = (camera.rotation @ _LIGHT)[:2]
    for center, radius, color in solids.balls:
        pixel, depth = camera.project(center)
        if depth - radius < _NEAR:
            continue
        size = radius * camera.focal / float(depth) * scale
        distance = float(np.linalg.norm(center - camera.eye))
        for k in range(5):
            reach = size * (1 - 0.19 * k)
            x, y = pixel * scale + toward * size * 0.16 * k
            yield distance, [x - reach, y - reach, x + reach, y + reach], tint(color, 0.46 + 0.14 * k)


def tint(color: Color, factor: float) -> Color:
    """A lighter or darker colour."""
    r, g, b = (min(255, int(c * factor)) for c in color)
    return r, g, b


@functools.lru_cache(maxsize=32)
def _table_views(camera: Viewpoint, table: Table) -> tuple[Image.Image, Image.Image]:
    """The empty table as the camera sees it, lit and in shadow. Most cameras do not move, so it is cached."""
    to_world = np.linalg.inv(
        np.column_stack([camera.rotation[:, 0], camera.rotation[:, 1], -camera.rotation @ np.asarray(camera.eye)])
    )
    width, height = camera.size
    intrinsics = np.array([[camera.focal, 0, width / 2], [0, camera.focal, height / 2], [0, 0, 1]])
    lit = table.seen_through(to_world @ np.linalg.inv(intrinsics), camera.size)
    return lit, lit.point(_SHADOW)
