"""Checks of encoded frames: is an image black, can it be decoded.

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

    def undecodable(self, span: Span) -> bool:
        """Whether a frame of the list cannot be decoded; a list of empty frames is a missing camera, not that."""
        frames = self.ranges(span)
        if not frames[:, 1].any():
            return False
        try:
            for offset, length in frames.tolist():
                grey_thumbnail(self.read(offset, length), strict=True)
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
            return is_black(self.read(offset, length), level)
        except ValueError:
            return False

    def read(self, offset: int, length: int) -> memoryview:
        """A part of the shard."""
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


def _open(data: bytes | memoryview) -> Image.Image:
    return open_image(data).convert("L")
