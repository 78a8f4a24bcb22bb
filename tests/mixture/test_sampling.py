from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxe_curate.mixture import sampling as samples

ONE, OTHER = "bridge_dataset/1.0.0/train/00000/00001", "kuka/0.1.0/test/00123/00456"
EPISODES = [f"bridge_dataset/1.0.0/train/00000/{n:05d}" for n in range(24)]
ids = st.integers(0, 10**6).map(lambda n: f"bridge/1.0.0/train/00000/{n:05d}")


@given(st.floats(0.01, 5), st.integers(0, 99), ids)
def test_copies_are_the_whole_part_and_at_most_one_more(weight: float, seed: int, episode: str) -> None:
    drawn = samples.copies(weight, seed, episode, 50)
    assert set(drawn.tolist()) <= {int(weight), int(weight) + 1}
    assert np.array_equal(drawn, samples.copies(weight, seed, episode, 50))
    assert np.array_equal(drawn[:20], samples.copies(weight, seed, episode, 20))  # independent of the length


@pytest.mark.parametrize("weight", [0.06, 0.54087122203, 1.0, 2.5])
def test_copies_are_correct_in_expectation(weight: float) -> None:
    total = sum(samples.copies(weight, 0, f"d/1/train/0/{i}", 100).sum() for i in range(200))
    spread = np.sqrt(20_000 * (weight % 1) * (1 - weight % 1))
    assert abs(total - 20_000 * weight) <= 4 * spread


def test_a_larger_weight_never_loses_a_sample() -> None:
    some, more = (samples.copies(w, 3, "d/1/train/0/1", 500) for w in (0.2, 0.3))
    assert (some <= more).all()
    assert some.sum() < more.sum()


def test_a_validation_sample_is_drawn_at_most_once() -> None:
    assert samples.copies(2.7, 0, "e", 9, validation=True).tolist() == [1] * 9
    part = samples.copies(0.3, 0, "e", 900, validation=True)
    assert np.array_equal(part, samples.copies(0.3, 0, "e", 900))


def test_the_seed_changes_the_draw_but_not_the_validation_split() -> None:
    names = [f"d/1/train/0/{i}" for i in range(2000)]
    assert not np.array_equal(samples.copies(0.5, 0, names[0], 99), samples.copies(0.5, 1, names[0], 99))
    held = samples.held_out(names, 0.05)
    assert 60 < held.sum() < 140
    assert (held <= samples.held_out(names, 0.1)).all()
    assert not samples.held_out(names, 0.0).any()


def test_episodes_spread_evenly_over_shards() -> None:
    counts = np.bincount(samples.output_shards(0, [f"d/1/train/0/{i}" for i in range(4000)], 8), minlength=8)
    assert counts.min() > 400
    assert len(counts) == 8


def test_splitmix64_equals_the_published_values() -> None:
    # first outputs for seed 1234567 of Vigna's splitmix64.c: the state advances by gamma before each output
    state = np.array([1234567, 1234567 + 0x9E3779B97F4A7C15], np.uint64)
    assert samples.splitmix64(state).tolist() == [6457827717110365317, 3203168211198807973]


def test_windows_look_back_and_repeat_the_first_step() -> None:
    steps, mask = samples.windows(np.array([0, 1, 4]), 3)
    assert steps.tolist() == [[0, 0, 0], [0, 0, 1], [2, 3, 4]]
    assert mask.tolist() == [[False, False, True], [False, True, True], [True, True, True]]


def test_chunks_look_ahead_and_repeat_the_last_step() -> None:
    steps, mask = samples.chunks(np.array([0, 3, 4]), 3, 5)
    assert steps.tolist() == [[0, 1, 2], [3, 4, 4], [4, 4, 4]]
    assert mask.tolist() == [[True, True, True], [True, True, False], [True, False, False]]


