import numpy as np

from oxe_curate.demo.render import Solids
from oxe_curate.demo.robot import OPENING, Arm, Pose, rotation_from_rpy


def test_rotation_is_roll_then_pitch_then_yaw():
    np.testing.assert_allclose(rotation_from_rpy(np.array([0, 0, np.pi / 2])) @ [1, 0, 0], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(rotation_from_rpy(np.array([0, np.pi / 2, 0])) @ [1, 0, 0], [0, 0, -1], atol=1e-12)
    both = rotation_from_rpy(np.array([np.pi / 2, 0, np.pi / 2]))
    np.testing.assert_allclose(both @ [0, 1, 0], [0, 0, 1], atol=1e-12)


def test_joint_angles_give_the_wrist():
    arm = Arm(base=(0.1, -0.2, 0.0))
    pose = Pose(np.array([0.35, 0.05, 0.04]), np.array([0.1, -0.1, 0.4]), 1.0)
    waist, lift, bend = arm.joints(pose)[:3]
    along = arm.upper * np.cos(lift) + arm.fore * np.cos(lift - bend)
    up = arm.shoulder + arm.upper * np.sin(lift) + arm.fore * np.sin(lift - bend)
    wrist = np.array([0.1 + along * np.cos(waist), -0.2 + along * np.sin(waist), up])
    np.testing.assert_allclose(wrist, pose.position + pose.rotation[:, 2] * arm.hand)


def test_the_gap_of_the_fingers_is_their_opening():
    gaps = []
    for opening in (0.0, 1.0):
        solids = Solids()
        Arm().add_gripper(solids, Pose(np.zeros(3), np.zeros(3), opening), palm=False)
        left, right = (corners[:, 1] for corners, _, _ in solids.parts)
        gaps.append(right.min() - left.max())
    np.testing.assert_allclose(gaps, [0.001, OPENING + 0.001])


def test_the_wrist_camera_sees_the_grasp_point_in_the_middle():
    pose = Pose(np.array([0.3, 0.1, 0.05]), np.array([0.1, 0.1, 1.0]), 1.0)
    pixel, depth = Arm().wrist_camera(pose, (200, 200)).project(pose.position)
    assert 0.05 < depth < 0.2
    np.testing.assert_allclose(pixel, [100, 100], atol=25)
