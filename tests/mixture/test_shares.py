import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxe_curate.errors import ConfigError
from oxe_curate.mixture import shares
from oxe_curate.mixture.members import members
from oxe_curate.mixture.shares import breakdown
from oxe_curate.mixture.spec import Mixture, MixtureEntry

SETS = st.lists(st.tuples(st.floats(1e-3, 1e3), st.integers(1, 10**8)), min_size=2, max_size=30)


def columns(sets: list[tuple[float, int]]) -> tuple[np.ndarray, np.ndarray]:
    weights, steps = zip(*sets, strict=True)
    return np.array(weights), np.array(steps, np.float64)


def test_share_is_weight_times_steps() -> None:
    np.testing.assert_allclose(shares.shares([1, 2, 0.5], [100, 100, 200]), [0.25, 0.5, 0.25])


def test_magic_soups_balance_of_fractal_and_kuka() -> None:
    # OpenVLA's weights give the two large Google sets equal shares
    fractal, kuka = shares.shares([0.54087122203, 0.8341046294], [3786400, 2455879])
    assert fractal == pytest.approx(kuka, rel=1e-3)


def test_an_unknown_size_is_excluded_from_the_shares() -> None:
    np.testing.assert_equal(shares.shares([1, 1, 1], [10, np.nan, 30]), [0.25, np.nan, 0.75])


def test_epochs() -> None:
    np.testing.assert_allclose(shares.epochs([1, 2], [100, 50], 400), [2, 4])


@given(SETS, st.floats(1, 1e9))
def test_weights_to_shares_and_back(sets: list[tuple[float, int]], samples: float) -> None:
    weights, steps = columns(sets)
    back = shares.weights_for_shares(shares.shares(weights, steps), steps, float(weights @ steps))
    np.testing.assert_allclose(back, weights, rtol=1e-12)


@given(SETS, st.floats(1, 1e9))
def test_weights_to_epochs_and_back(sets: list[tuple[float, int]], samples: float) -> None:
    weights, steps = columns(sets)
    seen = shares.epochs(weights, steps, samples)
    assert float(seen @ steps) == pytest.approx(samples)
    np.testing.assert_allclose(shares.weights_for_epochs(seen, steps, float(weights @ steps)), weights, rtol=1e-12)


@given(SETS, st.floats(0.01, 0.99), st.data())
def test_one_share_is_set_and_the_other_weights_stay(
    sets: list[tuple[float, int]], share: float, data: st.DataObject
) -> None:
    weights, steps = columns(sets)
    row = data.draw(st.integers(0, len(sets) - 1))
    new = shares.with_share(weights, steps, row, share)
    assert shares.shares(new, steps)[row] == pytest.approx(share)
    np.testing.assert_array_equal(np.delete(new, row), np.delete(weights, row))


def test_one_data_sets_epochs_and_hours_are_set() -> None:
    new = shares.with_epochs([1, 1], [100, 100], 0, 3, samples=400)
    np.testing.assert_allclose(shares.epochs(new, [100, 100], 400), [3, 1])
    assert shares.with_hours([1, 1], [3600, 100], 0, 2, control_hz=5)[0] == 10


@given(SETS, st.floats(0.01, 0.5), st.data())
def test_rebalance_keeps_the_pass_and_the_locked(
    sets: list[tuple[float, int]], share: float, data: st.DataObject
) -> None:
    weights, steps = columns(sets)
    before = shares.shares(weights, steps)
    row = data.draw(st.integers(0, len(sets) - 1))
    locked = data.draw(st.sets(st.integers(0, len(sets) - 1)))
    free = [i for i in range(len(sets)) if i != row and i not in locked]
    held = sum(before[i] for i in range(len(sets)) if i != row and i in locked)
    if not free or 1 - held - share <= 1e-6:
        return
    new = shares.rebalance(weights, steps, row, share, locked)
    assert new @ steps == pytest.approx(weights @ steps)
    after = shares.shares(new, steps)
    assert after[row] == pytest.approx(share)
    for i in locked - {row}:
        assert new[i] == pytest.approx(weights[i])


def test_impossible_shares_and_epochs_are_rejected() -> None:
    with pytest.raises(ConfigError, match="locked data sets have 66"):
        shares.rebalance([1, 1, 1], [1, 1, 1], 0, 0.5, locked={1, 2})
    with pytest.raises(ConfigError, match="are more than 100 samples"):
        shares.with_epochs([1, 1], [100, 100], 0, 3, samples=100)
    with pytest.raises(ConfigError, match="data set 2 is unknown"):
        shares.weights_for_shares([1, 1], [1, np.nan])
    with pytest.raises(ConfigError, match="between 0 and 1"):
        shares.with_share([1, 1], [1, 1], 0, 1.0)


def mixture(**weights: float) -> Mixture:
    return Mixture(name="m", datasets=tuple(MixtureEntry(name=n, weight=w) for n, w in weights.items()))


def test_published_counts_are_used_and_marked() -> None:
    m = mixture(fractal20220817_data=0.5, bridge_dataset=1.0)
    result = breakdown(m, members(m), samples=1_000_000)
    fractal, bridge = result.rows
    assert (fractal.steps, fractal.episodes, fractal.origin) == (3786400, 87212, "published")
    assert fractal.hours == pytest.approx(3786400 / 3 / 3600)
    assert (bridge.card, bridge.episodes) == ("bridge_orig", None)
    assert fractal.share == pytest.approx(0.5 * 3786400 / (0.5 * 3786400 + 2135463))
    # a twentieth is held out
    assert bridge.epochs == pytest.approx(1_000_000 * bridge.share / (2135463 * 0.95))
    assert result.one_pass == pytest.approx(0.95 * (0.5 * 3786400 + 2135463))
    assert result.unknown == ()


def test_numbers_of_unknown_sizes_are_none() -> None:
    m = mixture(viola=1.0, rh20t=1.0)
    viola, rh20t = breakdown(m, members(m), samples=1000).rows
    assert (rh20t.steps, rh20t.hours, rh20t.share, rh20t.epochs) == (None, None, None, None)
    assert rh20t.origin == "unknown"
    assert viola.share == 1.0
    assert breakdown(m, members(m)).unknown == ("rh20t",)
    assert breakdown(m, members(m)).hours is None
