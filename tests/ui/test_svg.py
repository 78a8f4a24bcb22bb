"""Ticks, numbers and bars of the charts."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from oxe_curate.ui import svg


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.5, 1]),
        (-0.013, 0.021, [-0.01, 0, 0.01, 0.02]),
        (0, 37, [0, 10, 20, 30]),
        (0.9, 3.2, [1, 2, 3]),
        (5, 5, [5]),
    ],
)
def test_ticks_are_round_and_at_least_two(low, high, expected):
    assert svg.ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(50))
def test_ticks_lie_within_and_are_few(seed):
    low, span = np.random.default_rng(seed).normal(0, 1), 10.0 ** np.random.default_rng(seed).integers(-6, 7)
    found = svg.ticks(low, low + span)
    assert 2 <= len(found) <= 8
    assert all(low - 1e-6 * span <= t <= low + span * (1 + 1e-6) for t in found)


@pytest.mark.parametrize(
    ("value", "text"),
    [(-0.012345, "−0.0123"), (25, "25"), (0.0, "0"), (-0.0, "0"), (1234567, "1.23e6"), (1e-7, "1e−7")],
)
def test_numbers_have_three_digits_and_a_true_minus(value, text):
    assert svg.number(value) == text


def test_a_bars_height_is_the_square_root_of_its_count():
    chart = svg.histogram("x", np.array([0.0, 1, 2, 3]), np.array([4, 0, 1]), np.array([1, 0, 1]))
    seen, kept = (re.findall(r"v-([\d.]+)h", path) for path in re.findall(r'class="(?:seen|kept)" d="([^"]*)"', chart))
    assert [float(h) for h in seen] == pytest.approx([78, 39])
    assert [float(h) for h in kept] == pytest.approx([39, 39])


def test_a_chart_is_well_formed_and_says_what_it_shows():
    marks = [svg.Mark(0.5, "before"), svg.Mark(9.0, "after")]
    chart = svg.histogram('a "b" <c>', np.linspace(0, 1, 4), np.array([1, 2, 3]), None, marks, "three & bars")
    root = ElementTree.fromstring(chart)
    assert root.find("figcaption").text == 'a "b" <c>'
    assert root.find("svg").get("aria-label") == 'a "b" <c>. three & bars'
    assert len([p for p in root.iter("path") if p.get("class", "").startswith("mark")]) == 1  # the other is outside
