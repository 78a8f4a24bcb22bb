import functools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from oxe_curate.registry import operations as ops

F32 = np.float32


def column(*values, dtype=F32):
    return np.array(values, dtype)[:, None]


def assert_column(result, *values):
    assert result.dtype == F32
    assert result.shape == (len(values), 1)
    np.testing.assert_array_equal(result[:, 0], np.array(values, F32))


def test_affine_inverts_scales_and_divides():
    assert_column(ops.affine(column(0, 0.25, 1), scale=-1, offset=1), 1, 0.75, 0)
    assert_column(ops.affine(column(1, 2, 3), scale=0.5), 0.5, 1, 1.5)
    x = np.arange(256, dtype=F32)[:, None]
    np.testing.assert_array_equal(ops.affine(x, scale=-1, divisor=255, offset=1), 1 - x / F32(255))


def test_clip():
    assert_column(ops.clip(column(-0.5, 0.5, 2)), 0, 0.5, 1)
    assert_column(ops.clip(column(-2, 0, 2), lo=-1, hi=1), -1, 0, 1)


def test_rel_to_abs_starts_opposite_to_the_first_command():
    assert_column(ops.rel_to_abs(column(0, 1, 0, -1, 0)), 1, 0, 0, 1, 1)
    assert_column(ops.rel_to_abs(column(0, -1, 0)), 0, 1, 1)


@pytest.mark.parametrize("values", [(0, 0, 0), (0.1, -0.1, 0.1), (math.nan, 0, 0)])
def test_rel_to_abs_without_a_command_is_open(values):
    assert_column(ops.rel_to_abs(column(*values)), 1, 1, 1)  # the threshold itself is not a command


def test_rel_to_abs_has_a_threshold_and_single_steps():
    assert_column(ops.rel_to_abs(column(0, -0.002, 0.002), threshold=0.001), 0, 1, 0)
    assert_column(ops.rel_to_abs(column(1)), 0)
    assert_column(ops.rel_to_abs(column(-1)), 1)


def test_binarize_takes_the_next_decided_value():
    assert_column(ops.binarize(column(0.5, 0.96, 0.5, 0.04)), 1, 1, 0, 0)
    assert_column(ops.binarize(column(0.05, 0.0, 0.95, 1.0)), 0, 0, 1, 1)  # the limits are undecided


def test_binarize_leaves_an_undecided_tail_at_the_last_raw_value():
    assert_column(ops.binarize(column(1, 0.3, 0.6)), 1, 0.6, 0.6)
    assert_column(ops.binarize(column(0.4)), 0.4)


def test_delta_wrap_and_shift():
    assert_column(ops.delta(column(1, 3, 2)), 2, -1)
    assert ops.delta(column(1)).shape == (0, 1)
    np.testing.assert_allclose(
        ops.wrap(column(3.5, -3.5, 1))[:, 0], [3.5 - 2 * math.pi, 2 * math.pi - 3.5, 1], atol=1e-6
    )
    assert_column(ops.wrap(column(0.1, -3, 3)), 0.1, -3, 3)
    assert_column(ops.shift(column(1, 2, 3)), 2, 3, 3)
    assert_column(ops.shift(column(1, 2, 3), by=1), 1, 1, 2)


@pytest.mark.parametrize("name", [name for name in ops.OPERATIONS if name != "delta"])
def test_empty_in_empty_out(name):
    spec = ops.OPERATIONS[name]
    result = spec.function(np.empty((0, spec.width_in or 1), F32))
    assert result.shape == (0, spec.width_out or 1)
    assert result.dtype == F32


@pytest.mark.parametrize("name", list(ops.OPERATIONS))
def test_precision_is_kept_and_the_input_is_not_changed(name):
    spec = ops.OPERATIONS[name]
    for dtype in (np.float32, np.float64):
        x = np.linspace(-1, 1, 3 * (spec.width_in or 2), dtype=dtype).reshape(3, -1)
        before = x.copy()
        x.flags.writeable = False
        result = spec.function(x)
        assert result.dtype == dtype
        assert result.shape == (3 - spec.shortens, spec.width_out or x.shape[1])
        np.testing.assert_array_equal(x, before)


# ── rotations ─────────────────────────────────────────────────────────────────────────────────────────────


def quat_of(axis, angle):
    return np.array([*(np.sin(angle / 2) * np.array(axis, float)), np.cos(angle / 2)])


def matrix_of(euler):
    (cr, cp, cy), (sr, sp, sy) = np.cos(euler), np.sin(euler)
    rx = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
    ry = np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]])
    rz = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    return rz @ ry @ rx


def test_euler_from_quat_about_each_axis():
    quats = np.array([quat_of(axis, 0.3) for axis in np.eye(3)], F32)
    np.testing.assert_allclose(ops.euler_from_quat(quats), 0.3 * np.eye(3), atol=1e-6)
    wxyz = np.roll(quats, 1, axis=1)
    np.testing.assert_array_equal(ops.euler_from_quat(wxyz, order="wxyz"), ops.euler_from_quat(quats))


