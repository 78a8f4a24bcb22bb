"""Located samples -> Rows: gather the numbers and decode the images directly into the arrays of the batch."""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image

from oxe_curate.errors import DataError
from oxe_curate.index import images
from oxe_curate.train.data.batch import Rows, TextRows
from oxe_curate.train.data.mixed import MixedImages, PixelArray
from oxe_curate.train.data.order import random_numbers
from oxe_curate.train.data.rows import Located, RowBlock, SampleFormat
from oxe_curate.train.settings import ResizeFilter

_BYTES = 256 << 20
"""Bytes of the mixed images of a batch: images that exceed an equal part are resized where they are decoded."""
_GROUPS = 8
"""Sizes in a batch of mixed images, since each costs the device some calls: images of the rarest are resized here."""


def assemble(
    positions: NDArray[np.int64],
    samples: Sequence[Located],
    sample_format: SampleFormat,
    image_size: int,
    seed: int,
    text_factor: float = 1.0,
    resize: ResizeFilter = "bicubic",
    mixed: bool = False,
    pin: bool = False,
) -> Rows:
    """Make a batch of samples; separates robot rows and image-text rows.

    Args:
        positions: int64 (N,), position of each sample in the run.
        samples: N samples.
        sample_format: the part of a robot row to read.
        image_size: S.
        seed: of the random numbers.
        text_factor: factor of the language loss.
        resize: the filter for images of another size.
        mixed: leave images at their own size, as `MixedImages`; otherwise resize them here.
        pin: decode mixed images into page-locked memory.

    Raises:
        DataError: an image cannot be decoded; the message has the shard, row and sample.
    """
    is_text = np.array([len(block.texts) == 2 for block, _ in samples], bool)
    robots = [sample for sample, text in zip(samples, is_text, strict=True) if not text]
    n, window, chunk = len(robots), sample_format.window, sample_format.chunk
    records = np.zeros(n, sample_format.record)
    for i, (block, row) in enumerate(robots):
        records[i] = block.records[row]
    cameras = range(len(sample_format.cameras))
    shown = _shown(records["observation_mask"], len(cameras))
    frames = [
        _Frame(*robots[i], w, camera)
        for i, w in np.argwhere(records["observation_mask"]).tolist()
        for camera in cameras
    ]  # fmt: skip
    decode = functools.partial(_decode_all, size=image_size, resize=resize, mixed=mixed, pin=pin)
    ahead = np.arange(window)[:, None] + np.arange(chunk)
    place = np.flatnonzero(is_text)
    texts = [sample for sample, text in zip(samples, is_text, strict=True) if text]
    return Rows(
        position=positions[~is_text],
        dataset=records["dataset"].astype(np.int64),
        instruction=[block.texts[0][row] for block, row in robots],
        images=decode(frames, shown),
        observation_mask=records["observation_mask"],
        actions=records["action"][:, ahead],
        bins=records["bins"][:, ahead],
        action_mask=records["action_mask"][:, ahead],
        proprio=records["proprio"],
        random=random_numbers(seed, positions[~is_text]),
        sample_id=_SampleIds(robots),
        texts=_texts(texts, place, decode, text_factor) if texts else None,
    )


def _shown(seen: NDArray[np.bool_], cameras: int) -> NDArray[np.int64]:
    """int64 (n, W, C), the image of each observation (n, W), counted over those seen: padding repeats the first one."""
    numbers = (np.cumsum(seen.ravel()) - 1).reshape(seen.shape)
    first = np.take_along_axis(numbers, seen.argmax(axis=1)[:, None], axis=1)
    return np.where(seen, numbers, first)[..., None] * cameras + np.arange(cameras)


def _texts(
    texts: Sequence[Located], place: NDArray[np.int64], decode: Callable[..., PixelArray], factor: float
) -> TextRows:
    return TextRows(
        images=decode([_Frame(block, row, 0, 0) for block, row in texts], np.arange(len(texts))),
        question=[block.texts[0][row] for block, row in texts],
        answer=[block.texts[1][row] for block, row in texts],
        factor=np.full(len(texts), factor, np.float32),
        place=place,
    )


class _Frame(NamedTuple):
    """The image of a camera at an observation of a row."""

    block: RowBlock
    row: int
    observation: int
    camera: int

    def read(self) -> bytes | memoryview:
        return self.block.frame(self.row, self.observation, self.camera)

    def error(self, reason: ValueError) -> DataError:
        return self.block.damaged(self.row, self.observation, self.camera, str(reason))

    def decode(self, data: bytes | memoryview, out: NDArray[np.uint8], resize: ResizeFilter) -> None:
        try:
            decode_into(data, out, self.block.swapped(self.row, self.camera), resize)
        except ValueError as error:
            raise self.error(error) from None


