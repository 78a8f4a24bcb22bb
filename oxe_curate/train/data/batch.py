"""The types between shards and model: rows of numpy arrays, then batches of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from oxe_curate.train.data.mixed import PixelArray

Batch = dict[str, Any]
"""Name -> torch tensor, batch first. A family's collator and forward agree on the names. A collator may leave images as
`MixedImages`, of which `to_device` makes tensors."""

IGNORE = -100
"""Label of a token without a loss."""


@dataclass(frozen=True, slots=True)
class TextRows:
    """The image-text samples of a batch.

    Attributes:
        images: uint8 (m, S, S, 3), RGB, or the same before resizing.
        question: the prompt, "" for a caption. answer: the text to learn.
        factor: float32 (m,): weight of each row's language loss.
        place: int64 (m,): index of each sample in the batch; the robot rows fill the other places in order.
    """

    images: PixelArray
    question: Sequence[str]
    answer: Sequence[str]
    factor: NDArray[np.float32]
    place: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Rows:
    """The n robot samples of a batch, decoded but not yet tokenized.

    Attributes:
        position: int64 (n,): position of each sample in the run's endless sequence; seeds its augmentation.
        dataset: int64 (n,): index into the mixture's names. instruction: n texts.
        images: uint8 (n, W, C, S, S, 3): W observations, oldest first, of C cameras, RGB; or the same before resizing.
        observation_mask: bool (n, W): False where an observation is padding before the start of the episode.
        actions: float32 (n, W, K, 7), normalized: the K actions from each observation's step.
        bins: uint8 (n, W, K, 7), the actions as bins.
        action_mask: bool (n, W, K): False where an action is padding.
        proprio: float32 (n, P), normalized to [-1, 1] by the data set's bounds, zero-padded to the widest; P may be 0.
        texts: the image-text samples of the batch, if there are any.
        random: float32 (n, 8) in [0, 1), a function of (seed, position): for augmentation.
        sample_id: for messages and checks.
    """

    position: NDArray[np.int64]
    dataset: NDArray[np.int64]
    instruction: Sequence[str]
    images: PixelArray
    observation_mask: NDArray[np.bool_]
    actions: NDArray[np.float32]
    bins: NDArray[np.uint8]
    action_mask: NDArray[np.bool_]
    proprio: NDArray[np.float32]
    random: NDArray[np.float32]
    sample_id: Sequence[str]
    texts: TextRows | None = None


class Collator(Protocol):
    """Converts rows into a batch of CPU tensors, in the threads of the loader."""

    def __call__(self, rows: Rows) -> Batch:
        """Tokenize the texts and pack all inputs of the family's forward."""


def pad_right(rows: Sequence[Sequence[int]], value: int, multiple: int = 1) -> NDArray[np.int64]:
    """Stack rows of ids into int64 (n, width), padded on the right to the longest row, rounded up to a multiple."""
    width = -(-max(map(len, rows)) // multiple) * multiple
    out = np.full((len(rows), width), value, np.int64)
    for target, row in zip(out, rows, strict=True):
        target[: len(row)] = row
    return out
