import errno
import io
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from oxe_curate.errors import DataError, StorageError
from oxe_curate.filter.frames import grey_thumbnail
from oxe_curate.index import images
from oxe_curate.index.images import EncodedFrames
from oxe_curate.index.spool import Spool
from oxe_curate.train.data.assemble import decode_into, resize_image


def image_of(height: int = 60, width: int = 80) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 3 % 256, y * 4 % 256, (x + y) % 256], axis=-1).astype(np.uint8)


def png(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


class Held:
    """Bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]

    def read_into(self, offset: int, view: memoryview) -> None:
        view[:] = self.read(offset, len(view))


def frames(*items: bytes, where: Callable[[int], str] | None = None) -> EncodedFrames:
    lengths = np.array([len(i) for i in items])
    return EncodedFrames(
        [Held(b"".join(items))], np.zeros(len(items), np.int64), np.cumsum(lengths) - lengths, lengths, where
    )


def values(encoded: np.ndarray) -> list[bytes]:
    """The values of Parquet's PLAIN encoding."""
    found, data = [], encoded.tobytes()
    while data:
        end = 4 + int.from_bytes(data[:4], "little")
        found.append(data[4:end])
        data = data[end:]
    return found


def test_png_and_jpeg_decode() -> None:
    assert np.array_equal(images.decode(png(image_of())), image_of())
    jpeg = simplejpeg.encode_jpeg(image_of(), 95, colorsubsampling="444")
    assert np.abs(images.decode(jpeg).astype(int) - image_of()).mean() < 3
    for data in (jpeg, png(image_of())):
        assert np.array_equal(images.decode(data, bgr=True)[:, :, ::-1], images.decode(data))
    with pytest.raises(ValueError, match="cannot identify"):
        images.decode(b"neither")


def test_recode_changes_only_what_it_must() -> None:
    source = frames(png(image_of()), png(image_of()), b"not needed")
    shown, swap = np.array([[1], [0], [-1]]), np.array([False, True, True])
    found = images.recode(source, shown, swap, None, 95)
    changed, same = values(found.gather(shown.ravel()))
    assert same == png(image_of())
    assert np.abs(images.decode(changed)[:, :, ::-1].astype(int) - image_of()).mean() < 3
    assert np.array_equal(found.stored_length, source.length)
    small = images.recode(source, shown, np.zeros(3, bool), 24, 95)
    assert images.decode(values(small.gather(np.array([0])))[0]).shape == (24, 24, 3)
    assert np.array_equal(small.stored_length, [24 * 24] * 3)
    assert images.recode(source, shown, np.zeros(3, bool), None, 95) is source


@pytest.mark.parametrize("shown", [[[0, 1], [1, -1]], [[0], [1], [1]]], ids=["windows", "copies"])
def test_frames_of_several_rows_are_re_encoded_once(tmp_path: Path, shown: list[list[int]]) -> None:
    source = frames(png(image_of()), png(image_of(40, 40)), b"not needed")
    once = images.recode(source, np.array([[1], [0]]), np.zeros(3, bool), 24, 95)
    found = images.recode(source, np.array(shown), np.zeros(3, bool), 24, 95, tmp_path)
    chosen = np.array([1, 0, 1])
    assert np.array_equal(found.gather(chosen), once.gather(chosen))
    assert found.stored_length[:2].tolist() == [len(value) for value in values(found.gather(np.array([0, 1])))]
    assert found.read(2) == b"not needed"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shown", [[[0]], [[0, -1]]], ids=["when gathered", "at once"])
def test_a_damaged_frame_is_named(shown: list[list[int]]) -> None:
    def recoded(data: bytes) -> None:
        source = frames(data, where="episode {}".format)
        images.recode(source, np.array(shown), np.array([False]), 24, 95).gather(np.array([0]))

    with pytest.raises(DataError, match="episode 0: expected a complete JPEG or PNG"):
        recoded(b"\xff\xd8 neither, nor")
    with pytest.raises(DataError, match="episode 0: cannot be decoded"):
        recoded(b"\xff\xd8 complete, but no JPEG\xff\xd9")


def test_frames_are_gathered_and_checked() -> None:
    jpeg = simplejpeg.encode_jpeg(image_of(), 95)
    good = [jpeg, png(image_of()), jpeg[:2] + jpeg[-6:]]
    source = frames(*good, b"", jpeg[:-1], jpeg[1:], b"\xff\xd8\xff\xd9", png(image_of())[1:], where="frame {}".format)
    assert values(source.gather(np.array([2, 0, -1, 1, 0]))) == [good[2], good[0], good[1], good[0]]
    for bad in range(3, 8):
        with pytest.raises(DataError, match=f"frame {bad}: expected a complete"):
            source.gather(np.array([0, bad, 1]))
    assert len(source.gather(np.empty(0, np.int64))) == 0
    assert len(frames().gather(np.array([-1]))) == 0


def test_every_lost_end_of_a_jpeg_is_noticed() -> None:
    jpeg = simplejpeg.encode_jpeg(image_of(16, 16), 50)
    cut = [jpeg[:n] for n in range(len(jpeg))]
    lengths = np.array([len(part) for part in cut])
    complete = images.are_complete(np.frombuffer(b"".join(cut), np.uint8), np.cumsum(lengths) - lengths, lengths)
    assert not complete.any()


def test_a_full_disk_is_a_storage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool()
    assert (spool.add(b"abc"), spool.add(b"de")) == (0, 3)
    assert (spool.read(0, 3), spool.read(3, 2), spool.read(1, 3)) == (b"abc", b"de", b"bcd")

    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(StorageError, match="temporary file for re-encoded frames: the disk is full"):
        Spool()


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "RGBA", "I;16", "RGB"])
def test_every_kind_of_png_decodes_to_the_same_rgb(mode: str) -> None:
    """Grey is repeated, alpha dropped, a palette looked up, and of 16 bits the upper 8 are used, as TensorFlow does."""
    grey = (np.mgrid[:20, :30][0] * 12).astype(np.uint8)
    if mode == "1":
        grey = np.where(grey > 100, 255, 0).astype(np.uint8)
    if mode == "I;16":
        picture = Image.fromarray(grey.astype(np.uint16) << 8 | 200)
    else:
        picture = Image.fromarray(grey).convert(mode)
    if mode in ("LA", "RGBA"):
        picture.putalpha(7)
    out = io.BytesIO()
    picture.save(out, "PNG")
    expected = np.repeat(grey[..., None], 3, axis=2)
    assert np.array_equal(images.decode(out.getvalue()), expected)
    assert np.array_equal(np.asarray(images.open_image(out.getvalue())), expected)
    assert np.array_equal(grey_thumbnail(out.getvalue()), np.asarray(Image.fromarray(grey).reduce(8)))
    target = np.empty((20, 20, 3), np.uint8)
    decode_into(out.getvalue(), target)
    assert np.array_equal(target, resize_image(Image.fromarray(expected), 20))
    small = images.decode(images.encode_picture(out.getvalue(), 16, 95))
    assert np.abs(small.astype(int) - images.resize(expected, 16)).max() <= 12


def test_other_formats_and_images_of_floats_are_refused() -> None:
    with pytest.raises(ValueError, match="an image of floats"):
        images.to_rgb(Image.fromarray(np.ones((4, 4), np.float32)))
    for other in ("BMP", "TIFF", "WEBP", "GIF"):
        out = io.BytesIO()
        Image.fromarray(image_of()).save(out, other)
        for read in (images.decode, images.open_image, grey_thumbnail):
            with pytest.raises(ValueError, match="cannot identify"):
                read(out.getvalue())


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_of_16_bits_the_upper_8_are_used_in_every_kind_of_png(channels: int) -> None:
    """Pillow writes no such colour images, so this writes the chunks of one."""
    pixels = np.random.default_rng(channels).integers(0, 1 << 16, (6, 5, channels), np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", 5, 6, 16, kind, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    chunks = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts]
    found = images.decode(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    expected = (pixels >> 8).astype(np.uint8)
    assert np.array_equal(found, expected[..., :3] if channels > 2 else expected[..., :1].repeat(3, axis=2))
