"""Each augmentation against a plain numpy version of TensorFlow's definition, one image and one pixel at a time."""

import colorsys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from oxe_curate.train.data import augment


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (4, 12, 12, 3), np.uint8)
    noise[1] = np.arange(12, dtype=np.uint8)[:, None, None] * 20  # grey: no hue
    noise[2] = rng.choice([0, 255], (12, 12, 3))  # corners of the cube: ties between channels
    noise[3, :6] = 0
    return noise


def floats(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def crop(image, top, left, side):
    """tf.image.crop_and_resize of (H, W, 3), box [top, left, top + side, left + side], bilinear."""
    size = image.shape[0]
    out = np.empty_like(image)
    for i in range(size):
        for j in range(size):
            y = top * (size - 1) + i * side * (size - 1) / (size - 1)
            x = left * (size - 1) + j * side * (size - 1) / (size - 1)
            y0, x0 = int(np.floor(y)), int(np.floor(x))
            y1, x1 = min(y0 + 1, size - 1), min(x0 + 1, size - 1)
            upper = image[y0, x0] * (1 - (x - x0)) + image[y0, x1] * (x - x0)
            lower = image[y1, x0] * (1 - (x - x0)) + image[y1, x1] * (x - x0)
            out[i, j] = upper * (1 - (y - y0)) + lower * (y - y0)
    return out


def in_hsv(image, change):
    out = np.empty_like(image)
    for place in np.ndindex(image.shape[:2]):
        out[place] = colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*image[place])))
    return out


def saturated(image, factor):
    return in_hsv(image, lambda h, s, v: (h, min(max(s * factor, 0), 1), v))


def turned(image, delta):
    return in_hsv(image, lambda h, s, v: ((h + delta) % 1, s, v))


def channels_last(x):
    return x.permute(0, 2, 3, 1).numpy()


def test_crop(images):
    tops, lefts, side = [0.0, 0.02, 0.05, 0.01], [0.03, 0.0, 0.05, 0.02], 0.9**0.5
    x = floats(images)
    found = channels_last(augment.crop_and_resize(x, torch.tensor(tops), torch.tensor(lefts), side))
    expected = [crop(image, top, left, side) for image, top, left in zip(images / 255.0, tops, lefts, strict=True)]
    assert np.allclose(found, expected, atol=2e-6)


def test_brightness_and_contrast(images):
    change = torch.tensor([-0.2, 0.2, 0.1, 0.0])
    image = images / 255.0
    found = channels_last(augment.adjust_brightness(floats(images), change))
    assert np.allclose(found, image + change.numpy()[:, None, None, None], atol=1e-6)
    found = channels_last(augment.adjust_contrast(floats(images), 1 + change))
    mean = image.mean(axis=(1, 2), keepdims=True)
    assert np.allclose(found, (image - mean) * (1 + change.numpy()[:, None, None, None]) + mean, atol=1e-6)


def test_saturation_and_hue(images):
    factors, deltas = [0.8, 1.2, 1.2, 1.1], [-0.05, 0.05, 0.03, -0.01]
    found = channels_last(augment.adjust_color(floats(images), torch.tensor(factors), torch.tensor(deltas)))
    expected = [
        turned(saturated(image, factor), delta)
        for image, factor, delta in zip(images / 255.0, factors, deltas, strict=True)
    ]
    assert np.allclose(found, expected, atol=3e-6)


def test_augment_applies_the_five_steps_in_order(images):
    random = np.random.default_rng(1).random((4, 8), np.float32)
    found = channels_last(augment.augment(torch.from_numpy(images), torch.from_numpy(random)))
    assert found.dtype == np.float32
    for image, r, result in zip(images / 255.0, random.astype(float), found, strict=True):
        free = 1 - 0.9**0.5
        x = crop(image, r[0] * free, r[1] * free, 0.9**0.5)
        x = np.clip(x + (r[2] * 0.4 - 0.2), 0, 1)
        x = np.clip((x - x.mean(axis=(0, 1))) * (0.8 + 0.4 * r[3]) + x.mean(axis=(0, 1)), 0, 1)
        x = turned(np.clip(saturated(x, 0.8 + 0.4 * r[4]), 0, 1), r[5] * 0.1 - 0.05)
        assert np.allclose(result, x, atol=5e-6)


def test_an_image_depends_only_on_its_own_numbers(images):
    random = torch.rand(4, 8, generator=torch.Generator().manual_seed(0))
    whole = augment.augment(torch.from_numpy(images), random)
    single = augment.augment(torch.from_numpy(images[2:3]), random[2:3])
    assert torch.allclose(whole[2:3], single, atol=1e-6)
    assert not torch.allclose(whole[2:3], augment.augment(torch.from_numpy(images[2:3]), random[1:2]), atol=0.01)


def test_center_crop(images):
    side = 0.9**0.5
    found = channels_last(augment.center_crop(torch.from_numpy(images)))
    assert np.allclose(found, [crop(i, (1 - side) / 2, (1 - side) / 2, side) for i in images / 255.0], atol=2e-6)
    assert torch.allclose(augment.center_crop(torch.from_numpy(images), 1.0), floats(images), atol=2e-6)
