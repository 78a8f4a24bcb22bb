"""Bins, compared with numpy.digitize and with values of OpenVLA's ActionTokenizer."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from oxe_curate.actions.bins import ActionBins
from oxe_curate.errors import ConfigError, DataError

OPENVLA, UNIFORM = ActionBins("openvla"), ActionBins("uniform")
any_float32 = st.floats(width=32, allow_nan=False)
counts = st.integers(2, 256)


def reference(bins: ActionBins, x: np.ndarray) -> np.ndarray:
    """The definition, in float64 from float32 values."""
    clipped = np.clip(x.astype(np.float32), -1, 1)
    return np.minimum(np.digitize(clipped, bins.edges) - 1, bins.count - 1)


def neighbours(edges: np.ndarray, steps: int = 4) -> np.ndarray:
    """Every float32 within `steps` representable numbers of every edge."""
    nearest = edges.astype(np.float32)
    found = [nearest]
    for direction in (np.float32(-np.inf), np.float32(np.inf)):
        at = nearest
        for _ in range(steps):
            at = np.nextafter(at, direction)
            found.append(at)
    return np.concatenate(found)


def test_openvla_digits():
    x = np.array([-1, 0, 1, -2, 2, np.inf, -np.inf, 0.99999], np.float32)
    np.testing.assert_array_equal(OPENVLA.encode(x), [0, 127, 255, 0, 255, 255, 0, 254])


def test_uniform_has_256_intervals():
    x = np.array([-1, -1 + 1 / 128, 0, 1, np.nextafter(np.float32(0), np.float32(-1))], np.float32)
    np.testing.assert_array_equal(UNIFORM.encode(x), [0, 1, 128, 255, 127])


@pytest.mark.parametrize("kind", ["openvla", "uniform"])
@pytest.mark.parametrize("count", [2, 3, 17, 255, 256])
def test_encode_equals_digitize_next_to_every_edge(kind, count):
    bins = ActionBins(kind, count)
    x = neighbours(np.concatenate([bins.edges, bins.centers, [0.0]]))
    np.testing.assert_array_equal(bins.encode(x), reference(bins, x))


def test_encode_equals_digitize_over_many_blocks():
    x = np.random.default_rng(0).uniform(-1.1, 1.1, (30_001, 7)).astype(np.float32)
    np.testing.assert_array_equal(OPENVLA.encode(x), reference(OPENVLA, x))


def test_float64_is_cast_first():
    rounded = OPENVLA.edges.astype(np.float32)
    b = int(np.argmax(rounded > OPENVLA.edges))  # an edge that float32 rounds up
    below = np.nextafter(OPENVLA.edges[b], -1)  # as float64 it belongs to b - 1
    assert np.digitize(below, OPENVLA.edges) - 1 == b - 1
    assert OPENVLA.encode([below]) == b


@given(hnp.arrays(np.float32, hnp.array_shapes(max_dims=3), elements=any_float32), counts)
def test_encode_equals_digitize_anywhere(x, count):
    for bins in (ActionBins("openvla", count), ActionBins("uniform", count)):
        np.testing.assert_array_equal(bins.encode(x), reference(bins, x))


@given(st.floats(-1, 1, width=32), counts)
def test_round_trip_errs_by_half_an_interval(value, count):
    for bins in (ActionBins("openvla", count), ActionBins("uniform", count)):
        x = np.array([value], np.float32)
        width = bins.edges[1] - bins.edges[0]
        assert abs(bins.decode(bins.encode(x))[0] - value) <= width / 2 + 1e-7


@given(counts)
def test_centres_encode_to_their_bin(count):
    uniform, openvla = ActionBins("uniform", count), ActionBins("openvla", count)
    np.testing.assert_array_equal(uniform.encode(uniform.decode(np.arange(count))), np.arange(count))
    # OpenVLA's last bin decodes into the interval below it
    np.testing.assert_array_equal(
        openvla.encode(openvla.decode(np.arange(count))), np.minimum(np.arange(count), count - 2)
    )


def test_openvla_centres():
    decoded = OPENVLA.decode(np.array([0, 127, 254, 255], np.uint8))
    assert decoded.dtype == np.float32
    np.testing.assert_allclose(decoded, [-254 / 255, 0, 254 / 255, 254 / 255], atol=1e-7)


@pytest.mark.parametrize("bins", [OPENVLA, UNIFORM, ActionBins("openvla", 2)])
def test_bins_are_adjacent(bins):
    assert len(bins.low) == len(bins.high) == len(bins.centers) == bins.count
    assert bins.low[0] == -1
    assert bins.high[-1] == 1
    np.testing.assert_array_equal(bins.low[1:], bins.high[:-1])


def test_empty_arrays_keep_their_shape():
    assert OPENVLA.encode(np.empty((0, 7), np.float32)).shape == (0, 7)
    assert OPENVLA.decode(np.empty((0, 7), np.uint8)).shape == (0, 7)


def test_nan_is_reported_with_its_index():
    x = np.zeros((6000, 7), np.float32)
    x[5000, 2] = np.nan
    with pytest.raises(DataError, match=r"index \(5000, 2\)"):
        OPENVLA.encode(x)


def test_invalid_arguments():
    with pytest.raises(ConfigError, match="Did you mean 'uniform'"):
        ActionBins("unifrom")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"2 \.\. 256"):
        ActionBins("openvla", 257)
    with pytest.raises(DataError, match=r"0 \.\. 15"):
        ActionBins("uniform", 16).decode(np.array([16]))
    with pytest.raises(DataError, match="expected integer bins"):
        OPENVLA.decode(np.array([0.5]))


def test_bins_are_the_same_in_every_release():
    x = np.array([-1, -0.5, -0.1, 0, 1e-3, 0.1, 0.5, 0.9961, 1], np.float32)
    assert OPENVLA.encode(x).tolist() == [0, 63, 114, 127, 127, 140, 191, 254, 255]
    assert UNIFORM.encode(x).tolist() == [0, 64, 115, 128, 128, 140, 192, 255, 255]
    b = np.array([0, 64, 254, 255])
    assert OPENVLA.decode(b).tolist() == [-0.9960784316062927, -0.4941176474094391, *[0.9960784316062927] * 2]
    assert UNIFORM.decode(b).tolist() == [-0.99609375, -0.49609375, 0.98828125, 0.99609375]
