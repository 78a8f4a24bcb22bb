import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from oxe_curate.errors import DataError
from oxe_curate.index import images
from oxe_curate.index.images import EncodedFrames


def image_of(height: int = 60, width: int = 80) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 3 % 256, y * 4 % 256, (x + y) % 256], axis=-1).astype(np.uint8)


def png(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def frames(*items: bytes) -> EncodedFrames:
    lengths = np.array([len(i) for i in items])
    return EncodedFrames(
        [memoryview(b"".join(items))], np.zeros(len(items), np.int64), np.cumsum(lengths) - lengths, lengths
    )


def bytes_of(found: EncodedFrames, i: int) -> bytes:
    return bytes(found.buffers[0][found.offset[i] : found.offset[i] + found.length[i]])


def test_png_and_jpeg_decode() -> None:
    assert np.array_equal(images.decode(png(image_of())), image_of())
    jpeg = simplejpeg.encode_jpeg(image_of(), 95, colorsubsampling="444")
    assert np.abs(images.decode(jpeg).astype(int) - image_of()).mean() < 3
    with pytest.raises(ValueError, match="cannot identify"):
        images.decode(b"neither")


def test_resize_is_lanczos_and_ignores_the_aspect() -> None:
    expected = np.asarray(Image.fromarray(image_of()).resize((32, 32), Image.Resampling.LANCZOS))
    assert np.array_equal(images.resize(image_of(), 32), expected)
    assert images.resize(image_of(32, 32), 32).shape == (32, 32, 3)


def test_recode_changes_only_what_it_must() -> None:
    source = frames(png(image_of()), png(image_of()), png(image_of()))
    needed, swap = np.array([True, True, False]), np.array([False, True, True])
    found = images.recode(source, needed, swap, None, 95, str)
    assert bytes_of(found, 0) == png(image_of())
    assert np.abs(images.decode(bytes_of(found, 1))[:, :, ::-1].astype(int) - image_of()).mean() < 3
    assert found.length[2] == 0
    small = images.recode(source, needed, np.zeros(3, bool), 24, 95, str)
    assert images.decode(bytes_of(small, 0)).shape == (24, 24, 3)


def test_an_undecodable_frame_is_named() -> None:
    with pytest.raises(DataError, match="episode 0: a frame cannot be decoded"):
        images.recode(frames(b"x"), np.array([True]), np.array([False]), 24, 95, lambda i: f"episode {i}")
