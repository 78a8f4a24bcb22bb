"""Reductions over the steps of each episode."""

import numpy as np

from oxe_curate.quality.segments import delayed, head_each, peak_each, runs, sum_each, window_sums
from tests.quality.arms import batch_of

STARTS = np.array([0, 3, 4, 8])
ROW = np.array([1.0, 5, 2, 7, 0, 3, 3, 1])
BATCH = batch_of([(np.zeros((n, 7), np.float32), np.zeros((n, 1), np.float32)) for n in (3, 1, 4)])


def test_sums_and_peaks_are_those_of_each_episode() -> None:
    assert sum_each(ROW, STARTS).tolist() == [8, 7, 7]
    top, step = peak_each(ROW, STARTS)
    assert (top.tolist(), step.tolist()) == ([5, 7, 3], [1, 0, 1])


def test_runs_end_with_the_episode() -> None:
    mask = np.array([0, 1, 1, 1, 1, 1, 0, 1], bool)
    assert runs(mask, STARTS).tolist() == [0, 1, 2, 1, 1, 2, 0, 1]
    assert head_each(mask, STARTS).tolist() == [0, 1, 2]


def test_shifted_rows_and_windows_stay_in_their_episode() -> None:
    assert delayed(ROW, 1, BATCH).tolist() == [0, 1, 5, 0, 0, 0, 3, 3]
    assert delayed(ROW, -2, BATCH).tolist() == [2, 0, 0, 0, 3, 1, 0, 0]
    assert window_sums(ROW, 2, BATCH).tolist() == [6, 0, 0, 0, 3, 6, 0, 0]
