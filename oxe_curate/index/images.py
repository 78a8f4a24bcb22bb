"""Encoded frames, and their re-encoding: only if a mixture sets a size, or a camera is stored as BGR."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps

from oxe_curate.errors import DataError
from oxe_curate.index.resample import lanczos_resized
from oxe_curate.index.spool import Spool

_PREFIX = 4  # bytes of the length before each value
_REPEATED = 1.1  # rows per frame up to which frames are re-encoded once for each row


class ByteSource(Protocol):
    """A file or buffer."""

    def read(self, offset: int, length: int) -> bytes | memoryview:
        """A part of it."""

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view` with the bytes from `offset` on."""


@dataclass(frozen=True, slots=True)
class EncodedFrames:
    """Encoded frames in some files or buffers; they are read when they are needed.

    Attributes:
        sources: files or buffers with encoded frames.
        source: int64 (n,), which of `sources` has each frame.
        offset: int64 (n,). length: int64 (n,); 0 if there is no frame.
        where: describes frame i for messages; None: frames may have any format and are not checked.
        recoding: how some frames are re-encoded when they are gathered.
    """

    sources: Sequence[ByteSource]
    source: NDArray[np.int64]
    offset: NDArray[np.int64]
    length: NDArray[np.int64]
    where: Callable[[int], str] | None = None
    recoding: Recoding | None = None

    @property
    def stored_length(self) -> NDArray[np.int64]:
        """Bytes that each frame takes where it is written, int64 (n,): an estimate of those that are re-encoded."""
        size = self.recoding.size if self.recoding else None
        if self.recoding is None or size is None:
            return self.length
        # at a quality of 95 without subsampling, at most about a byte per pixel
        return np.where(self.recoding.chosen, size * size, self.length)

    def read(self, i: int) -> bytes | memoryview:
        """The bytes of one frame, unchecked."""
        source: ByteSource = self.sources[self.source[i]]
        return source.read(int(self.offset[i]), int(self.length[i]))

    def gather(self, chosen: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Read some frames.

        Args:
            chosen: int64 (m,), numbers of frames; -1 is left out.

        Returns:
            uint8 (b,), their bytes one after the other, each after its length as uint32, little-endian: Parquet's PLAIN
            encoding of them.

        Raises:
            DataError: a frame is neither a JPEG nor a PNG, is incomplete, or cannot be decoded to re-encode it.
        """
        frames: NDArray[np.int64] = chosen[chosen >= 0]
        # in the order of the files, which disks and read-ahead prefer
        order = np.lexsort((self.offset[frames], self.source[frames]))
        if self.recoding is not None:
            return self._recoded(self.recoding, frames, order)
        lengths = self.length[frames]
        ends = np.cumsum(_PREFIX + lengths, dtype=np.int64)
        starts = (ends - lengths).astype(np.int64)
        data = np.empty(int(ends[-1]) if len(ends) else 0, np.uint8)
        data[starts[:, None] + np.arange(-_PREFIX, 0)] = lengths.astype("<u4").view(np.uint8).reshape(-1, _PREFIX)
        view, ordered = memoryview(data.data), frames[order]
        columns = self.source[ordered], self.offset[ordered], starts[order], ends[order]
        for number, offset, start, stop in zip(*(column.tolist() for column in columns), strict=True):
            self.sources[number].read_into(offset, view[start:stop])
        if self.where is not None and len(bad := np.flatnonzero(~are_complete(data, starts, lengths))):
            raise DataError(damaged_frame(self.where(int(frames[bad[0]]))))
        return data

    def _recoded(self, recoding: Recoding, frames: NDArray[np.int64], order: NDArray[np.int64]) -> NDArray[np.uint8]:
        parts = [b""] * (2 * len(frames))
        for place, i in zip(order.tolist(), frames[order].tolist(), strict=True):
            data = recoding.frame(self, i) if recoding.chosen[i] else self.checked(i)
            parts[2 * place : 2 * place + 2] = len(data).to_bytes(_PREFIX, "little"), bytes(data)
        return np.frombuffer(b"".join(parts), np.uint8)

    def checked(self, i: int) -> bytes | memoryview:
        """The bytes of one frame. Raises DataError if it is neither a JPEG nor a PNG, or is incomplete."""
        data = self.read(i)
        if self.where is None or is_complete(data):
            return data
        raise DataError(damaged_frame(self.where(i)))


@dataclass(frozen=True, slots=True)
class Recoding:
    """How frames are re-encoded.

    Attributes:
        chosen: bool (n,), which frames are.
        swap: bool (n,), whether red and blue are swapped.
        size: pixels of each side; None: the frame's own.
        quality: of the JPEG, 1 to 100.
    """

    chosen: NDArray[np.bool_]
    swap: NDArray[np.bool_]
    size: int | None
    quality: int

    def frame(self, frames: EncodedFrames, i: int) -> bytes:
        """Re-encode frame i. Raises DataError if it cannot be decoded."""
        try:
            image = decode(frames.checked(i), bgr=bool(self.swap[i]))
        except ValueError as error:
            where = frames.where or "frame {}".format
            raise DataError(f"{where(i)}: cannot be decoded ({error})") from None
        return encode(resize(image, self.size) if self.size else image, self.quality)


def damaged_frame(where: str) -> str:
    """The message for a frame that is not an image."""
    return (
        f"{where}: expected a complete JPEG or PNG image, got other bytes. The source is damaged or has changed: "
        "compare it with the original (`oxe-curate filter --verify`), or run filter again"
    )


_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG = np.frombuffer(_SIGNATURE, np.uint8)


def is_complete(data: bytes | memoryview) -> bool:
    """Whether a frame begins and ends like a JPEG, or begins like a PNG; `are_complete` of one frame."""
    jpeg = data[:2] == b"\xff\xd8" and data[-2:] == b"\xff\xd9"
    return len(data) >= len(_SIGNATURE) and (jpeg or data[: len(_SIGNATURE)] == _SIGNATURE)


def are_complete(data: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which frames begin and end like a JPEG, or begin like a PNG: bool (n,).

    Args:
        data: uint8 (b,).
        starts: int64 (n,), where each frame begins in `data`.
        lengths: int64 (n,).
    """
    complete = np.zeros(len(starts), bool)
    long = np.flatnonzero(lengths >= len(_PNG))
    first, end = starts[long], starts[long] + lengths[long]
    complete[long] = (
        (data[first] == 0xFF) & (data[first + 1] == 0xD8) & (data[end - 2] == 0xFF) & (data[end - 1] == 0xD9)
    )
    rest = long[~complete[long]]
    complete[rest] = (data[starts[rest, None] + np.arange(len(_PNG))] == _PNG).all(axis=1)
    return complete


FRAME_FORMATS = ("PNG", "JPEG")
"""Pillow's names of the formats that frames may have: those of tfds's images."""


def decode(data: bytes | memoryview, bgr: bool = False) -> NDArray[np.uint8]:
    """Decode a JPEG or PNG to uint8 (H, W, 3), RGB, or BGR if `bgr`. Raises ValueError on anything else."""
    if bytes(data[:2]) == b"\xff\xd8":
        return np.asarray(simplejpeg.decode_jpeg(data, colorspace="BGR" if bgr else "RGB"), np.uint8)
    image = np.asarray(open_image(data))
    return image[:, :, ::-1] if bgr else image


def open_image(data: bytes | memoryview) -> Image.Image:
    """Decode a JPEG or PNG, the formats of frames, to a Pillow image in mode RGB; see `to_rgb`.

    Raises:
        ValueError: the bytes are neither, or damaged.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FRAME_FORMATS) as image:
            return to_rgb(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # SyntaxError: a damaged PNG
        raise ValueError(str(error)) from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to 8-bit RGB, as TensorFlow's `decode_image` does with three channels.

    Of 16-bit values the upper 8 bits are used (Pillow's own conversion saturates them), grey is repeated, and alpha is
    dropped.

    Raises:
        ValueError: an image of floats, whose range is not known.
    """
    if image.mode.startswith("I"):  # Pillow keeps 16 bits only in grey images
        grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.mode.startswith("F"):
        raise ValueError("an image of floats, expected 8 or 16 bits per channel")
    return image.convert("RGB")


def resize(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize uint8 (H, W, 3) to (size, size, 3) like OpenVLA's loader; see `lanczos_resized`."""
    return image if image.shape[:2] == (size, size) else lanczos_resized(image, size)


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
            return encode(resize(np.asarray(to_rgb(upright)), size), quality)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # SyntaxError: a damaged PNG
        raise ValueError(str(error)) from None


def recode(
    frames: EncodedFrames,
    shown: NDArray[np.int64],
    swap: NDArray[np.bool_],
    size: int | None,
    quality: int,
    folder: Path | None = None,
) -> EncodedFrames:
    """Frames re-encoded at `size` (None: their own), with red and blue swapped where `swap`; others pass through.

    They are re-encoded when they are gathered. Where rows show the same frame more than once (windows, or a weight
    above 1), that would be done for each of them: it is done here, and a temporary file holds the new frames.

    Args:
        frames: n frames.
        shown: int64 (rows, window), the frames that each row shows; -1 for padding.
        swap: bool (n,).
        size: pixels of each side, or None.
        quality: of the JPEG, 1 to 100.
        folder: for the temporary file; None: the system's.

    Raises:
        DataError: a frame cannot be decoded. StorageError: the temporary file cannot be written.
    """
    recoding = Recoding(swap | (size is not None), swap, size, quality)
    if not recoding.chosen.any():
        return frames
    needed = np.unique(shown[shown >= 0])
    if shown.shape[1] == 1 and (shown >= 0).sum() <= _REPEATED * len(needed):
        return replace(frames, recoding=recoding)
    spool = Spool(folder)
    source, offset, length = frames.source.copy(), frames.offset.copy(), frames.length.copy()
    for i in needed[recoding.chosen[needed]].tolist():
        encoded = recoding.frame(frames, i)
        source[i], offset[i], length[i] = len(frames.sources), spool.add(encoded), len(encoded)
    return EncodedFrames([*frames.sources, spool], source, offset, length, frames.where)
