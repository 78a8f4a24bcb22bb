"""A small renderer: convex solids with flat shading, soft shadows on a textured table, antialiased by supersampling.

Solids are painted from far to near (painter's algorithm), which is right as long as they are small and convex. A frame
of 256 x 256 pixels takes about two milliseconds.

World frame: x away from the robot, y to its left, z up, in metres; the table is the plane z = 0.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from oxe_curate.demo.table import Table

Vector: TypeAlias = NDArray[np.float64]
Color: TypeAlias = tuple[int, int, int]
Polygon: TypeAlias = tuple[float, list[float], Color]
"""Distance, outline x0, y0, x1, y1, ... in pixels (two corners: the bounding box of a disc), colour."""

LIGHT = np.array([-0.38, -0.42, 0.82])
"""Unit vector towards the light."""

_SUPERSAMPLE = 2
_NEAR = 0.02  # metres; solids that reach behind this plane are not drawn
_RING = 12  # sides of a tube
_CORNERS = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
_BOX_FACES = np.array([[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]])
_BOX_NORMALS = np.array([[-1, 0, 0], [1, 0, 0], [0, -1, 0], [0, 1, 0], [0, 0, -1], [0, 0, 1]], float)
_ANGLES = np.arange(_RING) * (2 * np.pi / _RING)
_RING_POINTS = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)
_SIDE_NORMALS = np.stack([np.cos(_ANGLES + np.pi / _RING), np.sin(_ANGLES + np.pi / _RING)], axis=1)
_TUBE_FACES = np.array(
    [[k, k + _RING, (k + 1) % _RING + _RING, (k + 1) % _RING] for k in range(_RING)]
    + [[first, first + k, first + k + 1, first + k + 2] for first in (0, _RING) for k in range(1, _RING - 1, 2)]
)  # the sides, then each end cut into quadrilaterals
_SPECULAR = 0.30
_SHADOW = [int(value * share) for share in (0.52, 0.53, 0.58) for value in range(256)]  # of red, green and blue


@dataclass(frozen=True)
class Viewpoint:
    """Pinhole camera.

    Attributes:
        eye, target: world positions; the camera looks from one to the other.
        fov: vertical field of view in degrees.
        size: width and height in pixels.
        up: what is up in the picture.
    """

    eye: tuple[float, float, float]
    target: tuple[float, float, float]
    fov: float
    size: tuple[int, int]
    up: tuple[float, float, float] = (0.0, 0.0, 1.0)

    @functools.cached_property
    def rotation(self) -> Vector:
        """(3, 3): rows are the world directions of the picture's right, down and depth."""
        forward = np.subtract(self.target, self.eye)
        forward = forward / np.linalg.norm(forward)
        right = np.cross(forward, self.up)
        right = right / np.linalg.norm(right)
        return np.stack([right, np.cross(forward, right), forward])

    @property
    def focal(self) -> float:
        """Focal length in pixels."""
        return self.size[1] / 2 / float(np.tan(np.radians(self.fov) / 2))

    def project(self, points: Vector) -> tuple[Vector, Vector]:
        """World points (..., 3) -> pixels (..., 2) and depth in metres (...,)."""
        local = (points - self.eye) @ self.rotation.T
        depth = local[..., 2]
        pixels = local[..., :2] / np.where(depth > _NEAR, depth, 1.0)[..., None] * self.focal
        return pixels + np.array(self.size) / 2, depth


