"""What is known of the frames that `filter --look N` decoded: a few numbers and a thumbnail of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

GREY, COLOUR = 16, 4
"""Cells along each side of the grey and the coloured thumbnail."""


@dataclass(frozen=True, eq=False, kw_only=True)
class LookedFrames:
    """The looked-at frames of one camera: n episodes with m frames in all.

    Attributes:
        starts: int64 (n + 1,), the first frame of each episode, and m. An episode may have none.
        step: int32 (m,), the step of the episode that shows the frame, after the trim.
        length: int32 (m,), bytes of the encoded frame, 0 if the step has none.
        checksum: uint32 (m,), CRC32C of these bytes.
        width, height: int32 (m,), in pixels; 0 if the frame is missing or cannot be decoded.
        channels: int8 (m,): 1 grey, 3 colours, 4 with alpha.
        mean, deviation: float32 (m, 3), of red, green and blue, 0 to 255.
        detail: float32 (m,), mean absolute difference of neighbouring pixels in grey levels, at the size of decoding.
        grey: uint8 (m, 16, 16), brightness of cells. colour: uint8 (m, 4, 4, 3), their red, green and blue.
    """

    starts: NDArray[np.int64]
    step: NDArray[np.int32]
    length: NDArray[np.int32]
    checksum: NDArray[np.uint32]
    width: NDArray[np.int32]
    height: NDArray[np.int32]
    channels: NDArray[np.int8]
    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]
    detail: NDArray[np.float32]
    grey: NDArray[np.uint8]
    colour: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def counts(self) -> NDArray[np.int64]:
        """int64 (n,): frames of each episode."""
        return np.diff(self.starts)

    @property
    def episode(self) -> NDArray[np.int64]:
        """int64 (m,): the episode of each frame."""
        return np.repeat(np.arange(len(self)), self.counts)

    def take(self, episodes: NDArray[np.int64]) -> LookedFrames:
        """The frames of some episodes, in the order given."""
        counts = self.counts[episodes]
        starts = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
        chosen = np.arange(int(starts[-1])) + np.repeat(self.starts[:-1][episodes] - starts[:-1], counts)
        return LookedFrames(starts=starts, **{name: getattr(self, name)[chosen] for name in FRAME_FIELDS})


FRAME_FIELDS = tuple(field.name for field in fields(LookedFrames) if field.name != "starts")
"""The fields of `LookedFrames` with one row per frame."""
_SHAPES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "step": (np.int32, ()), "length": (np.int32, ()), "checksum": (np.uint32, ()), "width": (np.int32, ()),
    "height": (np.int32, ()), "channels": (np.int8, ()), "mean": (np.float32, (3,)), "deviation": (np.float32, (3,)),
    "detail": (np.float32, ()), "grey": (np.uint8, (GREY, GREY)), "colour": (np.uint8, (COLOUR, COLOUR, 3)),
}  # fmt: skip


def empty_looks(frames: int, episodes: int = 0) -> LookedFrames:
    """Frames with all values zero, of one episode, or no frames of `episodes` episodes."""
    starts = np.array([0, frames]) if frames else np.zeros(episodes + 1, np.int64)
    return LookedFrames(
        starts=starts, **{name: np.zeros((frames, *shape), kind) for name, (kind, shape) in _SHAPES.items()}
    )


def join_looks(looks: Sequence[LookedFrames]) -> LookedFrames:
    """The frames of all episodes of several; at least one."""
    counts = np.concatenate([part.counts for part in looks])
    return LookedFrames(
        starts=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        **{name: np.concatenate([getattr(part, name) for part in looks]) for name in FRAME_FIELDS},
    )
