"""Decode, resize and re-encode frames: only if a mixture sets a size, or a camera is stored as BGR."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps

from oxe_curate.errors import DataError


@dataclass(frozen=True, slots=True)
class EncodedFrames:
    """Encoded frames in some buffers.

    Attributes:
        buffers: memoryviews of source shards, or bytes.
        buffer: int64 (n,), index of each frame's buffer.
        offset: int64 (n,). length: int64 (n,); 0 if there is no frame.
    """

    buffers: Sequence[memoryview]
    buffer: NDArray[np.int64]
    offset: NDArray[np.int64]
    length: NDArray[np.int64]


def decode(data: bytes | memoryview) -> NDArray[np.uint8]:
    """Decode a JPEG or PNG to uint8 (H, W, 3), RGB. Raises ValueError on anything else."""
    if bytes(data[:2]) == b"\xff\xd8":
        return np.asarray(simplejpeg.decode_jpeg(data, colorspace="RGB"), np.uint8)
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except OSError as error:
        raise ValueError(str(error)) from None


def resize(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize to (size, size, 3) by Lanczos-3 with antialiasing, ignoring the aspect ratio, like OpenVLA's loader.

    Pillow's filter rounds between its two passes: it differs from TensorFlow's by 1 in 255 at few pixels.
    """
    if image.shape[:2] == (size, size):
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS))


def encode(image: NDArray[np.uint8], quality: int) -> bytes:
    """Encode as JPEG with full colour resolution (4:4:4): subsampling would cost more than the quality saves."""
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality, colorspace="RGB", colorsubsampling="444"))


def encode_picture(data: bytes | memoryview, size: int | None, quality: int) -> bytes:
    """Resize an image of any format that Pillow reads and encode it as JPEG; unchanged if `size` is None.

    Grey, palette and CMYK images are converted, and the EXIF orientation is applied. Without a size only the header is
    checked.

    Raises:
        ValueError: the bytes are not an image.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if size is None:
                return bytes(data)
            upright = ImageOps.exif_transpose(image) or image
            return encode(resize(np.asarray(upright.convert("RGB")), size), quality)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # SyntaxError: a damaged PNG
        raise ValueError(str(error)) from None


def recode(
    frames: EncodedFrames,
    needed: NDArray[np.bool_],
    swap: NDArray[np.bool_],
    size: int | None,
    quality: int,
    name: Callable[[int], str],
) -> EncodedFrames:
    """Re-encode frames at `size` (None: their own), with red and blue swapped where `swap`; others pass through.

    Args:
        frames: n frames.
        needed: bool (n,); the others come back empty.
        swap: bool (n,).
        size: pixels of each side, or None.
        quality: of the JPEG, 1 to 100.
        name: returns the episode of frame i, for error messages.

    Raises:
        DataError: a frame cannot be decoded.
    """
    parts: list[bytes] = []
    for i, (buffer, offset, length) in enumerate(zip(frames.buffer, frames.offset, frames.length, strict=True)):
        data = frames.buffers[buffer][offset : offset + length]
        if not needed[i] or (size is None and not swap[i]):
            parts.append(bytes(data) if needed[i] else b"")
            continue
        try:
            image = decode(data)
        except ValueError as error:
            raise DataError(f"{name(i)}: a frame cannot be decoded ({error})") from None
        image = image[:, :, ::-1] if swap[i] else image
        parts.append(encode(resize(np.ascontiguousarray(image), size) if size else image, quality))
    lengths = np.array([len(part) for part in parts], np.int64)
    joined = memoryview(b"".join(parts))
    return EncodedFrames([joined], np.zeros(len(parts), np.int64), np.cumsum(lengths) - lengths, lengths)