@dataclass
class Solids:
    """Boxes, tubes and balls of one frame, in world coordinates."""

    boxes: list[tuple[Vector, Vector, Color]] = field(default_factory=list)  # corners (8, 3), rotation, colour
    tubes: list[tuple[Vector, Vector, float, float, Color, bool]] = field(default_factory=list)
    balls: list[tuple[Vector, float, Color]] = field(default_factory=list)

    def box(
        self, center: Sequence[float] | Vector, size: Sequence[float], color: Color, rotation: Vector | None = None
    ) -> None:
        """Add a cuboid; `rotation` (3, 3) turns its axes."""
        turn = np.eye(3) if rotation is None else rotation
        self.boxes.append(((_CORNERS * np.asarray(size)) @ turn.T + np.asarray(center), turn, color))

    def tube(
        self,
        start: Vector,
        end: Vector,
        radius: float,
        color: Color,
        *,
        end_radius: float | None = None,
        ends: bool = True,
    ) -> None:
        """Add a round bar, tapered if `end_radius` differs; `ends` is false where other solids hide its ends."""
        self.tubes.append((start, end, radius, radius if end_radius is None else end_radius, color, ends))

    def ball(self, center: Vector, radius: float, color: Color) -> None:
        """Add a sphere."""
        self.balls.append((center, radius, color))

    @functools.cached_property
    def faces(self) -> Faces:
        """The four-cornered faces of all boxes and tubes."""
        parts = [make() for made, make in ((self.boxes, self._box_faces), (self.tubes, self._tube_faces)) if made]
        return Faces(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def _box_faces(self) -> tuple[NDArray[Any], ...]:
        corners = np.array([b[0] for b in self.boxes])
        normals = _BOX_NORMALS @ np.array([b[1] for b in self.boxes]).transpose(0, 2, 1)
        return _table(corners[:, _BOX_FACES], normals, [b[2] for b in self.boxes], corners.mean(1))

    def _tube_faces(self) -> tuple[NDArray[Any], ...]:
        start, end = (np.array([t[k] for t in self.tubes]) for k in (0, 1))
        radii = np.array([(t[2], t[3]) for t in self.tubes])
        axis = _unit(end - start)
        helper = np.where(abs(axis[:, 2:]) > 0.9, [[1.0, 0.0, 0.0]], [[0.0, 0.0, 1.0]])
        u = _unit(np.cross(axis, helper))
        v = np.cross(axis, u)
        ring, sides = (u[:, None] * a[:, :1] + v[:, None] * a[:, 1:] for a in (_RING_POINTS, _SIDE_NORMALS))
        corners = np.concatenate(
            [start[:, None] + ring * radii[:, :1, None], end[:, None] + ring * radii[:, 1:, None]], axis=1
        )
        caps = np.repeat(np.stack([-axis, axis], axis=1), _RING // 2 - 1, axis=1)
        normals = np.concatenate([sides, caps], axis=1)
        table = _table(corners[:, _TUBE_FACES], normals, [t[4] for t in self.tubes], (start + end) / 2)
        is_side = np.arange(len(_TUBE_FACES)) < _RING
        kept = (is_side | np.array([t[5] for t in self.tubes])[:, None]).ravel()
        casts = np.tile(is_side, len(self.tubes))  # the shadow of a bar's end hardly shows
        return *(column[kept] for column in table[:-1]), casts[kept]


class Faces(NamedTuple):
    """Quadrilaterals.

    Attributes:
        corners: (n, 4, 3).
        normals: (n, 3), outward.
        colors: (n, 3).
        middles: (n, 3), of the solids that they belong to.
        casts: (n,), whether they cast a shadow.
    """

    corners: Vector
    normals: Vector
    colors: Vector
    middles: Vector
    casts: NDArray[np.bool_]


def _table(corners: Vector, normals: Vector, colors: list[Color], middles: Vector) -> tuple[NDArray[Any], ...]:
    """Faces of equal solids, (solids, faces, ...), as the rows of `Faces`."""
    count = corners.shape[1]
    repeated = (np.repeat(np.array(values, float), count, axis=0) for values in (colors, middles))
    return corners.reshape(-1, 4, 3), normals.reshape(-1, 3), *repeated, np.ones(count * len(corners), bool)


def _unit(vectors: Vector) -> Vector:
    lengths: Vector = np.sqrt((vectors * vectors).sum(-1, keepdims=True))
    return vectors / lengths


def render(camera: Viewpoint, solids: Solids, table: Table, *, fixed: bool = True) -> Image.Image:
    """Draw one frame.

    Args:
        camera: from where.
        solids: what stands on the table.
        table: its texture and surroundings.
        fixed: whether the camera stands still, so that its view of the table is worth keeping.

    Returns:
        RGB picture of the camera's size.
    """
    lit, dark = _fixed_views(camera, table) if fixed else _views(camera, table)
    shadow = Image.new("L", (camera.size[0] // 2, camera.size[1] // 2))  # soft anyway
    draw = ImageDraw.Draw(shadow)
    for outline in _shadow_outlines(camera, solids):
        draw.polygon(outline, fill=255)
    soft = shadow.filter(ImageFilter.BoxBlur(camera.size[1] / 180)).resize(camera.size, Image.Resampling.BILINEAR)
    size = (camera.size[0] * _SUPERSAMPLE, camera.size[1] * _SUPERSAMPLE)
    large = Image.composite(dark, lit, soft).resize(size, Image.Resampling.NEAREST)
    paint(large, camera, solids)
    return large.reduce(_SUPERSAMPLE)


def paint(canvas: Image.Image, camera: Viewpoint, solids: Solids) -> None:
    """Paint solids over a canvas that may be larger than the camera's picture by a whole factor."""
    scale = canvas.size[0] // camera.size[0]
    draw = ImageDraw.Draw(canvas)
    polygons = [*_polygons(camera, solids, scale), *_discs(camera, solids, scale)]
    polygons.sort(key=lambda polygon: -polygon[0])
    for _, outline, color in polygons:
        if len(outline) == 4:
            draw.ellipse(outline, fill=color)
        else:
            draw.polygon(outline, fill=color)


def _polygons(camera: Viewpoint, solids: Solids, scale: int) -> Iterator[Polygon]:
    """The faces that the camera sees. All faces of a solid have the distance of its middle."""
    if not (solids.boxes or solids.tubes):
        return
    faces = solids.faces
    views = camera.eye - faces.corners.mean(1)
    pixels, depth = camera.project(faces.corners)
    seen = ((faces.normals * views).sum(1) > 0) & (depth.min(1) > _NEAR)
    colors = _shade(faces.colors[seen], faces.normals[seen], _unit(views[seen]))
    offsets = faces.middles[seen] - camera.eye
    distances = np.sqrt((offsets * offsets).sum(1)).tolist()
    yield from zip(distances, (pixels[seen] * scale).reshape(-1, 8).tolist(), colors, strict=True)


def _shade(colors: Vector, normals: Vector, views: Vector) -> list[Color]:
    """Colour of each face: ambient, diffuse and a highlight; `views` are unit vectors towards the eye."""
    diffuse = np.maximum(normals @ LIGHT, 0)
    highlight = np.maximum((normals * _unit(views + LIGHT)).sum(1), 0) ** 24
    light = 0.41 + 0.11 * normals[:, 2] + 0.62 * diffuse
    shaded = np.minimum(colors * light[:, None] + (_SPECULAR * 255) * highlight[:, None], 255)
    return [(r, g, b) for r, g, b in shaded.astype(int).tolist()]


def _discs(camera: Viewpoint, solids: Solids, scale: int) -> Iterator[Polygon]:
    """A ball is a stack of discs that grow lighter and move towards the light."""
    toward = (camera.rotation @ LIGHT)[:2]
    for center, radius, color in solids.balls:
        pixel, depth = camera.project(center)
        if depth - radius < _NEAR:
            continue
        size = radius * camera.focal / float(depth) * scale
        distance = float(np.sqrt(((center - camera.eye) ** 2).sum()))
        for k in range(5):
            reach, light = size * (1 - 0.19 * k), 0.46 + 0.14 * k
            x, y = pixel * scale + toward * size * 0.16 * k
            r, g, b = (min(255, int(c * light)) for c in color)
            yield distance, [x - reach, y - reach, x + reach, y + reach], (r, g, b)


def _shadow_outlines(camera: Viewpoint, solids: Solids) -> list[list[float]]:
    """Outlines, at half the camera's resolution, of the shadows on the table of all faces turned to the light."""
    if not (solids.boxes or solids.tubes):
        return []
    faces = solids.faces
    corners = faces.corners[faces.casts & (faces.normals @ LIGHT > 0)]
    pixels, depth = camera.project(corners - LIGHT * (np.maximum(corners[..., 2:], 0) / LIGHT[2]))
    outlines: list[list[float]] = (pixels[depth.min(1) > _NEAR] / 2).reshape(-1, 8).tolist()
    return outlines


@functools.lru_cache(maxsize=32)
def _fixed_views(camera: Viewpoint, table: Table) -> tuple[Image.Image, Image.Image]:
    return _views(camera, table, smooth=True)


def _views(camera: Viewpoint, table: Table, *, smooth: bool = False) -> tuple[Image.Image, Image.Image]:
    """The empty table as the camera sees it, lit and in shadow."""
    to_world = np.linalg.inv(
        np.column_stack([camera.rotation[:, 0], camera.rotation[:, 1], -camera.rotation @ np.asarray(camera.eye)])
    )
    width, height = camera.size
    intrinsics = np.array([[camera.focal, 0, width / 2], [0, camera.focal, height / 2], [0, 0, 1]])
    lit = table.seen_through(to_world @ np.linalg.inv(intrinsics), camera.size, smooth=smooth)
    return lit, lit.point(_SHADOW)
