from dataclasses import replace

import pytest

from oxe_curate.errors import ConfigError
from oxe_curate.mixture import diversity
from oxe_curate.mixture.survey import Survey

PLAIN = Survey(
    episodes=100, steps=2500, median_steps=25, tasks=16, effective_tasks=16, sampled=100, effective_scenes=4,
    coverage=0.5, duplicates=0.0,
)  # fmt: skip


def test_by_hand() -> None:
    assert diversity.variety_of(PLAIN) == pytest.approx(8 * 0.5)
    assert diversity.variety_of(replace(PLAIN, duplicates=0.25)) == pytest.approx(3)
    assert diversity.quantity_of(PLAIN) == pytest.approx(500)


def test_equal_data_sets_have_weight_one() -> None:
    result = diversity.weights({"a": PLAIN, "b": PLAIN})
    assert [r.weight for r in result.values()] == [1.0, 1.0]
    assert "a is drawn as often as by size only" in result["a"].reason


def test_more_of_the_same_counts_by_its_square_root() -> None:
    twice = replace(PLAIN, episodes=200, steps=5000)
    result = diversity.weights({"a": PLAIN, "b": twice})
    shares = {n: (r.weight or 0) * s.steps for (n, r), s in zip(result.items(), (PLAIN, twice), strict=True)}
    assert shares["b"] / shares["a"] == pytest.approx(2**0.5, rel=1e-3)
    assert sum(shares.values()) == pytest.approx(7500, rel=1e-3)  # one pass is as large as the data


def test_more_new_data_counts_in_full() -> None:
    more = replace(PLAIN, episodes=200, steps=5000, effective_tasks=32, effective_scenes=8)
    result = diversity.weights({"a": PLAIN, "b": more})
    assert result["a"].weight == result["b"].weight


@pytest.mark.parametrize(
    "richer",
    [{"effective_tasks": 30.0}, {"effective_scenes": 9.0}, {"coverage": 0.9}],
)
def test_every_kind_of_variety_raises_the_weight(richer: dict[str, float]) -> None:
    result = diversity.weights({"a": PLAIN, "b": replace(PLAIN, **richer)})  # type: ignore[arg-type]
    assert (result["b"].weight or 0) > 1 > (result["a"].weight or 0)


def test_duplicates_and_long_episodes_lower_the_weight() -> None:
    result = diversity.weights({"a": PLAIN, "b": replace(PLAIN, duplicates=0.5)})
    assert (result["b"].weight or 0) < 1
    slow = replace(PLAIN, median_steps=100, steps=10000)
    result = diversity.weights({"a": PLAIN, "b": slow})
    assert (result["b"].weight or 0) < (result["a"].weight or 0)


def test_the_limit_and_the_scale() -> None:
    small = replace(PLAIN, episodes=4, steps=100, effective_tasks=4)
    result = diversity.weights({"big": replace(PLAIN, episodes=10**6, steps=25 * 10**6), "small": small})
    assert result["small"].weight == diversity.MAX_WEIGHT
    assert "limited to 3 copies" in result["small"].reason
    half = diversity.weights({"a": PLAIN, "b": PLAIN}, one_pass=2500)
    assert half["a"].weight == 0.5
    assert "as often as by size only" in half["a"].reason


def test_a_data_set_without_variety_is_removed_unless_all_are() -> None:
    narrow = replace(PLAIN, tasks=1, effective_tasks=1, effective_scenes=1.2)
    result = diversity.weights({"a": PLAIN, "narrow": narrow})
    assert result["narrow"].weight is None
    assert "narrow is removed, for lack of variety: 100 episodes of 25 steps with 1 task (" in result["narrow"].reason
    assert diversity.weights({"narrow": narrow})["narrow"].weight == 1.0
    with pytest.raises(ConfigError, match="no data set"):
        diversity.weights({})
