"""The frames that the rows of an output shard refer to, as byte ranges of source shards."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from oxe_curate.errors import DataError
from oxe_curate.index import images
from oxe_curate.index.episodes import Episode
from oxe_curate.rlds import example
from oxe_curate.rlds.remote import ShardBytes, open_shard
from oxe_curate.rlds.tfrecord import Ensure
from oxe_curate.storage import Folder

_GAP = 64 << 10  # bytes: frames closer than this are read together


def locate(
    buffer: memoryview, span: tuple[int, int], num_steps: int, role: str, ensure: Ensure | None = None
) -> NDArray[np.int64]:
    """int64 (T, 2): offset and length of each source step's frame in a camera's list; DataError on a mismatch."""
    frames = example.byte_ranges(buffer, example.Span(example.BYTES, *span), ensure)
    if len(frames) != num_steps:
        raise DataError(f"the {role} camera has {len(frames)} frames for {num_steps} steps")
    return frames


class FramePool:
    """The frames of one camera role that the rows of an output shard refer to."""

    def __init__(self, source: Folder, role: str) -> None:
        self._source = source
        self._role = role
        self._numbers: dict[str, int] = {}
        self._shards: list[ShardBytes] = []
        self._parts: list[tuple[int, NDArray[np.int64]]] = []
        self._needed: list[NDArray[np.bool_]] = []
        self._swap: list[bool] = []
        self._names: list[str] = []
        self._count = 0

    def add(self, episode: Episode, needed: NDArray[np.int64], swap: bool) -> int:
        """Add an episode's frames, of which the steps `needed` will be read; return the number of its first frame."""
        number = self._open(episode.shard)
        frames = episode.frames.get(self._role)
        span = episode.spans.get(self._role, (0, 0))
        if sum(span) > len(self._shards[number].buffer):
            raise DataError(
                f"{self._source}/{episode.shard}: the file ends before the {self._role} frames of {episode.id}; it has "
                "changed since it was filtered, so run `oxe-curate filter` again"
            )
        if frames is None:
            frames = self._locate(episode, number, sparse=len(needed) * 2 < episode.num_steps)
        if len(frames) != episode.num_steps or not frames[needed, 1].all():
            raise DataError(
                f"{episode.id}: a step has no frame of the {self._role} camera; remove the camera from the mixture"
            )
        self._read_ahead(number, frames[needed])
        base = self._count
        self._parts.append((number, frames))
        self._needed.append(np.bincount(needed, minlength=len(frames)) > 0)
        self._swap.append(swap)
        self._names.append(episode.id)
        self._count += len(frames)
        return base

    def finish(self, spec: Any) -> images.EncodedFrames:
        """Return all frames that were added, re-encoded if the mixture requires it."""
        for shard in self._shards:
            shard.wait()
        buffer = np.repeat([n for n, _ in self._parts], [len(f) for _, f in self._parts]).astype(np.int64)
        flat = np.concatenate([f for _, f in self._parts]) if self._parts else np.empty((0, 2), np.int64)
        frames = images.EncodedFrames([shard.buffer for shard in self._shards], buffer, flat[:, 0], flat[:, 1])
        if not self._parts or (spec.size is None and not any(self._swap)):
            return frames
        lengths = [len(f) for _, f in self._parts]
        episode = np.repeat(np.arange(len(lengths)), lengths)
        needed, swap = np.concatenate(self._needed), np.asarray(self._swap)[episode]
        return images.recode(frames, needed, swap, spec.size, spec.quality, lambda i: self._names[episode[i]])

    def _open(self, path: str) -> int:
        if path not in self._numbers:
            self._numbers[path] = len(self._shards)
            self._shards.append(open_shard(self._source, path))
        return self._numbers[path]

    def _locate(self, episode: Episode, number: int, sparse: bool) -> NDArray[np.int64]:
        span = episode.spans.get(self._role)
        if span is None:
            raise DataError(f"{episode.id}: no {self._role} camera; remove the camera or the data set from the mixture")
        shard = self._shards[number]
        if shard.remote or not sparse:
            shard.prefetch_many([span])
        return locate(shard.buffer, span, episode.source_steps, self._role, shard.ensure)[episode.frame_index]

    def _read_ahead(self, number: int, frames: NDArray[np.int64]) -> None:
        """Fetch the frames in as few pieces as their gaps allow."""
        starts, ends = frames[:, 0], frames[:, 0] + frames[:, 1]
        cuts = np.flatnonzero(starts[1:] - ends[:-1] > _GAP)
        runs = zip(
            starts[np.append(0, cuts + 1)].tolist(), ends[np.append(cuts, len(frames) - 1)].tolist(), strict=True
        )
        self._shards[number].prefetch_many((start, end - start) for start, end in runs)
