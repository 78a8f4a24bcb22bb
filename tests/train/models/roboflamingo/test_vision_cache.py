"""Cached tokens: identical values, within the limit, for one tower only."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from oxe_curate.errors import ConfigError
from oxe_curate.train.data.mixed import MixedImages
from oxe_curate.train.loop.validate import to_device
from oxe_curate.train.models.roboflamingo.vision_cache import VisionCache, key_of
from oxe_curate.train.models.roboflamingo.vit import ClipShape, ClipTower
from tests.train import mixtures
from tests.train.models.roboflamingo.test_family import FORM, made, some, with_texts, write_base

SHAPE = ClipShape(width=8, layers=1, heads=2, patch=14, image_size=28, mlp_width=8)
ENTRY = 4 * 8 * 4


def tower(seed: int = 0) -> ClipTower:
    torch.manual_seed(seed)
    return ClipTower(SHAPE)


def entries(count: int) -> tuple[list[bytes], torch.Tensor]:
    images = np.arange(count * 12, dtype=np.uint8).reshape(count, 2, 2, 3)
    return [key_of(image) for image in images], torch.randn(count, 4, 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_entries_round_trip(tmp_path: Path, dtype: torch.dtype) -> None:
    cache = VisionCache.open(tmp_path, tower().to(dtype), 1 << 20)
    keys, tokens = entries(3)
    cache.write(keys[:2], tokens[:2].to(dtype))
    cache.flush()
    for reader in (cache, pickle.loads(pickle.dumps(cache)), VisionCache.open(tmp_path, tower().to(dtype), 1 << 20)):
        places, found = reader.read(keys[::-1])
        assert places == [1, 2]
        assert torch.equal(found, tokens[:2].flip(0).to(dtype))


def test_stops_at_the_limit(tmp_path: Path) -> None:
    cache = VisionCache.open(tmp_path, tower(), 2 * ENTRY)
    keys, tokens = entries(3)
    cache.write(keys, tokens)
    cache.flush()
    assert cache.read(keys)[0] == [0, 1]
    again = VisionCache.open(tmp_path, tower(), 2 * ENTRY)
    again.write(keys[2:], tokens[2:])
    again.flush()
    assert again.read(keys)[0] == [0, 1]


def test_rewriting_an_entry_uses_no_more_space(tmp_path: Path) -> None:
    cache = VisionCache.open(tmp_path, tower(), 2 * ENTRY)
    keys, tokens = entries(2)
    for which in (keys[:1], keys[:1], keys):
        cache.write(which, tokens[: len(which)])
        cache.flush()
    assert cache.read(keys)[0] == [0, 1]


def test_rejects_another_tower(tmp_path: Path) -> None:
    VisionCache.open(tmp_path, tower(), ENTRY)
    with pytest.raises(ConfigError, match=r"another vision tower or type \(different tower\)"):
        VisionCache.open(tmp_path, tower(1), ENTRY)
    with pytest.raises(ConfigError, match="dtype"):
        VisionCache.open(tmp_path, tower().bfloat16(), ENTRY)


def test_truncated_entry_is_rewritten(tmp_path: Path) -> None:
    cache = VisionCache.open(tmp_path, tower(), 1 << 20)
    keys, tokens = entries(1)
    cache.write(keys, tokens)
    cache.flush()
    file = next(p for p in tmp_path.glob("*/*"))
    file.write_bytes(file.read_bytes()[:-1])
    assert cache.read(keys)[0] == []


def test_keys_depend_on_the_pixels() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    other = image.copy()
    other[3, 3, 2] = 1
    assert key_of(image) == key_of(image.copy()) != key_of(other)


def test_training_from_the_cache_is_exact(tmp_path: Path) -> None:
    mixture = mixtures.build(mixtures.index(tmp_path), tmp_path / "mix", FORM, 60_000)
    base = write_base(tmp_path / "base")
    plain, cached = made(base, mixture), made(base, mixture, flamingo={"cache_vision": True})
    rows = some(mixture, plain, 4)
    for model in (plain, cached):
        model.eval()
    looked = []
    look = cached.flamingo.encode_images
    cached.flamingo.encode_images = lambda pixels: (looked.append(len(pixels)), look(pixels))[1]  # type: ignore[method-assign]
    results = []
    for model in (plain, cached, cached):
        model.zero_grad()
        out = model(**model.collator(rows))
        out["loss"].backward()
        results.append((out["loss"].detach(), model.flamingo.perceiver.latents.grad.clone()))
        if model._cache is not None:
            model._cache.flush()
    assert len(looked) == 1, "the second pass computes nothing"

    for other in results[1:]:
        assert torch.equal(other[0], results[0][0])
        torch.testing.assert_close(other[1], results[0][1])


def test_a_cache_is_known_again_in_every_release(tmp_path: Path) -> None:
    """Another key or description would make a cache on disk useless, or refuse it."""
    assert key_of(np.arange(12, dtype=np.uint8).reshape(2, 2, 3)).hex() == "8afe4b29c4b81126697602f01ab96cd9"
    even = tower()
    for value in even.state_dict().values():
        value.fill_(0.5)
    VisionCache.open(tmp_path, even, 1 << 20)
    assert json.loads((tmp_path / "cache.json").read_text()) == {
        "tower": "593d4d0372c5eb54017b81208ef21056d8bdf7b7a467eb3e894cf717c509a217",
        "preprocessing": "uint8 RGB / 255, CLIP mean and std, no augmentation",
        "image_size": 28,
        "shape": [4, 8],
        "dtype": "float32",
    }


def test_images_that_the_device_resizes_are_cached_too(tmp_path: Path) -> None:
    mixture = mixtures.build(mixtures.index(tmp_path), tmp_path / "mix", FORM, 60_000)
    base = write_base(tmp_path / "base")
    plain, cached = made(base, mixture), made(base, mixture, flamingo={"cache_vision": True})
    looked = []
    look = cached.flamingo.encode_images
    cached.flamingo.encode_images = lambda pixels: (looked.append(len(pixels)), look(pixels))[1]  # type: ignore[method-assign]
    with torch.no_grad():
        expected = plain.eval()(**plain.collator(with_texts(some(mixture, plain, 4))))
        cached.eval()
        for count in (4, 4, 5):  # the fifth sample is new, the others are not
            rows = with_texts(some(mixture, cached, count, mixed=True))
            assert isinstance(rows.images, MixedImages)
            batch = cached.collator(rows)
            found = cached(**to_device(batch, torch.device("cpu")))
            cached._cache.flush()
            if count == 4:
                assert all(torch.equal(found[name], value) for name, value in expected.items() if value == value)
    seen = 2 * rows.observation_mask.sum(1)
    assert looked == [seen[:4].sum(), 2, 2, seen[4], 2]  # twos: the images of texts are not cached


def test_keys_of_resized_images_depend_on_the_resizing() -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    keys = {key_of(image), *(key_of(image, rule) for rule in ("(4, 6, 3) bicubic 28", "(6, 4, 3) bicubic 28"))}
    assert len(keys) == 3
