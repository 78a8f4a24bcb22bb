"""Resizing compared with the definition in float64."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from oxe_curate.index import resample
from oxe_curate.index.images import resize


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Edges of full contrast under sensor noise: overshoot and rounding both matter."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (max(height // 6, 1), max(width // 6, 1), 3), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST))
    return (smooth + rng.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)


def by_definition(image: np.ndarray, size: int) -> np.ndarray:
    down, across = (resample.lanczos3(n, size) for n in image.shape[:2])
    values = np.einsum("ij,kl,jlc->ikc", down, across, image.astype(float), optimize=True)
    return np.floor(values + 0.5).clip(0, 255).astype(int)


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (256, 256, 224),
        (480, 640, 224),
        (720, 1280, 224),
        (64, 64, 224),
        (100, 37, 50),
        (3, 5, 7),
        (90, 70, 1),
        (1, 1, 8),
    ],
)
def test_resized_images_are_within_one_grey_level(height: int, width: int, size: int) -> None:
    image = picture(height, width)
    found = resample.lanczos_resized(image, size)
    assert (found.shape, found.dtype) == ((size, size, 3), np.uint8)
    assert np.abs(found - by_definition(image, size)).max() <= 1
    assert np.array_equal(resample.lanczos_resized(image, size), found)  # nothing is left of the image before


def test_the_kernel_is_lanczos() -> None:
    """Where nothing overshoots, Pillow's filter is the same but for its rounding between the passes."""
    image = (picture(60, 80) * 0.5 + 64).astype(np.uint8)
    expected = np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.LANCZOS)).astype(int)
    assert np.abs(resize(image, 32) - expected).max() <= 1
    assert resize(image[:32, :32], 32) is not image
    assert np.array_equal(resize(image[:32, :32], 32), image[:32, :32])


def test_plain_areas_keep_their_value() -> None:
    for value in (0, 1, 127, 255):
        assert (resample.lanczos_resized(np.full((37, 90, 3), value, np.uint8), 24) == value).all()


def test_sums_are_exact_in_float32() -> None:
    """Below 2**24 units; so the result is the same on every machine."""
    for source, size in [(256, 224), (1920, 224), (64, 224), (5, 7), (7, 5)]:
        largest = [
            max(np.abs(block).sum(axis=1).max() for *_, block in resample._blocks(source, size, bits, 8))
            for bits in (resample._FIRST_BITS, resample._SECOND_BITS)
        ]
        assert 255 * largest[0] * 2**resample._FIRST_BITS < 2**24
        assert 255 * resample._BETWEEN * largest[0] * largest[1] * 2**resample._SECOND_BITS < 2**24


def test_threads_do_not_share_memory() -> None:
    pictures = [picture(60, 80, seed) for seed in range(16)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda image: resample.lanczos_resized(image, 32), pictures))
    for image, result in zip(pictures, found, strict=True):
        assert np.array_equal(result, resample.lanczos_resized(image, 32))
