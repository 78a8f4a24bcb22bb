"""Displacements, levels, lags and gains on arrays that can be checked by eye."""

import numpy as np
import pytest

from oxe_curate.inspection import matching
from oxe_curate.inspection.series import Columns, correlation, displacements, gain, levels, number_keys, unwrap, varies

ACTION, STATE = Columns("action", 0, 3), Columns("observation/state", 0, 3)


def walk(rng: np.random.Generator, steps: int = 30, width: int = 3) -> np.ndarray:
    return np.cumsum(rng.normal(0, 0.01, (steps, width)), axis=0)


def episodes(make: object, count: int = 8, seed: int = 0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [make(walk(rng)) for _ in range(count)]  # type: ignore[operator]


def test_displacements_sum_the_action_and_shift_the_state_by_the_lag() -> None:
    action, state = np.array([[1.0], [2], [3], [4]]), np.array([[0.0], [1], [3], [6]])
    sums, moves = displacements([action], [state], window=2, lag=0)
    assert sums.ravel().tolist() == [3, 5]
    assert moves.ravel().tolist() == [3, 5]
    assert displacements([action], [state], window=1, lag=1)[1].ravel().tolist() == [2, 3]


def test_displacements_skip_rows_that_are_not_finite_and_short_episodes() -> None:
    action, state = np.array([[1.0], [np.nan], [3], [4]]), np.arange(4.0)[:, None]
    assert len(displacements([action], [state], 1, 0)[0]) == 2
    assert displacements([action[:1]], [state[:1]], 1, 0)[0].shape == (0, 0)


def test_levels_are_centred_by_episode() -> None:
    x, y = levels([np.array([[1.0], [3]])], [np.array([[10.0], [20]])], 0)
    assert x.ravel().tolist() == [-1, 1]
    assert y.ravel().tolist() == [-5, 5]


def test_correlation_is_zero_for_a_constant_column_and_gain_goes_through_the_origin() -> None:
    x = np.array([[1.0, 5], [2, 5], [4, 5]])
    assert correlation(x, 2 * x[:, :1]).ravel().tolist() == pytest.approx([1, 0])
    assert gain(x[:, :1], 2 * x[:, :1]) == 2
    assert gain(np.zeros((3, 1)), x[:, :1]) == 0


def test_varies_ignores_rounding_in_float32() -> None:
    assert varies(np.array([[100.0, 0.0], [100.00001, 1e-4]])).tolist() == [False, True]


def test_unwrap_removes_full_turns_in_radians_and_degrees_but_keeps_metres() -> None:
    assert np.abs(np.diff(unwrap(np.array([[3.1], [-3.1]])), axis=0)).max() < 0.1
    assert np.abs(np.diff(unwrap(np.array([[179.0], [-179.0]])), axis=0)).max() == pytest.approx(2)
    metres = np.array([[0.1], [0.5], [-0.4]])
    assert (unwrap(metres) == metres).all()


def test_number_keys_excludes_embeddings_text_and_images() -> None:
    steps = {
        "observation/state": np.zeros((2, 7), np.float32), "observation/embedding": np.zeros((2, 512), np.float32),
        "observation/depth": np.zeros((2, 16, 16), np.float32), "observation/text": np.array([b"a", b"a"], object),
        "observation/width": np.zeros(2), "action": np.zeros((2, 7)),
    }  # fmt: skip
    assert [str(c) for c in number_keys([steps], "observation/")] == ["observation/state[0:7]", "observation/width[0]"]


@pytest.mark.parametrize("lag", [0, 2])
def test_a_displacement_is_matched_with_its_lag_and_gain(lag: int) -> None:
    def make(path: np.ndarray) -> dict[str, np.ndarray]:
        moved = np.roll(path, lag, axis=0)
        moved[:lag] = path[0]
        return {"action": 50 * np.diff(path, axis=0, append=path[-1:]), "observation/state": moved}

    (m,) = matching.match(episodes(make), ACTION, STATE)
    assert (m.kind, m.lag) == ("delta", lag)
    assert m.gain == pytest.approx(1 / 50, rel=0.05)
    assert m.r > 0.99
    assert m.confidence > 0.7


def test_a_pose_is_matched_as_a_level() -> None:
    def make(path: np.ndarray) -> dict[str, np.ndarray]:
        return {"action": np.vstack([path[1:], path[-1:]]), "observation/state": path}

    (m,) = matching.match(episodes(make), ACTION, STATE)
    assert (m.kind, m.lag) == ("absolute", 1)
    assert m.gain == pytest.approx(1, rel=0.05)


def test_the_columns_are_found_among_others() -> None:
    rng = np.random.default_rng(1)

    def make(path: np.ndarray) -> dict[str, np.ndarray]:
        noise = walk(rng, width=4)
        action = np.diff(path, axis=0, append=path[-1:])
        return {"action": action, "observation/state": np.hstack([noise, path, noise[:, :1]])}

    m = matching.find_position(episodes(make), [ACTION], [Columns("observation/state", 0, 8)])
    assert m is not None
    assert str(m.state) == "observation/state[4:7]"


def test_unrelated_walks_give_no_confidence() -> None:
    rng = np.random.default_rng(2)
    sure = []
    for seed in range(20):
        found = episodes(lambda path: {"action": walk(rng, len(path)), "observation/state": path}, 4, seed)
        sure += [m.confidence for m in matching.match(found, ACTION, STATE)]
    assert np.mean(np.array(sure) >= 0.5) <= 0.05


def test_a_single_moving_axis_is_not_a_position() -> None:
    def make(path: np.ndarray) -> dict[str, np.ndarray]:
        action = np.diff(path, axis=0, append=path[-1:])
        action[:, 1:] = 0
        return {"action": action, "observation/state": path}

    assert matching.match(episodes(make), ACTION, STATE) == []


def test_without_splits_what_is_left() -> None:
    columns = Columns("s", 0, 7)
    assert [str(c) for c in matching.without(columns, Columns("s", 3, 6))] == ["s[0:3]", "s[6]"]
    assert matching.without(Columns("s", 3, 5), Columns("s", 0, 7)) == []
    assert matching.without(columns, Columns("t", 0, 3)) == [columns]
