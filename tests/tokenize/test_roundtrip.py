"""The error of binning: values by hand, and its upper bound."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from oxe_curate.actions.bins import ActionBins
from oxe_curate.actions.bounds import Bounds
from oxe_curate.actions.dimensions import GRIPPER_UNMASKED
from oxe_curate.errors import DataError
from oxe_curate.tokenize.roundtrip import RoundTrip

UNIT = np.array([-1.0] * 6 + [0.0]), np.array([1.0] * 7)
BOUNDS = Bounds(UNIT[0], UNIT[1], UNIT[1], UNIT[0], *UNIT, mask=np.array(GRIPPER_UNMASKED))


def round_trip(actions, bounds, bins):
    accumulator = RoundTrip(bounds, bins)
    accumulator.add(actions)
    return accumulator.result()


def test_by_hand():
    # two uniform bins with centres -0.5 and 0.5
    result = round_trip([[0.5, 0.25, 3, 0.5, 0, 0, 1], [0, -1, 0, 0, 0, 0, 0]], BOUNDS, ActionBins("uniform", 2))
    x, y, z, roll, *_, gripper = result["dimensions"]
    assert result["steps"] == 2
    assert (x["name"], x["unit"], gripper["name"]) == ("x", "m", "gripper")
    np.testing.assert_allclose((x["mean_error"], x["largest_error"]), (0.25, 0.5))
    np.testing.assert_allclose((y["mean_error"], y["largest_error"]), (0.375, 0.5))
    assert (x["share_clipped"], z["share_clipped"]) == (0, 0.5)
    np.testing.assert_allclose((z["unclipped"]["mean_error"], z["clipped"]["mean_error"]), (0.5, 2.5))
    assert x["clipped"] == {"mean_error": None, "largest_error": None}
    assert roll["unit"] == "deg"
    np.testing.assert_allclose(roll["largest_error"], np.degrees(0.5))
    np.testing.assert_allclose((x["interval"], roll["interval"]), (1, np.degrees(1)))
    np.testing.assert_allclose(gripper["mean_error"], 0.5)


@given(
    hnp.arrays(np.float32, (20, 7), elements=st.floats(-100, 100, width=32)), st.sampled_from(["openvla", "uniform"])
)
def test_unclipped_error_is_at_most_half_an_interval(actions, kind):
    for entry in round_trip(actions, Bounds.fit(actions), ActionBins(kind))["dimensions"]:
        largest = entry["unclipped"]["largest_error"]
        narrow = entry["interval"] < 1e-6  # the 1e-8 in the divisor then shifts the values
        if largest is not None and not entry["constant"] and not narrow:
            assert largest <= entry["interval"] * 0.5 + 1e-6 * max(1, abs(actions).max()) * 60


def test_blocks_equal_the_whole():
    actions = np.random.default_rng(0).normal(size=(1000, 7)).astype(np.float32)
    bounds, bins = Bounds.fit(actions), ActionBins()
    whole = round_trip(actions, bounds, bins)
    parts = RoundTrip(bounds, bins)
    for part in (actions[:10].reshape(2, 5, 7), actions[10:400], actions[400:]):
        parts.add(part)
    merged = parts.result()
    assert merged["steps"] == whole["steps"] == 1000
    for one, other in zip(merged["dimensions"], whole["dimensions"], strict=True):
        np.testing.assert_allclose(one["mean_error"], other["mean_error"], rtol=1e-12)
        assert one["largest_error"] == other["largest_error"]
        assert one["share_clipped"] == other["share_clipped"]


def test_share_clipped_is_the_share_outside_the_quantiles():
    actions = np.random.default_rng(0).normal(size=(10_000, 7)).astype(np.float32)
    shares = [d["share_clipped"] for d in round_trip(actions, Bounds.fit(actions), ActionBins())["dimensions"]]
    np.testing.assert_allclose(shares[:6], 0.02, atol=1e-9)
    assert shares[6] == np.mean(np.abs(actions[:, 6]) > 1)


def test_a_constant_gripper_is_not_recovered_and_reported():
    actions = np.zeros((5, 7), np.float32)
    actions[:, 6] = 1
    x, *_, gripper = round_trip(actions, Bounds.fit(actions), ActionBins())["dimensions"]
    assert gripper["constant"]
    assert gripper["largest_error"] == pytest.approx(1)
    assert gripper["share_clipped"] == 0
    assert x["constant"]
    assert x["largest_error"] == 0


def test_results_without_actions_and_of_other_widths():
    result = RoundTrip(BOUNDS, ActionBins()).result()
    assert result["steps"] == 0
    assert result["dimensions"][0]["mean_error"] is None
    actions = np.random.default_rng(0).normal(size=(9, 3))
    wide = round_trip(actions, Bounds.fit(actions, (True, True, False)), ActionBins())
    assert [d["name"] for d in wide["dimensions"]] == ["0", "1", "2"]
    json.dumps([result, wide], allow_nan=False)


def test_a_wrong_width_is_rejected():
    with pytest.raises(DataError, match=r"expected actions \(..., 7\)"):
        round_trip(np.zeros((2, 8)), BOUNDS, ActionBins())
    with pytest.raises(DataError, match="nan"):
        round_trip(np.full((2, 7), np.nan), BOUNDS, ActionBins())
