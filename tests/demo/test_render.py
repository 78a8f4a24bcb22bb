import numpy as np
import pytest
from PIL import Image

from oxe_curate.demo.render import Solids, Viewpoint, paint, render
from oxe_curate.demo.table import Table

DOWN = Viewpoint((0.3, 0.0, 1.0), (0.3, 0.0, 0.0), fov=60, size=(64, 48), up=(1.0, 0.0, 0.0))
"""Looks straight down from one metre: x is up in the image, y to the left."""


def test_projection_of_known_points():
    focal = 24 / np.tan(np.radians(30))
    pixels, depth = DOWN.project(np.array([[0.3, 0, 0], [0.4, 0, 0], [0.3, 0.1, 0.5]]))
    np.testing.assert_allclose(depth, [1, 1, 0.5])
    np.testing.assert_allclose(pixels, [[32, 24], [32, 24 - 0.1 * focal], [32 - 0.2 * focal, 24]])


def test_a_box_casts_a_shadow_away_from_the_light():
    empty = np.asarray(render(DOWN, Solids(), Table("oak")), int)
    solids = Solids()
    solids.box((0.3, 0.0, 0.1), (0.1, 0.1, 0.2), (200, 0, 0))
    drawn = np.asarray(render(DOWN, solids, Table("oak")), int)
    red, green, blue = drawn[24, 32]
    assert red > 150
    assert green == blue < 60
    darker = (empty - drawn).sum(2) > 60
    darker[21:28, 29:36] = False  # the box and its sides
    rows, columns = np.nonzero(darker)
    assert len(rows) > 10
    assert rows.mean() < 24  # the light comes from smaller x, so the shadow is at larger x, up in the image
    assert columns.mean() < 32  # and at larger y


def test_near_solids_hide_far_ones_in_any_order():
    def draw(colors: list[tuple[float, tuple[int, int, int]]]) -> Image.Image:
        canvas, solids = Image.new("RGB", DOWN.size), Solids()
        for height, color in colors:
            solids.box((0.3, 0.0, height), (0.1, 0.1, 0.02), color)
        paint(canvas, DOWN, solids)
        return canvas

    low, high = (0.1, (0, 200, 0)), (0.5, (0, 0, 200))
    assert draw([low, high]).tobytes() == draw([high, low]).tobytes()
    _, green, blue = np.asarray(draw([low, high]))[24, 32]
    assert blue > 150 > green


@pytest.mark.parametrize("add", ["box", "tube", "ball"])
def test_only_solids_in_front_of_the_camera_are_drawn(add):
    def painted(height: float) -> bool:
        canvas, solids = Image.new("RGB", DOWN.size), Solids()
        center = np.array([0.3, 0.0, height])
        match add:
            case "box":
                solids.box(center, (0.1, 0.1, 0.1), (200, 200, 200))
            case "tube":
                solids.tube(center, center + np.array([0.1, 0, 0]), 0.03, (200, 200, 200))
            case "ball":
                solids.ball(center, 0.05, (200, 200, 200))
        paint(canvas, DOWN, solids)
        return np.asarray(canvas).max() > 100

    assert painted(0.3)
    assert not painted(1.5)


def test_the_table_ends_at_its_edge():
    table = Table("stone", x=(0.2, 0.4), y=(-0.1, 0.1), floor=(10, 20, 90))
    image = np.asarray(render(DOWN, Solids(), table))
    assert image[24, 32].min() > 150
    assert image[2, 2, 2] > 2 * image[2, 2, 0]
