"""Bounds, and normalisation as in OpenVLA's loader."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from oxe_curate.actions.bounds import Bounds, lookup, read_statistics
from oxe_curate.actions.dimensions import GRIPPER_UNMASKED
from oxe_curate.errors import ConfigError, DataError

actions7 = hnp.arrays(np.float32, st.tuples(st.integers(1, 40), st.just(7)), elements=st.floats(-1e6, 1e6, width=32))


@pytest.fixture
def actions() -> np.ndarray:
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(1001, 7)) * [0.01, 0.02, 0.03, 0.1, 0.2, 0.3, 1]).astype(np.float32)
    rows[:, 6] = rows[:, 6] > 0
    return rows


def literal(low=0.0, high=2.0, gripper=(0.0, 1.0)) -> Bounds:
    """Six dimensions from low to high, and a gripper."""
    q01, q99 = np.array([low] * 6 + [gripper[0]]), np.array([high] * 6 + [gripper[1]])
    return Bounds(q01, q99, q99, q01, q01, q99, mask=np.array(GRIPPER_UNMASKED))


def test_fit_by_hand():
    column = np.arange(101, dtype=np.float32)
    bounds = Bounds.fit(np.stack([column, -column], 1), (True, False), num_trajectories=3)
    np.testing.assert_allclose(bounds.q01, [1, -99])
    np.testing.assert_allclose(bounds.q99, [99, -1])
    np.testing.assert_array_equal(bounds.min, [0, -100])
    np.testing.assert_array_equal(bounds.max, [100, 0])
    np.testing.assert_allclose(bounds.mean, [50, -50])
    np.testing.assert_allclose(bounds.std, np.sqrt((101**2 - 1) / 12))  # population, not sample
    assert (bounds.num_transitions, bounds.num_trajectories) == (101, 3)


@given(actions7, st.floats(0, 0.49), st.floats(0.5, 1))
def test_quantiles_equal_numpys_bit_for_bit(rows, low, high):
    bounds = Bounds.fit(rows, low=low, high=high)
    # an array of probabilities keeps numpy in float64; a plain float would make it round to float32
    expected = np.quantile(rows, np.array([low, high]), axis=0)
    np.testing.assert_array_equal(bounds.q01, expected[0])
    np.testing.assert_array_equal(bounds.q99, expected[1])
    np.testing.assert_array_equal(bounds.min, rows.min(0))
    np.testing.assert_array_equal(bounds.max, rows.max(0))
    np.testing.assert_allclose(bounds.mean, rows.mean(0, np.float64), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(bounds.std, rows.std(0, np.float64), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1.0, 1e30])
def test_quantiles_of_any_magnitude(scale):
    rows = (np.random.default_rng(1).standard_cauchy((999, 7)) * scale).astype(np.float32)
    expected = np.quantile(rows, np.array([0.01, 0.99]), axis=0)
    np.testing.assert_array_equal([Bounds.fit(rows).q01, Bounds.fit(rows).q99], expected)


def test_blocks_equal_the_whole(actions, monkeypatch):
    monkeypatch.setattr("oxe_curate.actions.summary._BLOCK", 64)
    whole = Bounds.fit(actions).to_json()
    pieces = [actions[:1], actions[1:1], actions[1:700], actions[700:]]
    for chunks in (pieces, tuple(pieces), iter(pieces)):
        chunked = Bounds.fit(chunks).to_json()
        for key, value in whole["action"].items():
            np.testing.assert_allclose(chunked["action"][key], value, rtol=1e-12)
        assert chunked["num_transitions"] == 1001


def test_blocks_that_change_between_readings_are_an_error(actions):
    class Shrinking:
        times = 2

        def __iter__(self):
            self.times -= 1
            return iter([actions] * self.times)

    with pytest.raises(ValueError, match="when read again"):
        Bounds.fit(Shrinking())


def test_normalize_by_hand():
    x = [[0, 1, 2, -5, 5, 0.5, 0.25]]
    np.testing.assert_allclose(literal().normalize(x), [[-1, 0, 1, -1, 1, -0.5, 0.25]], atol=1e-7)
    assert literal().normalize(x).dtype == np.float32


def test_gripper_is_neither_scaled_nor_clipped():
    assert literal().normalize([0, 0, 0, 0, 0, 0, 7.5])[6] == 7.5


def test_constant_dimensions_become_zero_scaled_or_not():
    bounds = Bounds.fit(np.array([[3, 0, 0, 0, 0, 0, 1], [3, 1, 1, 1, 1, 1, 1]], np.float32))
    normalized = bounds.normalize([3, 0, 1, 0, 1, 0, 1])
    np.testing.assert_array_equal(normalized[[0, 6]], [0, 0])
    np.testing.assert_array_equal(np.sign(normalized[1:6]), [-1, 1, -1, 1, -1])
    # the scaled constant is recovered, the unscaled one is not, as in OpenVLA
    np.testing.assert_allclose(bounds.denormalize(normalized)[[0, 6]], [3, 0])


def test_equal_quantiles_but_not_constant_snap_to_the_ends():
    rows = np.zeros((1001, 7), np.float32)
    rows[0, 0], rows[1, 0] = 1, -1
    bounds = Bounds.fit(rows)
    assert bounds.q01[0] == bounds.q99[0] == 0
    np.testing.assert_array_equal(bounds.normalize(rows[:3])[:, 0], [1, -1, -1])


def test_arithmetic_equals_tensorflow():
    # Output of TensorFlow 2.21 inside tf.data for 2 * (x - low) / (high - low + 1e-8) - 1. On these values
    # float64 arithmetic, or a product with the reciprocal, rounds to another float32.
    bounds = literal(-0.029042243957519531, 0.028308916389942172)
    x = [0.018300175666809082, 0.009142146445810795, 0.02386065572500229]
    x += [-0.01371290348470211, -0.0037999767810106277, 0.018372919410467148]
    expected = [0.6509660482406616, 0.33159923553466797, 0.8448759317398071]
    expected += [-0.4654219150543213, -0.11972969770431519, 0.6535028219223022]
    np.testing.assert_array_equal(bounds.normalize([*x, 0])[:6], np.array(expected, np.float32))


@pytest.mark.parametrize(
    ("low", "high", "x", "expected"),
    [
        (0.1, 0.1000003, 0.1000001, -0.3751125931739807),
        (-0.03, 0.05, 0.01, -1.7881393432617188e-07),
        (1000.1, 1000.2, 1000.15, 0.0009764432907104492),
    ],
)
def test_the_span_is_rounded_once_in_every_release(low, high, x, expected):
    """A difference of rounded bounds is another number, and an action near an edge then has another bin."""
    assert literal(low, high).normalize([x] * 7)[:6].tolist() == [expected] * 6


@given(actions7)
def test_round_trip_within_the_bounds(rows):
    bounds = Bounds.fit(rows, low=0, high=1)
    back = bounds.denormalize(bounds.normalize(rows))
    tolerance = 1e-6 * (np.abs(rows).max(0) + 1)
    keep = ~(bounds.constant & ~bounds.mask)
    keep &= bounds.max - bounds.min > 1e-2  # the 1e-8 in the divisor must be small compared with the span
    assert (np.abs(back - rows) <= tolerance)[:, keep].all()


@given(actions7)
def test_normalized_values_are_in_minus_one_to_one(rows):
    normalized = Bounds.fit(rows).normalize(rows * np.float32(3))
    assert np.isfinite(normalized).all()
    assert (np.abs(normalized[:, :6]) <= 1).all()


def test_leading_axes_are_kept(actions):
    bounds = Bounds.fit(actions)
    chunk = actions[:24].reshape(2, 3, 4, 7)
    np.testing.assert_array_equal(bounds.normalize(chunk).reshape(-1, 7), bounds.normalize(actions[:24]))
    assert bounds.denormalize(chunk).shape == chunk.shape
    assert bounds.normalize(np.empty((0, 7))).shape == (0, 7)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.empty((0, 7)), "no steps"),
        ([], "no steps"),
        (np.zeros((3, 8)), "expected a mask of 8 dimensions, as the actions have, got 7"),
        ([np.zeros((3, 7)), np.zeros((3, 6))], "row 3: expected 7 dimensions, .* got 6"),
        (np.zeros(7), r"shape \(7,\)"),
        (np.array([[0.0] * 7, [0, 0, np.nan, 0, 0, 0, 0]]), "row 1, dimension 2 is nan"),
        (np.array([[0.0] * 7, [0, 0, 0, 0, 0, -np.inf, 0]]), "row 1, dimension 5 is -inf"),
    ],
)
def test_fit_rejects_invalid_actions(rows, message):
    with pytest.raises(DataError, match=message):
        Bounds.fit(rows)


def test_wrong_widths_and_non_finite_values_are_rejected(actions):
    bounds = Bounds.fit(actions)
    with pytest.raises(DataError, match=r"expected actions \(..., 7\), got shape \(8,\)"):
        bounds.normalize(np.zeros(8))
    with pytest.raises(DataError, match=r"index \(1, 3\) is nan"):
        bounds.normalize([[0] * 7, [0, 0, 0, np.nan, 0, 0, 0]])
    with pytest.raises(DataError, match="inf"):
        bounds.denormalize([np.inf] * 7)
    with pytest.raises(ConfigError, match="0 <= low < high"):
        Bounds.fit(actions, low=0.9, high=0.1)


def test_json_round_trip(actions, tmp_path):
    bounds = Bounds.fit(actions, num_trajectories=5, proprio=actions[:, :3])
    entry = bounds.to_json()
    assert list(entry) == ["action", "proprio", "num_transitions", "num_trajectories"]
    assert list(entry["action"]) == ["mean", "std", "max", "min", "q01", "q99", "mask"]
    path = tmp_path / "dataset_statistics.json"
    path.write_text(json.dumps({"bridge_orig": entry}))
    for source in (path, tmp_path):
        assert read_statistics(source)["bridge_orig"].to_json() == entry


def test_bounds_can_be_pickled(actions):
    bounds = Bounds.fit(actions, proprio=actions[:, :3])
    assert pickle.loads(pickle.dumps(bounds)).to_json() == bounds.to_json()


def test_absent_proprio_is_omitted_and_zeros_count_as_absent(actions):
    entry = Bounds.fit(actions, proprio=np.empty((1001, 0))).to_json()
    assert "proprio" not in entry
    zeros = {key: [0.0] * 7 for key in ("mean", "std", "max", "min", "q01", "q99")}
    assert Bounds.from_json({**entry, "proprio": zeros}).proprio is None


def test_missing_mask(actions):
    entry = Bounds.fit(actions).to_json()
    del entry["action"]["mask"]
    assert tuple(Bounds.from_json(entry).mask) == GRIPPER_UNMASKED
    short = {"action": {key: value[:3] for key, value in entry["action"].items()}}
    assert Bounds.from_json(short).mask.all()


def test_model_configuration(actions, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "openvla", "norm_stats": {"kuka": Bounds.fit(actions).to_json()}}))
    assert read_statistics(tmp_path)["kuka"].num_transitions == 1001
    path.write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ConfigError, match="no 'norm_stats'"):
        read_statistics(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q01": None, "p01": [0] * 7, "p99": [1] * 7}, "Octo.*Rename"),
        ({"q99": None}, "missing key 'q99'"),
        ({"std": "high"}, "std: expected a list of finite numbers"),
        ({"std": [0.0] * 6 + [float("nan")]}, "std: expected a list of finite numbers"),
        ({"max": [0.0] * 6}, "max: expected 7 numbers, as for mean, got 6"),
        ({"mask": [True] * 6}, "mask: expected 7 booleans"),
        ({"mask": [1] * 7}, "mask: expected 7 booleans"),
    ],
)
def test_from_json_rejects_invalid_entries(actions, change, message):
    entry = Bounds.fit(actions).to_json()
    entry["action"] = {k: v for k, v in {**entry["action"], **change}.items() if v is not None}
    with pytest.raises(ConfigError, match=f"(?s)stats.json: kuka: action: .*{message}"):
        Bounds.from_json(entry, "stats.json: kuka")


def test_read_statistics_rejects_invalid_files(tmp_path, actions):
    path = tmp_path / "stats.json"
    with pytest.raises(ConfigError, match="file not found"):
        read_statistics(path)
    with pytest.raises(ConfigError, match="neither"):
        read_statistics(tmp_path)
    for text, message in [
        ("{", "not valid JSON"),
        ("[1]", "expected statistics by data set name"),
        ("{}", "expected statistics by data set name"),
        (json.dumps(Bounds.fit(actions).to_json()), "without its name"),
        ('{"kuka": {"actions": 1}}', "kuka: expected the key 'action'"),
        ('{"kuka": {"action": {}, "num_transitions": 1}}', "missing key 'mean'"),
    ]:
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_statistics(path)


def test_lookup():
    statistics = {"bridge_orig": literal(), "kuka": literal(-1, 1)}
    assert lookup(statistics, "kuka") is statistics["kuka"]
    assert lookup(statistics, "bridge_dataset", ["bridge_v2", "bridge_orig"]) is statistics["bridge_orig"]
    with pytest.raises(ConfigError, match=r"no statistics of 'droid' \(or 'droid_wipe'\). Known: bridge_orig, kuka"):
        lookup(statistics, "droid", ["droid_wipe"])
