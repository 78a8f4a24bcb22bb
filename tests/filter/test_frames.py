"""Black and undecodable frames."""

import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from oxe_curate.errors import CorruptError
from oxe_curate.filter.frames import FrameLook, is_black
from oxe_curate.filter.jpeg import corner_brightness
from oxe_curate.rlds.encode import encode_example
from oxe_curate.rlds.example import BYTES, Span, scan

BLACK = np.zeros((32, 48, 3), np.uint8)


def image_of(seed: int = 0, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """Smooth random colours."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3)).astype(np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def encoded(image: np.ndarray | Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, kind, **options)
    return out.getvalue()


def listed(*frames: bytes) -> tuple[memoryview, Span]:
    """Frames as in a record."""
    record = memoryview(encode_example({"frames": list(frames)}))
    found = scan(record, 0, len(record))[b"frames"]
    assert found.kind == BYTES
    return record, found


def shows(*frames: bytes, level: int = 8) -> bool:
    buffer, span = listed(*frames)
    return FrameLook(buffer).shows(span, level)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_camera_shows_something_if_one_of_three_frames_is_not_black(kind):
    black, bright = encoded(BLACK, kind), encoded(image_of(), kind)
    assert shows(bright, bright, bright)
    assert not shows(black, black, black)
    assert shows(black, bright, black)
    assert shows(black, black, bright)
    assert not shows(black, bright, black, black, black)  # the second of five is not checked
    assert not shows(b"", b"")
    assert not shows()
    assert shows(black, level=0)


def test_a_dark_corner_does_not_decide():
    image = BLACK.copy()
    image[-8:, -8:] = 200
    assert corner_brightness(memoryview(encoded(image, quality=90))) < 2
    assert shows(encoded(image))


def test_a_frame_is_black_if_every_block_is():
    grey = np.full((16, 16, 3), 7, np.uint8)
    assert is_black(encoded(grey, quality=100), 8)
    assert not is_black(encoded(grey, quality=100), 7)
    noise = np.random.default_rng(0).integers(0, 10, (64, 64, 3)).astype(np.uint8)
    assert is_black(encoded(noise, quality=95), 8)


def test_an_undecodable_frame_is_not_black():
    assert shows(b"no picture")
    assert shows(encoded(BLACK)[:300])


def test_only_the_first_bytes_of_a_bright_frame_are_touched():
    noise = np.random.default_rng(0).integers(90, 110, (256, 256, 3)).astype(np.uint8)
    data = encoded(noise, quality=95)
    buffer, span = listed(data, data)
    asked: list[tuple[int, int]] = []
    look = FrameLook(buffer, lambda offset, length: asked.append((offset, length)))
    assert look.shows(span, 8)
    assert sum(length for _, length in asked) < 1100 < len(data) / 10
    assert look.touched == 1024


def test_a_list_that_extends_beyond_its_end_is_corrupt():
    buffer, span = listed(encoded(BLACK))
    with pytest.raises(CorruptError, match="extends beyond"):
        FrameLook(buffer).shows(Span(BYTES, span.offset, 100), 8)


@pytest.mark.parametrize("seed", range(40))
def test_the_corner_equals_the_decoded_one(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(8, 80, 2)
    pixels = (rng.integers(0, 256, 3) + rng.normal(0, rng.choice([0, 3, 40]), (height, width, 3))).clip(0, 255)
    options = {"quality": int(rng.integers(20, 100)), "optimize": bool(seed % 2), "subsampling": seed % 3}
    image = Image.fromarray(pixels.astype(np.uint8)).convert("L" if seed % 5 == 0 else "RGB")
    if seed % 5 == 0:
        del options["subsampling"]
    data = encoded(image, **options)
    decoded = simplejpeg.decode_jpeg(data, "GRAY", min_height=1, min_width=1, min_factor=8)[0, 0, 0]
    assert corner_brightness(memoryview(data)) == pytest.approx(decoded, abs=0.51)


@pytest.mark.parametrize(
    "data",
    [
        encoded(image_of(), progressive=True),
        encoded(image_of().convert("CMYK")),
        encoded(image_of(), "PNG"),
        encoded(image_of())[:400],
        encoded(image_of())[:2],
        b"",
    ],
    ids=["progressive", "cmyk", "png", "cut", "magic", "empty"],
)
def test_the_corner_of_other_files_is_not_guessed(data):
    assert corner_brightness(memoryview(data)) is None


def test_undecodable_frames_are_found():
    good = encoded(image_of())
    for frames, bad in [((good, good), False), ((good, good[:-200]), True), ((good, b""), True), ((b"", b""), False)]:
        buffer, span = listed(*frames)
        assert FrameLook(buffer).undecodable(span) is bad
