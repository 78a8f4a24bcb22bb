"""What travels from the shards to a model: rows of numpy arrays, then a batch of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Batch = dict[str, Any]
"""Name -> torch tensor, batch first. What the names are is between a family's collator and its forward."""

IGNORE = -100
"""Label of a token without a loss."""


@dataclass(frozen=True, slots=True)
class TextRows:
    """Image-text samples of a batch.

    Attributes:
        images: uint8 (m, S, S, 3), RGB.
        question: the prompt, "" for a caption. answer: the text to be learned.
        factor: float32 (m,): weight of each row's language loss.
        place: int64 (m,): which of the batch's n samples each is; the robot rows fill the others in order.
    """

    images: NDArray[np.uint8]
    question: Sequence[str]
    answer: Sequence[str]
    factor: NDArray[np.float32]
    place: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Rows:
    """Robot samples of a batch, n of them, decoded but not yet tokenised.

    Attributes:
        position: int64 (n,): place of each sample in the run's endless sequence; seeds its augmentation.
        dataset: int64 (n,): index into the mixture's names. instruction: one text a sample.
        images: uint8 (n, W, C, S, S, 3): W observations, oldest first, of C cameras, RGB.
        observation_mask: bool (n, W): False where an observation is padding before the episode's start.
        actions: float32 (n, W, K, 7), normalised: the K actions from each observation's step on.
        bins: uint8 (n, W, K, 7), the same as bins.
        action_mask: bool (n, W, K): False where an action is padding.
        proprio: float32 (n, P), normalised to [-1, 1] by the data set's bounds, zero-padded to the widest; P may be 0.
        texts: the batch's image-text samples, if the mixture has any.
        random: float32 (n, 8) in [0, 1), a function of (seed, position) alone: for augmentation.
        sample_id: for messages and checks.
    """

    position: NDArray[np.int64]
    dataset: NDArray[np.int64]
    instruction: Sequence[str]
    images: NDArray[np.uint8]
    observation_mask: NDArray[np.bool_]
    actions: NDArray[np.float32]
    bins: NDArray[np.uint8]
    action_mask: NDArray[np.bool_]
    proprio: NDArray[np.float32]
    random: NDArray[np.float32]
    sample_id: Sequence[str]
    texts: TextRows | None = None


class Collator(Protocol):
    """Turns rows into a batch of CPU tensors; runs in the loader's workers."""

    def __call__(self, rows: Rows) -> Batch:
        """Tokenise the texts, and pack everything the family's forward needs."""


def pad_right(rows: Sequence[Sequence[int]], value: int, multiple: int = 1) -> NDArray[np.int64]:
    """Stack rows of ids into int64 (n, width), padded on the right to the longest row, rounded up to a multiple."""
    width = -(-max(map(len, rows)) // multiple) * multiple
    out = np.full((len(rows), width), value, np.int64)
    for target, row in zip(out, rows, strict=True):
        target[: len(row)] = row
    return out