@given(st.integers(0, 40), st.integers(1, 14), st.data())
def test_every_step_is_in_a_window_and_the_last_one_ends_one(steps: int, window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window))
    ends = samples.window_ends(steps, stride)
    assert len(ends) == -(-steps // stride)
    assert np.all(np.diff(ends) == stride)
    seen, mask = samples.windows(ends, window)
    assert set(seen[mask].tolist()) == set(range(steps))
    assert steps == 0 or ends[-1] == steps - 1
    assert samples.stored_frames(np.array([steps]), window, stride).tolist() == [mask.sum()]


def test_the_actions_of_a_window_are_those_of_its_steps_and_the_chunk_after() -> None:
    index, mask = samples.chunks(np.array([1, 4]), 2, 5, window=3)
    assert index.tolist() == [[0, 0, 1, 2], [2, 3, 4, 4]]
    assert mask.tolist() == [[False, True, True, True], [True, True, True, False]]
    seen, seen_mask = samples.windows(np.array([1, 4]), 3)
    assert np.array_equal(index[:, :3], seen)  # each observation and its first action are of the same step
    assert np.array_equal(mask[:, :3], seen_mask)


def draw(weight: float, seed: int, name: str, num_steps: int, **options: Any) -> tuple[Any, Any]:
    found = samples.draw(np.array([weight]), seed, [name], np.array([num_steps]), **options)
    return found.steps, found.copies


def test_draw_repeats_the_windows_ends() -> None:
    steps, copy = draw(2.0, 0, "a/b", 7, stride=3)
    assert steps.tolist() == [0, 0, 3, 3, 6, 6]
    assert copy.tolist() == [0, 1, 0, 1, 0, 1]
    every, _ = draw(0.5, 0, "a/b", 100)
    some, _ = draw(0.5, 0, "a/b", 100, stride=3)
    assert some.tolist() == [
        s for s in every.tolist() if s % 3 == 0
    ]  # the draw of a step does not depend on the stride


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("validation", [False, True])
def test_the_draw_of_an_episode_does_not_depend_on_the_others(stride: int, validation: bool) -> None:
    names, lengths, weights = ["a", "b", "c", "d"], np.array([5, 0, 7, 40]), np.array([1.5, 2.0, 0.4, 3.0])
    found = samples.draw(weights, 9, names, lengths, stride=stride, validation=validation)
    for i, (name, length, weight) in enumerate(zip(names, lengths.tolist(), weights.tolist(), strict=True)):
        part = slice(found.limits[i], found.limits[i + 1])
        ends = samples.window_ends(length, stride)
        times = samples.copies(weight, 9, name, length, validation)[ends]
        assert found.steps[part].tolist() == np.repeat(ends, times).tolist()
        assert found.copies[part].tolist() == [copy for n in times.tolist() for copy in range(n)]
        keys = samples.order_keys(9, name, length, found.steps[part], found.copies[part])
        assert found.keys[part].tolist() == keys.tolist()


def test_order_is_a_permutation_of_the_rows_by_their_hashes() -> None:
    keys = np.arange(1000, dtype=np.uint64)
    order = samples.order(keys)
    assert sorted(order.tolist()) == list(range(1000))
    assert not np.array_equal(order, np.arange(1000))
    shuffled = np.random.default_rng(0).permutation(1000)
    assert np.array_equal(keys[order], keys[shuffled][samples.order(keys[shuffled])])  # in any order


@pytest.mark.parametrize(
    ("seed", "episode", "expected"),
    [
        (0, ONE, 0x715D71BB558BF698),
        (1, ONE, 0xDABF9191D908DA50),
        (None, ONE, 0x1B7F8A24441A6BCE),
        (0, OTHER, 0xA0E1E0BD017B1520),
        (0, "", 0xF797E1D880B72D40),
    ],
)
def test_an_episodes_hash_is_the_same_in_every_release(seed: int | None, episode: str, expected: int) -> None:
    assert int(samples.episode_hash(seed, episode)) == expected
    assert samples.episode_hashes(seed, [OTHER, episode])[1] == expected


def test_a_steps_hashes_are_the_same_in_every_release() -> None:
    episode = samples.episode_hash(0, ONE)
    assert {
        int(p): [hex(h) for h in samples._step_hashes(episode, 3, p)] for p in (samples._COPIES, samples._ORDER)
    } == {
        1: ["0x546a3c1a307eea6c", "0xf2a1b5d3afc96681", "0x90d92f8d2f13e296"],
        2: ["0xe8fe326e9bf5e87c", "0x8735ac281b406491", "0x256d25e19a8ae0a6"],
    }
    found = samples._hash01(samples._step_hashes(episode, 3, samples._COPIES))
    assert found.tolist() == [0.0796433457529151, 0.3815800913386501, 0.1873948490027597]


@pytest.mark.parametrize(
    ("weight", "seed", "expected"),
    [
        (0.25, 0, [1, 0, 1, 0, 1, 0, 1, 0, 0, 0, 0, 0]),
        (0.25, 7, [0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0]),
        (0.18430682432404022, 0, [1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]),  # the fifth step's own number: not below it
        (1.0, 0, [1] * 12),
        (2.5, 0, [3, 3, 3, 3, 3, 2, 3, 3, 3, 2, 2, 3]),
        (2.5, 7, [2, 3, 2, 3, 3, 3, 2, 2, 2, 2, 2, 2]),
    ],
)
def test_copies_are_the_same_in_every_release(weight: float, seed: int, expected: list[int]) -> None:
    assert samples.copies(weight, seed, ONE, 12).tolist() == expected
    once = samples.copies(weight, seed, ONE, 12, validation=True).tolist()
    assert once == (expected if weight < 1 else [1] * 12)


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.025466537223868158, []),  # the number of episode 4
        (0.05, [4]),
        (0.2, [4, 14, 16, 23]),
        (0.5, [4, 5, 6, 9, 14, 15, 16, 17, 20, 23]),
    ],
)
def test_held_out_samples_are_the_same_in_every_release(share: float, expected: list[int]) -> None:
    assert np.flatnonzero(samples.held_out(EPISODES, share)).tolist() == expected


