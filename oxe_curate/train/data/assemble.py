"""Located samples -> Rows: gather the numbers and decode the images directly into the array of the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from oxe_curate.index.images import open_image
from oxe_curate.train.data.batch import Rows, TextRows
from oxe_curate.train.data.order import random_numbers
from oxe_curate.train.data.rows import Located, RowBlock, SampleFormat


def assemble(
    positions: NDArray[np.int64],
    samples: Sequence[Located],
    sample_format: SampleFormat,
    image_size: int,
    seed: int,
    text_factor: float = 1.0,
) -> Rows:
    """Make a batch of samples; separates robot rows and image-text rows.

    Args:
        positions: int64 (N,), position of each sample in the run.
        samples: N samples.
        sample_format: the part of a robot row to read.
        image_size: S; images of another size are resized with Pillow's bicubic filter, as at inference.
        seed: of the random numbers.
        text_factor: factor of the language loss.

    Raises:
        DataError: an image cannot be decoded; the message has the shard, row and sample.
    """
    is_text = np.array([len(block.texts) == 2 for block, _ in samples], bool)
    robots = [sample for sample, text in zip(samples, is_text, strict=True) if not text]
    n, window, chunk = len(robots), sample_format.window, sample_format.chunk
    records = np.zeros(n, sample_format.record)
    images = np.empty((n, window, len(sample_format.cameras), image_size, image_size, 3), np.uint8)
    for i, (block, row) in enumerate(robots):
        record = records[i] = block.records[row]
        seen = record["observation_mask"]
        for w in range(window):
            if seen[w]:
                for camera in range(len(sample_format.cameras)):
                    _decode(block, row, w, camera, images[i, w, camera])
        if not seen.all():  # observations before the start of the episode repeat the first one
            images[i, ~seen] = images[i, seen.argmax()]
    ahead = np.arange(window)[:, None] + np.arange(chunk)
    place = np.flatnonzero(is_text)
    texts = [sample for sample, text in zip(samples, is_text, strict=True) if text]
    return Rows(
        position=positions[~is_text],
        dataset=records["dataset"].astype(np.int64),
        instruction=[block.texts[0][row] for block, row in robots],
        images=images,
        observation_mask=records["observation_mask"],
        actions=records["action"][:, ahead],
        bins=records["bins"][:, ahead],
        action_mask=records["action_mask"][:, ahead],
        proprio=records["proprio"],
        random=random_numbers(seed, positions[~is_text]),
        sample_id=_SampleIds(robots),
        texts=_texts(texts, place, image_size, text_factor) if texts else None,
    )


def _texts(texts: Sequence[Located], place: NDArray[np.int64], size: int, factor: float) -> TextRows:
    images = np.empty((len(texts), size, size, 3), np.uint8)
    for i, (block, row) in enumerate(texts):
        _decode(block, row, 0, 0, images[i])
    return TextRows(
        images=images,
        question=[block.texts[0][row] for block, row in texts],
        answer=[block.texts[1][row] for block, row in texts],
        factor=np.full(len(texts), factor, np.float32),
        place=place,
    )


def _decode(block: RowBlock, row: int, observation: int, camera: int, out: NDArray[np.uint8]) -> None:
    data = block.frame(row, observation, camera)
    try:
        decode_into(data, out, block.swapped(row, camera))
    except ValueError as error:
        raise block.damaged(row, observation, camera, str(error)) from None


def decode_into(data: bytes | memoryview, out: NDArray[np.uint8], swapped: bool = False) -> None:
    """Decode a JPEG or PNG into uint8 (S, S, 3), RGB, and resize it if needed.

    Args:
        data: the encoded image.
        out: uint8 (S, S, 3).
        swapped: red and blue are exchanged in it.

    Raises:
        ValueError: another format, or a damaged image.
    """
    if bytes(data[:2]) == b"\xff\xd8":
        order = "BGR" if swapped else "RGB"
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        if (height, width) == out.shape[:2]:
            simplejpeg.decode_jpeg(data, order, buffer=out)
            return
        out[:] = resize_image(Image.fromarray(simplejpeg.decode_jpeg(data, order)), out.shape[0])
    else:
        decoded = resize_image(open_image(data), out.shape[0])
        out[:] = decoded[:, :, ::-1] if swapped else decoded


def resize_image(image: Any, size: int) -> NDArray[np.uint8]:
    """A PIL image -> uint8 (size, size, 3), ignoring the aspect ratio: "resize-naive" of the released models."""
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image, np.uint8)


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
