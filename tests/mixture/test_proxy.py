import sys

import numpy as np
import pytest

from oxe_curate.errors import ConfigError
from oxe_curate.mixture import proxy
from oxe_curate.mixture.proxy_data import CLASSES, WORDS, Examples, bag_of_words

SETTINGS = proxy.ProxySettings(steps=50, batch=48, width=32, learning_rate=2e-3)


def examples(kind: str, seed: int, n: int = 200) -> Examples:
    """Images of a bar; actions that are constant, follow the position of the bar, or are random."""
    rng = np.random.default_rng(seed)
    place = rng.integers(0, 4, n)
    frames = np.zeros((n, 32, 32, 3), np.uint8)
    for i, p in enumerate(place):
        frames[i, :, 8 * p : 8 * p + 8, seed % 3] = 255
    classes = {
        "same": np.full((n, 7), 5),
        "learnable": np.repeat(8 * place[:, None], 7, axis=1),
        "lots": rng.integers(0, CLASSES, (n, 7)),
    }[kind]
    return Examples(frames, np.zeros((n, WORDS), np.float32), classes, np.arange(n) % 5 == 4)


@pytest.fixture(scope="module")
def sets() -> list[Examples]:
    return [examples("same", 0), examples("lots", 1), examples("learnable", 2)]


@pytest.fixture(scope="module")
def result(sets: list[Examples]) -> proxy.ProxyResult:
    pytest.importorskip("torch")
    return proxy.optimise(sets, [1, 1, 1], seed=0, settings=SETTINGS)


def test_learnable_data_is_drawn_more_than_noise_or_easy_data(result: proxy.ProxyResult) -> None:
    same, lots, learnable = result.shares
    assert learnable > max(same, lots) + 0.03
    assert result.shares.sum() == pytest.approx(1)
    assert result.reference[1] > np.log(CLASSES) - 0.5  # nothing to learn
    assert result.reference[2] < 1.0


def test_a_seed_determines_everything(sets: list[Examples]) -> None:
    pytest.importorskip("torch")
    short = proxy.ProxySettings(steps=8, batch=24, width=16)
    first, again, other = (proxy.optimise(sets, [1, 1, 1], seed, short) for seed in (0, 0, 1))
    np.testing.assert_array_equal(again.shares, first.shares)
    np.testing.assert_array_equal(again.excess, first.excess)
    assert not np.array_equal(other.shares, first.shares)


def test_without_excess_loss_shares_are_by_size(sets: list[Examples]) -> None:
    pytest.importorskip("torch")
    still = proxy.ProxySettings(steps=3, batch=8, width=8, robust_rate=0.0)
    np.testing.assert_allclose(proxy.optimise(sets[:2], [3, 1], settings=still).shares, [0.75, 0.25])


def test_the_state_of_torch_is_unchanged(sets: list[Examples]) -> None:
    torch = pytest.importorskip("torch")
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    proxy.optimise(sets[:1], [1], settings=proxy.ProxySettings(steps=1, batch=4, width=8))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.get_num_threads() == threads


def test_bag_of_words() -> None:
    np.testing.assert_array_equal(bag_of_words("Open the door!"), bag_of_words("door the OPEN"))
    assert np.linalg.norm(bag_of_words("open")) == pytest.approx(1)
    assert not bag_of_words("").any()


def test_too_few_episodes_and_a_missing_torch_are_reported(
    sets: list[Examples], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Examples(sets[0].frames[:4], sets[0].words[:4], sets[0].classes[:4], np.zeros(4, bool))
    with pytest.raises(ConfigError, match="data set 2: too few episodes"):
        proxy.optimise([sets[0], one], [1, 1])
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigError, match=r"oxe-curate\[train\]"):
        proxy.optimise(sets, [1, 1, 1])


def test_words_have_the_same_buckets_in_every_release() -> None:
    assert [int(bag_of_words(word).argmax()) for word in ("open", "the", "door", "öffne")] == [159, 135, 21, 36]
