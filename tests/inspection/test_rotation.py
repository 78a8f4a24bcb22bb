"""Quaternion order, units, Euler against rotation vector."""

import numpy as np
import pytest

from oxe_curate.inspection import rotation
from oxe_curate.inspection.series import Columns
from tests.inspection.constructed import Truth, episodes, product, quaternion

ANGLES = Columns("a", 0, 3)
TURNS = Columns("action", 3, 6)


def test_the_rotation_between_two_quaternions_in_both_axes() -> None:
    first, step = quaternion(np.array([0, 0, np.pi / 2])), np.array([0.1, 0, 0])
    world = np.array([first, product(quaternion(step), first)])
    hand = np.array([first, product(first, quaternion(step))])
    assert rotation.rotation_vectors(world, "xyzw")[0] == pytest.approx(step)
    assert rotation.rotation_vectors(hand, "xyzw", "hand")[0] == pytest.approx(step)
    assert rotation.rotation_vectors(hand, "xyzw")[0] == pytest.approx([0, 0.1, 0])
    assert rotation.rotation_vectors(world[:, [3, 0, 1, 2]], "wxyz")[0] == pytest.approx(step)
    assert rotation.rotation_vectors(np.array([first, -first]), "xyzw")[0] == pytest.approx([0, 0, 0], abs=1e-9)


@pytest.mark.parametrize("order", ["xyzw", "wxyz"])
@pytest.mark.parametrize("down", [True, False])
def test_the_order_by_the_action(order: str, down: bool) -> None:
    found = episodes(Truth(rotation=order, down=down), np.random.default_rng(0))  # type: ignore[arg-type]
    (columns,) = rotation.find_quaternions(found, [Columns("observation/state", 0, 8)])
    assert str(columns) == "observation/state[3:7]"
    finding = rotation.quaternion_order(found, columns, TURNS)
    assert finding.answer == order
    assert finding.confidence > 0.6


def test_the_order_of_a_gripper_that_points_down_is_unknown_without_an_action() -> None:
    rng = np.random.default_rng(0)
    q = np.array([product(quaternion(rng.normal(0, 0.2, 3)), np.array([1.0, 0, 0, 0])) for _ in range(50)])
    finding = rotation.quaternion_order([{"q": q}], Columns("q", 0, 4))
    assert not finding.known
    assert "pointing down" in finding.why


def test_a_scalar_part_kept_positive_is_a_fair_cue() -> None:
    rng = np.random.default_rng(0)
    q = np.array([quaternion(rng.normal(0, 1, 3)) for _ in range(100)])
    q *= np.where(q[:, 3:] < 0, -1, 1)
    finding = rotation.quaternion_order([{"q": q[:, [3, 0, 1, 2]]}], Columns("q", 0, 4))
    assert finding.answer == "wxyz"
    assert 0.5 <= finding.confidence <= 0.7


def test_an_open_gripper_after_zeros_is_not_a_quaternion() -> None:
    state = np.tile([0.3, 0.1, 0.2, 0, 0, 0, 0, 1.0], (20, 1))
    assert rotation.find_quaternions([{"s": state}], [Columns("s", 0, 8)]) == []


@pytest.mark.parametrize(
    ("values", "answer"),
    [
        ([[170.0, 1, 2], [-160, 3, 4], [10, 5, 60]], "degrees"),
        ([[3.1, 0, 0.5], [-3.1, 0.1, 0.4], [-3.0, 0, 0.3]], "radians"),
        ([[0.5, 1.2, -1.0], [0.4, -0.9, 0.2], [0.3, 0, 0.1]], "radians"),
    ],
)
def test_degrees_or_radians(values: list[list[float]], answer: str) -> None:
    assert rotation.angle_unit([{"a": np.array(values)}], ANGLES).answer == answer


def test_turns_per_step() -> None:
    rng = np.random.default_rng(0)
    for size, answer in ((0.05, "radians"), (1.0, "unknown"), (3.0, "degrees")):
        found = [{"a": rng.uniform(-size, size, (50, 3))}]
        assert rotation.angle_unit(found, ANGLES, displacement=True).answer == answer


def test_small_rotations_are_both_euler_angles_and_rotation_vectors() -> None:
    finding = rotation.rotation_kind([{"a": np.random.default_rng(0).uniform(-0.1, 0.1, (50, 3))}], ANGLES)
    assert not finding.known
    assert "same numbers" in finding.why


def test_a_single_euler_angle_jumps_but_a_rotation_vector_flips() -> None:
    yaw = np.linspace(2.5, 4.0, 20)
    euler = np.stack([np.full(20, 0.2), np.full(20, 0.3), (yaw + np.pi) % (2 * np.pi) - np.pi], axis=1)
    finding = rotation.rotation_kind([{"a": euler[yaw < 3.4]}] * 4, ANGLES)
    assert finding.answer == "euler"
    axis = np.array([0.48, 0.6, 0.64])
    angle = np.where(yaw > np.pi, yaw - 2 * np.pi, yaw)
    finding = rotation.rotation_kind([{"a": angle[:, None] * axis}] * 4, ANGLES)
    assert finding.answer == "axis-angle"


def test_angles_longer_than_pi_are_not_a_rotation_vector() -> None:
    x = np.random.default_rng(0).uniform(2.0, 3.0, (50, 3))
    assert rotation.rotation_kind([{"a": x}], ANGLES).answer == "euler"


def test_turns_are_compared_with_a_quaternion() -> None:
    found = episodes(Truth(rotation="xyzw"), np.random.default_rng(0))
    finding = rotation.turn_kind(found, TURNS, Columns("observation/state", 3, 7), "xyzw")
    assert (finding.answer, finding.evidence["unit"]) == ("delta", "radians")
    found = episodes(Truth(rotation="xyzw", angles="degrees"), np.random.default_rng(0))
    finding = rotation.turn_kind(found, TURNS, Columns("observation/state", 3, 7), "xyzw")
    assert (finding.answer, finding.evidence["unit"]) == ("delta", "degrees")