@given(hnp.arrays(np.float64, (3,), elements=st.floats(-1.5, 1.5)))
def test_euler_from_quat_inverts_the_rotation(euler):
    quat = np.array([0.0, 0, 0, 1])
    for axis, angle in zip(np.eye(3), euler, strict=True):  # R = Rz Ry Rx: later axes multiply from the left
        (bx, by, bz, bw), (ax, ay, az, aw) = quat, quat_of(axis, angle)
        quat = np.array(
            [
                aw * bx + ax * bw + ay * bz - az * by,
                aw * by - ax * bz + ay * bw + az * bx,
                aw * bz + ax * by - ay * bx + az * bw,
                aw * bw - ax * bx - ay * by - az * bz,
            ]
        )
    np.testing.assert_allclose(ops.euler_from_quat(quat[None])[0], euler, atol=1e-6)


def test_euler_from_quat_edge_cases():
    zero = ops.euler_from_quat(np.zeros((1, 4), F32))
    np.testing.assert_array_equal(zero, [[0, 0, 0]])
    half = math.sqrt(0.5)
    for sign in (1, -1):  # pitch +-90 degrees: yaw is fixed to 0, the rest goes into roll
        locked = ops.euler_from_quat(np.array([[0, sign * half, 0, half]], F32))
        np.testing.assert_allclose(locked, [[0, sign * math.pi / 2, 0]], atol=1e-6)
    with np.errstate(all="ignore"):
        assert np.isnan(ops.euler_from_quat(np.array([[0, 2, 0, 2]], F32))[0, 1])  # far from unit length


@given(hnp.arrays(np.float64, (3,), elements=st.floats(-0.8, 0.8)))
def test_axis_angle_to_euler_is_the_same_rotation(vector):
    angle = np.linalg.norm(vector)
    euler = ops.axis_angle_to_euler(vector[None])[0]
    k = np.array([[0, -vector[2], vector[1]], [vector[2], 0, -vector[0]], [-vector[1], vector[0], 0]])
    rodrigues = np.eye(3) + np.sinc(angle / np.pi) * k + 0.5 * np.sinc(angle / 2 / np.pi) ** 2 * k @ k
    np.testing.assert_allclose(matrix_of(euler), rodrigues, atol=1e-9)


# ── the vectorised scans against the loops that define them ───────────────────────────────────────────────


def rel_to_abs_loop(values, threshold):
    commands = [1 if v < -F32(threshold) else -1 if v > F32(threshold) else 0 for v in values]
    state = -next((c for c in commands if c), -1)
    result = []
    for command in commands:
        state = command or state
        result.append((state + 1) / 2)
    return result


def binarize_loop(values, lo, hi):
    result, upcoming = [], values[-1] if len(values) else None
    for v in reversed(values):
        upcoming = 1.0 if v > F32(hi) else 0.0 if v < F32(lo) else upcoming
        result.append(upcoming)
    return result[::-1]


gripper = hnp.arrays(
    F32,
    st.integers(0, 30),
    elements=st.one_of(
        st.sampled_from([-1.0, -0.1, 0.0, 0.05, 0.1, 0.5, 0.95, 1.0, math.nan]).map(lambda v: float(F32(v))),
        st.floats(-1, 1, width=32),
    ),
)


@given(gripper)
def test_rel_to_abs_equals_its_loop(values):
    np.testing.assert_array_equal(ops.rel_to_abs(values[:, None])[:, 0], rel_to_abs_loop(values, 0.1))


@given(gripper)
def test_binarize_equals_its_loop(values):
    np.testing.assert_array_equal(ops.binarize(values[:, None])[:, 0], binarize_loop(values, 0.05, 0.95))


@given(hnp.arrays(F32, st.tuples(st.integers(0, 12), st.integers(1, 3)), elements=st.floats(-1, 1, width=32)))
def test_columns_are_independent(values):
    for function in (ops.rel_to_abs, ops.binarize):
        separate = [function(values[:, [i]]) for i in range(values.shape[1])]
        np.testing.assert_array_equal(function(values), np.concatenate(separate, axis=1))


def test_several_episodes_at_once_equal_each_of_them():
    rng = np.random.default_rng(0)
    lengths = np.array([0, 1, 7, 0, 2, 30, 1])
    x = rng.choice(np.float32([-1, -0.5, 0, 0.02, 0.5, 0.99, 1]), (lengths.sum(), 2))
    calls = [
        ops.delta, ops.binarize, ops.rel_to_abs,
        *(functools.partial(ops.shift, by=by) for by in (-3, -1, 2)), functools.partial(ops.binarize, lo=-2, hi=2),
        functools.partial(ops.rel_to_abs, threshold=0.7),
    ]  # fmt: skip
    for call in calls:
        each = [call(part) for part in np.split(x, np.cumsum(lengths)[:-1])]
        together = call(x, lengths)
        assert together.dtype == F32
        np.testing.assert_array_equal(together, np.concatenate(each))
