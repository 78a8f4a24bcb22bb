"""The seven dimensions of an end-effector action: position, rotation, gripper."""

from __future__ import annotations

import numpy as np

DIMENSIONS = (
    ("x", "m", 1.0),
    ("y", "m", 1.0),
    ("z", "m", 1.0),
    ("roll", "deg", 180 / np.pi),
    ("pitch", "deg", 180 / np.pi),
    ("yaw", "deg", 180 / np.pi),
    ("gripper", "", 1.0),
)
"""Name, display unit, and factor from the stored unit (metres, radians) to it. A data set in other units keeps them."""

DIMENSION_NAMES = tuple(name for name, _, _ in DIMENSIONS)
NUM_DIMENSIONS = len(DIMENSIONS)
POSE_WIDTH = 6
"""Number of leading dimensions that describe motion; the gripper follows them."""
GRIPPER_UNMASKED = (True,) * POSE_WIDTH + (False,)
"""OpenVLA's mask for end-effector actions: the pose is scaled, the gripper is not."""
