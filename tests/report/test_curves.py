"""Curves that keep every extreme."""

import numpy as np

from oxe_curate.report.curves import curves, reduced


def test_a_short_episode_keeps_its_values():
    values = np.float32([[1, np.inf], [2, 5], [4, np.nan]])
    assert np.array_equal(reduced(values), [[1, np.nan], [2, 5], [4, np.nan]], equal_nan=True)


def test_a_long_one_keeps_a_spike_of_one_step_in_its_place():
    values = np.zeros((10_000, 2), np.float32)
    values[7003, 0], values[7001, 0], values[40, 1] = 9, -3, np.nan
    found = reduced(values, 100)
    assert found.shape == (100, 2)
    (high,), (low,) = np.flatnonzero(found[:, 0] == 9), np.flatnonzero(found[:, 0] == -3)
    assert (low, high) == (70, 71)  # the lower one comes first
    assert np.isfinite(found).all()
    assert reduced(-values, 100)[70:72, 0].tolist() == [3, -9]


def test_a_part_without_finite_values_is_a_gap():
    values = np.ones((1000, 1), np.float32)
    values[500:600] = np.inf
    assert np.flatnonzero(np.isnan(reduced(values, 100)[:, 0])).tolist() == list(range(50, 60))


def test_curves_are_whole_numbers_with_their_range():
    x, y = curves(np.float32([[0, 7], [0.5, 7], [2, 7], [np.nan, 7]]), ["x"])
    assert x == {"label": "x", "low": 0, "high": 2, "points": [0, 25, 100, None]}
    assert y == {"label": "1", "low": 7, "high": 7, "points": [50, 50, 50, 50]}
    assert curves(np.empty((0, 7))) == []
