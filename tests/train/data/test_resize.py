"""Resizing batches: equal to Pillow byte for byte, to TensorFlow within one level, and on every device and setting."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from oxe_curate.train.data import resize
from oxe_curate.train.data.assemble import resize_image
from oxe_curate.train.data.resize import resize_images, resize_matrix

PILLOW = {"bicubic": Image.Resampling.BICUBIC, "lanczos3": Image.Resampling.LANCZOS}
SIZES = [(1, 1), (2, 3), (37, 41), (64, 128), (300, 224), (224, 300), (1, 2000), (2000, 1), (1999, 7), (7, 1999)]


REAL = resize._resize


@pytest.fixture(params=["as on a CPU", "as on a GPU"], autouse=True)
def arithmetic(request, monkeypatch):
    """The arithmetic of either kind of device, on the CPU."""
    split = request.param == "as on a GPU"
    monkeypatch.setattr(resize, "_resize", lambda *args: REAL(*args[:-1], split))


def noise(height, width, seed=0):
    """uint8 (2, H, W, 3): random bytes, and black and white, at which filters overshoot most."""
    values = np.random.default_rng(seed).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    values[1] = np.where(values[1] > 127, 255, 0)
    return values


def resized(images, *options):
    return resize_images(torch.from_numpy(images), *options).numpy()


def test_weights_of_a_line():
    assert np.array_equal(resize_matrix(4, 4, "bicubic"), np.eye(4))
    assert np.allclose(resize_matrix(5, 5, "lanczos3"), np.eye(5), atol=1e-15)
    # half of a pixel between two: the cubic of a = -0.5 at 0.25, 0.75, 1.25 and 1.75
    assert np.allclose(resize_matrix(4, 8, "bicubic")[3], np.array([-9, 111, 29, -3]) / 128)
    for source, target in ((1, 5), (7, 3), (2000, 224), (3, 2000)):
        for kind in PILLOW:
            weights = resize_matrix(source, target, kind)
            assert weights.shape == (target, source)
            assert np.allclose(weights.sum(1), 1)
            assert np.allclose(weights, weights[::-1, ::-1])  # the mirror image


@pytest.mark.parametrize("kind", PILLOW)
@pytest.mark.parametrize("size", [5, 64, 224])
def test_rounded_results_equal_those_of_pillow(kind, size):
    for height, width in SIZES:
        images = noise(height, width)
        expected = [np.asarray(Image.fromarray(image).resize((size, size), PILLOW[kind])) for image in images]
        assert np.array_equal(resized(images, size, kind, True), expected), (height, width)


@pytest.mark.parametrize("kind", PILLOW)
def test_results_without_rounding_are_within_one_level_of_tensorflow(kind):
    cases = json.loads(Path(__file__).with_name("tf_resized.json").read_text())  # made by TensorFlow 2.21
    assert len(cases) == 14
    for case in cases:
        found = resized(np.array([case["image"]], np.uint8), case["size"], kind, False)[0].astype(int)
        assert np.abs(found - case[kind]).max() <= 1


def test_each_filter_follows_its_reference_and_the_loader_agrees():
    images = noise(48, 40)
    for kind, rounded, levels in (("bicubic", True, 0), ("lanczos3", False, 1)):
        found = resized(images, 24, kind)
        assert np.array_equal(found, resized(images, 24, kind, rounded))
        assert not np.array_equal(found, resized(images, 24, kind, not rounded))
        for image, expected in zip(images, found, strict=True):
            assert np.abs(resize_image(Image.fromarray(image), 24, kind) - expected.astype(int)).max() <= levels


@pytest.mark.parametrize(("kind", "rounded", "most"), [("bicubic", True, 0), ("lanczos3", False, 0.001)])
def test_both_kinds_of_arithmetic_agree(kind, rounded, most):
    for height, width in SIZES:
        images = torch.from_numpy(noise(height, width, 1))
        one, two = (REAL(images, 32, kind, rounded, split).int() for split in (False, True))
        distance = (one - two).abs()
        assert distance.max() <= 1
        assert (distance > 0).float().mean() <= most


@pytest.mark.parametrize("kind", PILLOW)
def test_precision_settings_and_other_images_change_nothing(kind):
    images = noise(48, 64)
    expected = resized(images, 24, kind)
    with torch.autocast("cpu", torch.bfloat16):
        assert np.array_equal(resized(images, 24, kind), expected)
    many = np.concatenate([noise(48, 64, seed) for seed in range(1, 9)] + [images])
    assert np.array_equal(resized(many, 24, kind)[-2:], expected)
    pixels = torch.from_numpy(images).float().requires_grad_()  # nothing is kept for a backward pass
    assert not resize_images(pixels.detach().to(torch.uint8), 24, kind).requires_grad


def test_parts_of_a_batch_are_joined(monkeypatch):
    images = noise(30, 40)
    expected = resized(images, 24, "bicubic")
    monkeypatch.setattr(resize, "_MEMORY", 1)
    assert np.array_equal(resized(images, 24, "bicubic"), expected)


def test_images_of_the_models_size_are_returned_as_they_are():
    images = torch.from_numpy(noise(24, 24))
    assert resize_images(images, 24, "bicubic") is images
    assert resize_images(images[:0], 8, "bicubic").shape == (0, 8, 8, 3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_bytes():
    for height, width in SIZES:
        images = torch.from_numpy(noise(height, width))
        for kind, most in (("bicubic", 0), ("lanczos3", 1)):
            found = resize_images(images.cuda(), 224, kind).cpu().int()
            assert (found - resize_images(images, 224, kind).int()).abs().max() <= most
