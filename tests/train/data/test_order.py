"""The order of samples: permutations that need no memory, and the same samples however a step is divided."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxe_curate.train.data.order import Shuffle, batch_positions, random_numbers, rows_at, shuffled


@given(st.integers(1, 3000), st.integers(0, 2**31 - 1), st.integers(0, 100))
def test_every_row_appears_once(n, seed, epoch):
    assert np.array_equal(np.sort(shuffled(seed, epoch, n, np.arange(n))), np.arange(n))


def test_places_of_huge_permutations_are_computed_directly():
    n = 30_000_000_000
    places = np.array([0, 1, n // 2, n - 1])
    rows = shuffled(7, 3, n, places)
    assert (rows >= 0).all()
    assert (rows < n).all()
    assert np.array_equal(shuffled(7, 3, n, places[::-1]), rows[::-1])
    with pytest.raises(IndexError):
        shuffled(7, 3, n, [n])


@pytest.mark.parametrize("n", [3, 5])
def test_orders_are_equally_frequent(n):
    """Chi-squared of the first three rows over 600 epochs, below its 0.9999 quantile (Wilson and Hilferty)."""
    found = Counter(tuple(shuffled(5, e, n, np.arange(n))[:3].tolist()) for e in range(600))
    kinds = math.perm(n, 3)
    expected = 600 / kinds
    statistic = sum((c - expected) ** 2 for c in found.values()) / expected + (kinds - len(found)) * expected
    freedom = kinds - 1
    assert statistic < freedom * (1 - 2 / (9 * freedom) + 3.72 * math.sqrt(2 / (9 * freedom))) ** 3


def test_neighbors_are_separated():
    rows = shuffled(0, 0, 100_000, np.arange(100_000))
    assert abs(np.corrcoef(rows[:-1], rows[1:])[0, 1]) < 0.02
    assert (np.abs(np.diff(rows)) < 100).mean() < 0.004  # 0.002 by chance


def test_epochs_and_seeds_differ():
    first, second = rows_at(1, 50, np.arange(100)).reshape(2, 50)
    assert sorted(first) == sorted(second) == list(range(50))
    assert (first != second).sum() > 40
    assert (rows_at(2, 50, np.arange(50)) != first).sum() > 40


def test_random_numbers_depend_on_seed_and_position():
    whole = random_numbers(3, np.arange(20_000))
    assert whole.dtype == np.float32
    assert np.array_equal(whole[100:103], random_numbers(3, [100, 101, 102]))
    assert not np.array_equal(whole, random_numbers(4, np.arange(20_000)))
    assert ((whole >= 0) & (whole < 1)).all()
    assert np.abs(whole.mean(axis=0) - 0.5).max() < 0.01
    assert np.abs(np.corrcoef(whole.T) - np.eye(8)).max() < 0.04


@pytest.mark.parametrize(("world", "batch", "accumulation"), [(1, 24, 1), (4, 6, 1), (2, 4, 3), (3, 1, 8)])
def test_a_step_has_the_same_samples_for_any_division(world, batch, accumulation):
    for step in range(3):
        parts = [
            batch_positions(96, step * accumulation + a, rank, world, batch, accumulation)
            for rank in range(world)
            for a in range(accumulation)
        ]
        assert np.array_equal(np.sort(np.concatenate(parts)), 96 + step * 24 + np.arange(24))


def test_a_resumed_run_continues_with_the_next_sample():
    order = Shuffle(9, 100)
    whole = [order.rows(order.positions(0, step, 0, 1, 16, 1)) for step in range(12)]
    assert np.array_equal(order.rows(order.positions(16 * 5, 3, 0, 1, 16, 1)), whole[8])


@pytest.mark.parametrize(
    ("seed", "epoch", "n", "expected"),
    [
        (0, 0, 10, [0, 5, 6, 9, 1, 8, 3, 2]),
        (0, 1, 10, [5, 1, 0, 4, 2, 6, 7, 8]),
        (1, 0, 10, [3, 0, 8, 7, 4, 6, 1, 9]),
        (1, 0, 128, [97, 76, 84, 63, 56, 43, 31, 69]),
        (7, 3, 100, [99, 35, 97, 29, 18, 70, 8, 98]),
        (0, 0, 1000, [341, 909, 123, 234, 438, 602, 199, 85]),
        (7, 3, 30_000_000_000, [2898531801, 28729289677, 16281741630]),
    ],
)
def test_the_permutation_is_the_same_in_every_release(seed, epoch, n, expected):
    """A resumed run, and the subset that validation takes, depend on it."""
    assert shuffled(seed, epoch, n, np.arange(len(expected))).tolist() == expected


def test_the_endless_sequence_is_the_same_in_every_release():
    assert rows_at(5, 7, np.arange(16)).tolist() == [6, 1, 5, 2, 3, 0, 4, 1, 2, 5, 6, 0, 4, 3, 0, 1]
    positions = np.array([0, 1, 2046, 2047, 2048, 2049])
    assert Shuffle(5, 7).rows(positions).tolist() == rows_at(5, 7, positions).tolist() == [6, 1, 0, 4, 6, 5]
    assert Shuffle(5, 7).positions(100, 5, 1, 2, 3, 2).tolist() == [133, 134, 135]


@pytest.mark.parametrize(
    ("seed", "positions", "expected"),
    [
        (0, [0, 1], [[10451385, 11719064, 7539004], [10539824, 8973052, 11543925]]),
        (7, [123456789, 2**40], [[1684657, 5184251, 10769360], [9800651, 9393975, 2961919]]),
    ],
)
def test_the_numbers_of_augmentation_are_the_same_in_every_release(seed, positions, expected):
    found = random_numbers(seed, positions)
    assert found.shape == (2, 8)
    assert (found[:, :3] * 2**24).tolist() == expected
