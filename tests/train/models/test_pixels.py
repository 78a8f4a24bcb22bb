import json

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from oxe_curate.errors import ConfigError
from oxe_curate.train.data.assemble import resize_image
from oxe_curate.train.models.pixels import DINO_MEAN, DINO_STD, HALF, PixelNormalizer


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)


def test_equals_to_tensor_and_normalize(image):
    """torchvision's ToTensor and Normalize in numpy's float32: division, difference, division."""
    pixels = np.asarray(Image.fromarray(image).resize((28, 28), Image.Resampling.BICUBIC))
    scaled = pixels.transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    expected = np.concatenate(
        [
            (scaled - np.float32(mean)[:, None, None]) / np.float32(std)[:, None, None]
            for mean, std in ((DINO_MEAN, DINO_STD), (HALF, HALF))
        ]
    )
    found = PixelNormalizer()(torch.from_numpy(resize_image(Image.fromarray(image), 28).copy()))
    assert np.array_equal(found.numpy(), expected)


def test_batches_equal_single_images(image):
    normalize = PixelNormalizer()
    batch = torch.from_numpy(np.stack([image[:28, :28], image[:28, 28:56]]))[:, None]
    assert normalize(batch).shape == (2, 1, 6, 28, 28)
    assert torch.equal(normalize(batch)[1, 0], normalize(batch[1, 0]))


def test_floats_are_not_scaled(image):
    normalize = PixelNormalizer()
    pixels = torch.from_numpy(image)
    assert torch.equal(normalize(pixels.permute(2, 0, 1).float() / 255), normalize(pixels))


def test_statistics_come_from_the_checkpoint(tmp_path):
    assert PixelNormalizer.read(tmp_path).means == (DINO_MEAN, HALF)
    assert PixelNormalizer.read(tmp_path, towers=1).means == (HALF,)
    config = {"means": [[0.1, 0.2, 0.3], [0.5] * 3], "stds": [[1, 1, 1], [0.5] * 3]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    assert PixelNormalizer.read(tmp_path).means[0] == (0.1, 0.2, 0.3)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config | {"image_resize_strategy": "letterbox"}))
    with pytest.raises(ConfigError, match="letterbox"):
        PixelNormalizer.read(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="means"):
        PixelNormalizer.read(tmp_path)
