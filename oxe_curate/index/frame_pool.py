"""The frames that a shard's rows refer to, as byte ranges of mapped or fetched source shards."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from oxe_curate.errors import DataError
from oxe_curate.index import images
from oxe_curate.index.episodes import Episode
from oxe_curate.rlds import example
from oxe_curate.rlds.remote import RemoteShard
from oxe_curate.storage import Folder

_GAP = 64 << 10  # bytes: frames closer than this are read in one go


def locate(buffer: memoryview, span: tuple[int, int], num_steps: int, role: str) -> NDArray[np.int64]:
    """int64 (T, 2): offset and length of each source step's frame in a camera's list; DataError on a mismatch."""
    frames = example.byte_ranges(buffer, example.Span(example.BYTES, *span))
    if len(frames) != num_steps:
        raise DataError(f"the {role} camera has {len(frames)} frames for {num_steps} steps")
    return frames


class FramePool:
    """The frames of one camera role that a shard's rows refer to."""

    def __init__(self, source: Folder, role: str) -> None:
        self._source = source
        self._role = role
        self._shards: dict[str, int] = {}
        self._buffers: list[memoryview] = []
        self._remote: dict[int, RemoteShard] = {}
        self._parts: list[tuple[int, NDArray[np.int64]]] = []
        self._needed: list[NDArray[np.bool_]] = []
        self._swap: list[bool] = []
        self._names: list[str] = []
        self._count = 0

    def add(self, episode: Episode, needed: NDArray[np.int64], swap: bool) -> int:
        """Add an episode's frames, of which the steps `needed` will be read; return the number of its step 0."""
        number = self._open(episode.shard)
        frames = episode.frames.get(self._role)
        span = episode.spans.get(self._role, (0, 0))
        if sum(span) > len(self._buffers[number]):
            raise DataError(
                f"{self._source}/{episode.shard}: the file ends before the {self._role} frames that the index tells of "
                f"{episode.id}. It has changed since it was filtered: run filter again."
            )
        if frames is None:
            frames = self._locate(episode, number, sparse=len(needed) * 2 < episode.num_steps)
        if len(frames) != episode.num_steps or not frames[needed, 1].all():
            raise DataError(f"{episode.id}: a step has no frame of the {self._role} camera. Leave the camera out.")
        self._read_ahead(number, frames[needed])
        base = self._count
        self._parts.append((number, frames))
        self._needed.append(np.bincount(needed, minlength=len(frames)) > 0)
        self._swap.append(swap)
        self._names.append(episode.id)
        self._count += len(frames)
        return base

    def finish(self, spec: Any) -> images.EncodedFrames:
        """All frames that were added; decoded and encoded again where the mixture asks for it."""
        buffer = np.repeat([n for n, _ in self._parts], [len(f) for _, f in self._parts]).astype(np.int64)
        flat = np.concatenate([f for _, f in self._parts]) if self._parts else np.empty((0, 2), np.int64)
        frames = images.EncodedFrames(self._buffers, buffer, flat[:, 0], flat[:, 1])
        if not self._parts or (spec.size is None and not any(self._swap)):
            return frames
        lengths = [len(f) for _, f in self._parts]
        episode = np.repeat(np.arange(len(lengths)), lengths)
        needed, swap = np.concatenate(self._needed), np.asarray(self._swap)[episode]
        return images.recode(frames, needed, swap, spec.size, spec.quality, lambda i: self._names[episode[i]])

    def _open(self, path: str) -> int:
        if path not in self._shards:
            number = self._shards[path] = len(self._buffers)
            if self._source.is_local:
                self._buffers.append(self._source.map(path))
            else:
                self._remote[number] = RemoteShard(self._source, path)
                self._buffers.append(self._remote[number].buffer)
        return self._shards[path]

    def _locate(self, episode: Episode, number: int, sparse: bool) -> NDArray[np.int64]:
        span = episode.spans.get(self._role)
        if span is None:
            raise DataError(f"{episode.id}: it has no {self._role} camera. Leave the camera or the data set out.")
        if number in self._remote or not sparse:
            self._fetch(number, *span)
        return locate(self._buffers[number], span, episode.source_steps, self._role)[episode.frame_index]

    def _read_ahead(self, number: int, frames: NDArray[np.int64]) -> None:
        """Ask for the frames in as few pieces as their gaps allow."""
        starts, ends = frames[:, 0], frames[:, 0] + frames[:, 1]
        cuts = np.flatnonzero(starts[1:] - ends[:-1] > _GAP)
        for first, last in zip(np.append(0, cuts + 1), np.append(cuts, len(frames) - 1), strict=True):
            self._fetch(number, int(starts[first]), int(ends[last] - starts[first]))

    def _fetch(self, number: int, offset: int, length: int) -> None:
        if number in self._remote:
            self._remote[number].ensure(offset, length)
        else:
            Folder.advise(self._buffers[number], offset, length)