def _decode_all(
    frames: Sequence[_Frame], shown: NDArray[np.int64], *, size: int, resize: ResizeFilter, mixed: bool, pin: bool
) -> PixelArray:
    """The images of an array of which each entry shows one of the frames; each is decoded once."""
    if mixed:
        return _decode_mixed(frames, shown, size, resize, pin)
    pixels = np.empty((len(frames), size, size, 3), np.uint8)
    for frame, out in zip(frames, pixels, strict=True):
        frame.decode(frame.read(), out, resize)
    if shown.size == len(frames):  # in order: nothing is shown twice
        return pixels.reshape(*shown.shape, size, size, 3)
    return pixels[shown]


def _decode_mixed(
    frames: Sequence[_Frame], shown: NDArray[np.int64], size: int, resize: ResizeFilter, pin: bool
) -> MixedImages:
    encoded = [frame.read() for frame in frames]
    members: dict[tuple[int, int], list[int]] = {}
    for number, (frame, data) in enumerate(zip(frames, encoded, strict=True)):
        try:
            height, width = _shape(data)
        except ValueError as error:
            raise frame.error(error) from None
        shape = (height, width) if 3 * height * width * len(frames) <= _BYTES else (size, size)
        members.setdefault(shape, []).append(number)
    by_pixels = sorted(members, key=lambda shape: len(members[shape]) * shape[0] * shape[1], reverse=True)
    own = members.setdefault((size, size), [])
    for shape in set(by_pixels[_GROUPS:]) - {(size, size)}:
        own += members.pop(shape)
    groups = []
    members = {shape: numbers for shape, numbers in members.items() if numbers}
    for shape, numbers in members.items():
        groups.append(torch.empty((len(numbers), *shape, 3), dtype=torch.uint8, pin_memory=pin))
        for number, out in zip(numbers, groups[-1].numpy(), strict=True):
            frames[number].decode(encoded[number], out, resize)
    place = np.empty(len(frames), np.int64)
    place[np.concatenate([np.empty(0, np.int64), *members.values()]).astype(np.int64)] = np.arange(len(frames))
    return MixedImages(tuple(groups), place[shown], size, resize)


def _shape(data: bytes | memoryview) -> tuple[int, int]:
    """Height and width of an image, from its header. Raises ValueError for other bytes than a JPEG or PNG."""
    if bytes(data[:2]) == b"\xff\xd8":
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        return height, width
    if len(data) >= 24 and bytes(data[12:16]) == b"IHDR":
        width, height = struct.unpack(">II", data[16:24])
        return height, width
    width, height = images.open_image(data).size
    return height, width


def decode_into(
    data: bytes | memoryview, out: NDArray[np.uint8], swapped: bool = False, resize: ResizeFilter = "bicubic"
) -> None:
    """Decode a JPEG or PNG as RGB, and resize it if needed.

    Args:
        data: the encoded image.
        out: uint8 (S, S, 3), or (H, W, 3) of the image's own size.
        swapped: red and blue are exchanged in it.
        resize: the filter.

    Raises:
        ValueError: another format, or a damaged image.
    """
    if bytes(data[:2]) == b"\xff\xd8":
        order = "BGR" if swapped else "RGB"
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        if (height, width) == out.shape[:2]:
            simplejpeg.decode_jpeg(data, order, buffer=out)
            return
        out[:] = resize_image(Image.fromarray(simplejpeg.decode_jpeg(data, order)), out.shape[0], resize)
    else:
        image = images.open_image(data)
        same = image.size[::-1] == out.shape[:2]
        pixels = np.asarray(image) if same else resize_image(image, out.shape[0], resize)
        out[:] = pixels[:, :, ::-1] if swapped else pixels


def resize_image(picture: Image.Image, size: int, resize: ResizeFilter = "bicubic") -> NDArray[np.uint8]:
    """Resize an RGB image on the CPU: uint8 (size, size, 3), within one level of `resize_images` (bicubic: equal).

    The aspect ratio is ignored: "resize-naive" of the released models.
    """
    if resize == "lanczos3":
        return images.resize(np.asarray(picture, np.uint8), size)
    if picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(picture, np.uint8)


class _SampleIds(Sequence[str]):
    """Ids of the samples of a batch, read from the shards on access."""

    def __init__(self, samples: Sequence[Located]) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        block, row = self._samples[index]
        return block.sample_id(row)
