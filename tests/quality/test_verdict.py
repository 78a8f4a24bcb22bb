"""The worst of several tests decides."""

import numpy as np
import pytest

from oxe_curate.quality.limits import robust_limit
from oxe_curate.quality.verdict import factor_limit, judged, worst


def test_the_test_that_exceeds_its_limit_most_decides() -> None:
    value, limit, which = worst([(np.array([1.0, 8.0, np.nan]), 4.0), (np.array([0.3, 0.1, np.nan]), 0.1)])
    assert value[:2] == pytest.approx([12, 8])
    assert np.isnan(value[2])
    assert (limit, which[:2].tolist()) == (4.0, [1, 0])


def test_nothing_is_judged_without_a_limit() -> None:
    value, limit, _ = worst([(np.array([1.0, 2.0]), float("inf"))])
    assert np.isnan(value).all()
    assert limit == np.inf


def test_words_are_those_of_the_episodes_above_the_limit() -> None:
    found = judged(np.array([1.0, 3.0, 2.5]), 2.0, lambda i: f"number {i}")
    assert [found.detail(i) for i in range(3)] == ["", "number 1", "number 2"]


def test_a_limit_of_factors_is_far_from_the_usual_factor() -> None:
    value = np.exp(np.random.default_rng(0).normal(0, 0.1, 200))
    assert 1.5 < factor_limit(value, least=1.2) < 2.5
    assert factor_limit(value, least=3) == pytest.approx(3)


def test_a_long_tail_does_not_raise_a_limit_without_bound() -> None:
    value = np.concatenate([np.zeros(60), np.full(40, 9.0)])
    assert robust_limit(value, least=1) > 50
    assert robust_limit(value, least=1, within=2) == 18
