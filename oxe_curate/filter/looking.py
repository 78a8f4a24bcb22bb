"""`filter --look N`: decode N frames of each camera of an episode as small as possible, and keep a few numbers.

A JPEG is decoded by scaled inverse DCT to 64 pixels or a little more per side, which is several times as fast as all of
its pixels.
"""

from __future__ import annotations

import io
from typing import Any

import crc32c
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from oxe_curate.filter.frames import FrameLook
from oxe_curate.filter.jpeg import MAGIC
from oxe_curate.index.images import FRAME_FORMATS, to_rgb
from oxe_curate.quality.looks import COLOUR, GREY, LookedFrames, empty_looks

_SIDE = 64
"""Pixels; images are decoded at the smallest size that has as many on each side."""


def look_at_camera(look: FrameLook, frames: NDArray[np.int64], count: int) -> LookedFrames:
    """Decode some frames of one camera of one episode.

    Args:
        look: reads the shard.
        frames: int64 (T', 2), (offset, length) of each step's frame.
        count: how many are decoded, evenly spread from the first to the last step.

    Returns:
        One episode; a frame that is missing or cannot be decoded has no size.
    """
    steps = spread(len(frames), count)
    found = empty_looks(len(steps)) if len(steps) else empty_looks(0, 1)
    for i, step in enumerate(steps.tolist()):
        offset, length = frames[step].tolist()
        found.step[i], found.length[i] = step, length
        if not length:
            continue
        data = look.read(offset, length)
        found.checksum[i] = crc32c.crc32c(data)
        try:
            pixels, (found.width[i], found.height[i], found.channels[i]) = _decode_small(data)
        except ValueError:
            continue
        found.mean[i], found.deviation[i], found.detail[i], found.grey[i], found.colour[i] = _describe(pixels)
    return found


def spread(length: int, count: int) -> NDArray[np.int64]:
    """At most `count` of `length` positions, evenly spread, with the first and the last: int64."""
    chosen = np.linspace(0, length - 1, min(length, count)) if length else np.empty(0)
    return chosen.round().astype(np.int64)


def _decode_small(data: bytes | memoryview) -> tuple[NDArray[np.uint8], tuple[int, int, int]]:
    """The pixels (h, w, 3) at a reduced size, and the image's own width, height and channels; ValueError if broken."""
    if bytes(data[:2]) == MAGIC:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data, strict=True)
        if space != "CMYK" and space != "YCCK":
            pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=_SIDE, min_width=_SIDE, strict=True)
            return np.asarray(pixels), (width, height, 1 if space == "Gray" else 3)
    try:
        with Image.open(io.BytesIO(data), formats=FRAME_FORMATS) as opened:
            size = opened.width, opened.height, len(opened.getbands()) if opened.mode != "P" else 3
            factor = max(min(opened.width, opened.height) // _SIDE, 1)
            return np.asarray(to_rgb(opened).reduce(factor)), size
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # SyntaxError: a damaged PNG
        raise ValueError(str(error)) from None


def _describe(pixels: NDArray[np.uint8]) -> tuple[Any, ...]:
    """Mean and deviation of each channel, detail, and the two thumbnails; see `LookedFrames`."""
    image = Image.fromarray(pixels)
    shares = np.array(image.histogram(), np.float64).reshape(3, 256) / (pixels.shape[0] * pixels.shape[1])
    mean = shares @ _LEVELS
    deviation = np.sqrt(np.maximum(shares @ _LEVELS**2 - mean**2, 0))
    bright = np.asarray(image.convert("L"), np.int16)
    detail = _mean_step(bright) / 2 + _mean_step(bright.T) / 2
    cells = image.resize((GREY, GREY), Image.Resampling.BOX)
    colour = cells.reduce(GREY // COLOUR)
    return mean, deviation, detail, np.asarray(cells.convert("L")), np.asarray(colour)


_LEVELS = np.arange(256.0)


def _mean_step(values: NDArray[np.int16]) -> float:
    """Mean absolute difference of neighbours along the last axis."""
    return float(np.abs(values[:, 1:] - values[:, :-1]).mean()) if values.shape[1] > 1 else 0.0