@pytest.mark.parametrize(
    ("shards", "seed", "expected"),
    [
        (1, 0, [0] * 12),
        (3, 0, [2, 2, 0, 0, 0, 2, 1, 0, 0, 0, 2, 1]),
        (3, 5, [2, 0, 2, 1, 0, 1, 1, 1, 2, 0, 0, 1]),
        (8, 0, [3, 2, 6, 0, 0, 4, 3, 7, 2, 1, 5, 6]),
        (8, 5, [5, 4, 2, 5, 2, 4, 6, 2, 4, 6, 2, 2]),
    ],
)
def test_an_episodes_shard_is_the_same_in_every_release(shards: int, seed: int, expected: list[int]) -> None:
    assert samples.output_shards(seed, EPISODES[:12], shards).tolist() == expected


def test_the_order_is_the_same_in_every_release() -> None:
    keys = np.array([0, 1, 2, 3, 2, 5, 2**63, 2**64 - 1], np.uint64)
    assert samples.order(keys).tolist() == [3, 6, 5, 1, 2, 4, 0, 7]
    equal = samples.order(np.arange(400, dtype=np.uint64) % np.uint64(4))
    assert equal.tolist() == [n for first in (3, 1, 2, 0) for n in range(first, 400, 4)]  # equal hashes as they came


def test_a_draw_is_the_same_in_every_release() -> None:
    assert draw(0.5, 3, ONE, 16, stride=2)[0].tolist() == [3, 7, 9, 13, 15]
    steps, copy = draw(1.5, 0, ONE, 9, stride=4)
    assert (steps.tolist(), copy.tolist()) == ([0, 0, 4, 4, 8, 8], [0, 1, 0, 1, 0, 1])
    steps, copy = draw(1.5, 0, ONE, 9, stride=4, validation=True)
    assert (steps.tolist(), copy.tolist()) == ([0, 4, 8], [0, 0, 0])
