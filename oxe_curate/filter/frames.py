"""Checks of encoded frames: is an image black, can it be decoded, what is its perceptual hash.

The filter decodes as few images as possible: the first block of a JPEG, its upper left corner, is in the first bytes
and usually suffices to show that the image is not black.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from oxe_curate.errors import CorruptError
from oxe_curate.filter.jpeg import MAGIC, corner_brightness
from oxe_curate.index.images import open_image
from oxe_curate.rlds import example
from oxe_curate.rlds.example import Span
from oxe_curate.rlds.tfrecord import Ensure
from oxe_curate.rlds.varint import read_varint

_HEAD = 1024
"""Bytes of a frame that are read first: a JPEG header has 600 to 700."""
_FLAT = 2
"""Grey levels; smaller differences between neighbours are coding noise and are ignored in a perceptual hash."""
_HASHED = 4
"""Frames hashed per episode: the first, the last, and those at thirds."""


class FrameLook:
    """Checks single frames of a shard.

    Args:
        buffer: the shard.
        ensure: fetches bytes of a remote shard before they are read.

    Attributes:
        touched: bytes read so far.
    """

    def __init__(self, buffer: memoryview, ensure: Ensure | None = None) -> None:
        self._buffer, self._ensure = buffer, ensure
        self.touched = 0

    def shows(self, span: Span, level: int) -> bool:
        """Whether the first, the middle or the last frame of a camera's list is not black.

        A frame that cannot be decoded does not count as black; `bad_image` finds those.

        Args:
            span: the camera's list of frames.
            level: see `is_black`; 0 only requires a list that is not empty.
        """
        if span.length == 0:
            return False
        if level == 0:
            return True
        first = self._first(span)
        if first[1] and not self._black(*first, level):
            return True
        frames = self.ranges(span)
        return any(
            length and not self._black(offset, length, level)
            for offset, length in (frames[i].tolist() for i in {len(frames) // 2, len(frames) - 1})
        )

    def hashes(self, span: Span) -> tuple[int, ...] | None:
        """Perceptual hashes of evenly spaced frames of a camera's list; None if one cannot be decoded."""
        frames = self.ranges(span)
        if not len(frames):
            return None
        chosen = np.linspace(0, len(frames) - 1, _HASHED).round().astype(int)
        try:
            return tuple(dhash(self._bytes(*frames[i].tolist())) for i in chosen)
        except ValueError:
            return None

    def undecodable(self, span: Span) -> bool:
        """Whether a frame of the list cannot be decoded; a list of empty frames is a missing camera, not that."""
        frames = self.ranges(span)
        if not frames[:, 1].any():
            return False
        try:
            for offset, length in frames.tolist():
                grey_thumbnail(self._bytes(offset, length), strict=True)
        except ValueError:
            return True
        return False

    def ranges(self, span: Span) -> NDArray[np.int64]:
        """int64 (T, 2): offset and length of each frame."""
        self._need(span.offset, span.length)
        return example.byte_ranges(self._buffer, span)

    def _first(self, span: Span) -> tuple[int, int]:
        # a list of bytes begins with a tag and a length, at most 11 bytes
        self._need(span.offset, min(span.length, 11))
        if self._buffer[span.offset] != 0x0A:
            raise CorruptError(f"byte {span.offset}: not a list of frames")
        length, position = read_varint(self._buffer, span.offset + 1)
        if position + length > span.offset + span.length:
            raise CorruptError(f"byte {position}: a value extends beyond the end of its list")
        return position, length

    def _black(self, offset: int, length: int, level: int) -> bool:
        head = min(length, _HEAD)
        self._need(offset, head)
        self.touched += head
        corner = corner_brightness(self._buffer[offset : offset + head])
        if corner is not None and corner >= level:
            return False
        try:
            return is_black(self._bytes(offset, length), level)
        except ValueError:
            return False

    def _bytes(self, offset: int, length: int) -> memoryview:
        self._need(offset, length)
        self.touched += length
        return self._buffer[offset : offset + length]

    def _need(self, offset: int, length: int) -> None:
        if self._ensure:
            self._ensure(offset, length)


def is_black(data: bytes | memoryview, level: int) -> bool:
    """Whether no block of 8 x 8 pixels has a mean brightness of `level` (of 255) or more.

    Raises:
        ValueError: the data cannot be decoded as an image.
    """
    return bool(grey_thumbnail(data).max() < level)


def grey_thumbnail(data: bytes | memoryview, strict: bool = False) -> NDArray[Any]:
    """Brightness (H / 8, W / 8) of a JPEG or PNG, averaged over blocks of 8 x 8 pixels.

    Args:
        data: the encoded image.
        strict: whether damage that a JPEG decoder tolerates (a truncated file) is an error.

    Raises:
        ValueError: the data cannot be decoded as an image.
    """
    if bytes(data[:2]) == MAGIC:
        return np.asarray(simplejpeg.decode_jpeg(data, "GRAY", min_height=1, min_width=1, min_factor=8, strict=strict))
    return np.asarray(_open(data).reduce(8))


def dhash(data: bytes | memoryview) -> int:
    """Perceptual hash: 64 bits that mark where brightness rises from left to right on a grid of 9 x 8 cells.

    It hardly changes when an image is re-encoded or resized. An image of one colour gives 0.

    Raises:
        ValueError: the data cannot be decoded as an image.
    """
    if bytes(data[:2]) == MAGIC:
        pixels = simplejpeg.decode_jpeg(data, "GRAY", min_height=32, min_width=36, min_factor=8, strict=False)
        image = Image.fromarray(pixels[:, :, 0])
    else:
        image = _open(data)
    cells = np.asarray(image.resize((9, 8), Image.Resampling.BOX), np.int16)
    return int.from_bytes(np.packbits(cells[:, 1:] - cells[:, :-1] >= _FLAT).tobytes(), "big")


def _open(data: bytes | memoryview) -> Image.Image:
    return open_image(data).convert("L")
