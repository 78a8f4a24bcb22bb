"""The demo's robots, tables and cameras, one set for each data set."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from oxe_curate.demo.render import Solids, Viewpoint, render
from oxe_curate.demo.robot import Arm
from oxe_curate.demo.table import Table
from oxe_curate.demo.tasks import DemoStep, Room
from oxe_curate.demo.world import Cabinet


@dataclass(frozen=True)
class Scene:
    """A robot in a room, and its fixed cameras."""

    room: Room
    arm: Arm
    table: Table
    cameras: tuple[Viewpoint, ...]

    def image(self, step: DemoStep, camera: Viewpoint) -> Image.Image:
        """A step seen by a fixed camera."""
        solids = Solids()
        step.world.add_to(solids)
        self.arm.add_to(solids, step.pose)
        return render(camera, solids, self.table)

    def wrist_image(self, step: DemoStep, size: tuple[int, int]) -> Image.Image:
        """A step seen by the camera on the hand."""
        solids = Solids()
        step.world.add_to(solids)
        self.arm.add_gripper(solids, step.pose, palm=False)
        return render(self.arm.wrist_camera(step.pose, size), solids, self.table)


_SQUARE = (256, 256)
_WIDOWX = Arm()
_WIDOWX_HOME = (0.24, -0.06, 0.20)
_CHEST = Cabinet(0.33, 0.17, (0, -1))
_WHITE_CHEST = Cabinet(0.33, 0.17, (0, -1), wood=(205, 198, 186))


def _bridge(table: Table, cabinet: Cabinet | None, height: float) -> Scene:
    return Scene(
        room=Room((0.20, 0.37), (-0.24, 0.02), _WIDOWX_HOME, cabinet, speed=0.038, turns=True),
        arm=_WIDOWX,
        table=table,
        cameras=(
            Viewpoint((-0.12, -0.66, height), (0.225, 0.0, 0.12), 42, _SQUARE),  # over the right shoulder
            Viewpoint((0.80, -0.52, 0.40), (0.20, 0.02, 0.13), 40, _SQUARE),  # from the front, lower
            Viewpoint((0.05, -0.85, 0.26), (0.20, 0.02, 0.14), 38, _SQUARE),  # from the side
        ),
    )


BRIDGE = (
    _bridge(Table("oak", floor=(84, 92, 106)), _CHEST, 0.55),
    _bridge(Table("stone", floor=(120, 124, 122)), _WHITE_CHEST, 0.60),
    _bridge(Table("cloth", floor=(142, 130, 116)), _CHEST, 0.50),
)
"""WidowX on three tables, with up to three fixed cameras and sometimes one on the hand."""

FRACTAL = Scene(
    room=Room((0.34, 0.46), (-0.20, 0.14), (0.34, -0.10, 0.22), Cabinet(0.60, 0.02, (-1, 0)), speed=0.040, turns=True),
    arm=Arm(
        base=(0.06, -0.30, 0.0),
        shoulder=0.30,
        upper=0.32,
        fore=0.32,
        hand=0.15,
        thickness=0.032,
        link=(214, 216, 220),
        joint=(120, 124, 132),
        finger=(52, 53, 58),
    ),
    table=Table("stone", x=(0.10, 0.98), y=(-0.70, 0.70), floor=(104, 98, 92)),
    cameras=(Viewpoint((-0.10, 0.14, 0.78), (0.44, -0.01, 0.03), 46, (320, 256)),),  # on the robot's head
)
"""A mobile manipulator at a counter, seen by the camera in its head."""

JACO = Scene(
    room=Room((0.24, 0.40), (-0.20, 0.16), (0.28, 0.0, 0.20), None, speed=0.034, turns=False),
    arm=Arm(link=(38, 39, 42), joint=(150, 154, 160), finger=(70, 72, 78), shoulder=0.14, thickness=0.029),
    table=Table("walnut", floor=(150, 152, 150)),
    cameras=(Viewpoint((0.84, -0.62, 0.50), (0.20, 0.0, 0.13), 40, (224, 224)),),  # facing the robot
)
"""A Kinova arm that keeps its hand upright, seen from the front and from the hand."""
