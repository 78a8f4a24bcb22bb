"""The frames that the rows of an output shard refer to, as byte ranges of source shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oxe_curate.errors import CorruptError, DataError
from oxe_curate.index import images
from oxe_curate.index.episodes import Episode
from oxe_curate.index.pages import ReadBytes
from oxe_curate.index.records import CHANGED, Record, ShardReader
from oxe_curate.rlds import example
from oxe_curate.rlds.tfrecord import Ensure

_GAP = 64 << 10  # bytes: frames closer than this are read together
_WHOLE = 8 << 20  # bytes: a longer list of frames is not read as a whole


def locate(
    buffer: memoryview, span: tuple[int, int], num_steps: int, role: str, ensure: Ensure | None = None
) -> NDArray[np.int64]:
    """int64 (T, 2): offset and length of each source step's frame in a camera's list; DataError on a mismatch."""
    frames = example.byte_ranges(buffer, example.Span(example.BYTES, *span), ensure)
    if len(frames) != num_steps:
        raise DataError(f"the {role} camera has {len(frames)} frames for {num_steps} steps")
    return frames


def ranges_needed(episode: Episode, role: str, needed: NDArray[np.int64]) -> list[tuple[int, int]]:
    """(offset, length) of the parts of an episode's record to read for the frames of some steps (n,) of a camera.

    The whole list of frames if they were not located yet; else as few pieces as the gaps between the frames allow.
    """
    frames = episode.frames.get(role)
    if frames is None:
        return [episode.spans[role]] if role in episode.spans else []
    starts, lengths = frames[needed].T
    ends = starts + lengths
    cuts = np.flatnonzero(starts[1:] - ends[:-1] > _GAP)
    pieces = zip(np.append(0, cuts + 1), np.append(cuts, len(ends) - 1), strict=True)
    return [(int(starts[first]), int(ends[last] - starts[first])) for first, last in pieces] if len(ends) else []


class FramePool:
    """The frames of one camera role that the rows of an output shard refer to.

    Args:
        role: of the camera.
        headers: locate frames by their headers only, since their bytes will not be read.
    """

    def __init__(self, role: str, headers: bool = False) -> None:
        self._role, self._headers = role, headers
        self._numbers: dict[str, int] = {}
        self._readers: list[ShardReader] = []
        self._parts: list[tuple[int, NDArray[np.int64]]] = []
        self._needed: list[NDArray[np.bool_]] = []
        self._swap: list[bool] = []
        self._names: list[str] = []
        self._count = 0

    def add(self, record: Record, episode: Episode, needed: NDArray[np.int64], swap: bool) -> int:
        """Add an episode's frames, of which the steps `needed` will be read; return the number of its first frame."""
        reader = record.reader
        number = self._numbers.setdefault(reader.name, len(self._readers))
        if number == len(self._readers):
            self._readers.append(reader)
        frames = episode.frames.get(self._role)
        if frames is None:
            frames = self._locate(record, episode, sparse=self._headers or len(needed) * 2 < episode.num_steps)
        if len(frames) != episode.num_steps or not frames[needed, 1].all():
            raise DataError(
                f"{episode.id}: a step has no frame of the {self._role} camera; remove the camera from the mixture"
            )
        first, last = episode.record[0], sum(episode.record)
        if frames[needed, 0].min() < first or int(frames[needed].sum(axis=1).max()) > last:
            raise DataError(f"{reader.name}: {episode.id}: a frame of the {self._role} camera is outside its record")
        base = self._count
        self._parts.append((number, frames))
        self._needed.append(np.bincount(needed, minlength=len(frames)) > 0)
        self._swap.append(swap)
        self._names.append(episode.id)
        self._count += len(frames)
        return base

    def finish(self, spec: Any, folder: Path | None = None) -> images.EncodedFrames:
        """Return all frames that were added, re-encoded if the mixture requires it.

        Args:
            spec: an `ImageSpec`.
            folder: for the temporary file of re-encoded frames.
        """
        frames = self.places()
        if not self._parts:
            return frames
        needed, swap = np.concatenate(self._needed), np.repeat(self._swap, [len(f) for _, f in self._parts])
        return images.recode(frames, needed, swap, spec.size, spec.quality, folder)

    def places(self) -> images.EncodedFrames:
        """Return all frames that were added, as they are in the source."""
        lengths = [len(f) for _, f in self._parts]
        episode = np.repeat(np.arange(len(lengths)), lengths)
        first = np.cumsum([0, *lengths])
        numbers = np.array([n for n, _ in self._parts], np.int64)
        flat = np.concatenate([f for _, f in self._parts]) if self._parts else np.empty((0, 2), np.int64)
        names, role = self._names, self._role
        shards = [self._readers[n].name for n, _ in self._parts]

        def where(i: int) -> str:
            number = int(episode[i])
            return f"{shards[number]}: {names[number]}, step {i - int(first[number])}, {role} camera"

        return images.EncodedFrames(self._readers, numbers[episode], flat[:, 0], flat[:, 1], where)

    def _locate(self, record: Record, episode: Episode, sparse: bool) -> NDArray[np.int64]:
        span = episode.spans.get(self._role)
        if span is None:
            raise DataError(f"{episode.id}: no {self._role} camera; remove the camera or the data set from the mixture")
        whole = record.reader.remote or (not sparse and span[1] <= _WHOLE)
        try:
            if whole:
                frames = locate(memoryview(record.read(*span)), (0, span[1]), episode.source_steps, self._role)
                frames[:, 0] += span[0]
            else:
                headers: Any = _Headers(record.read, record.reader.size)
                frames = locate(headers, span, episode.source_steps, self._role)
        except (CorruptError, DataError) as error:
            raise DataError(f"{record.reader.name}: {episode.id}: {error}; {CHANGED}") from None
        return frames[episode.frame_index]


class _Headers:
    """The bytes of a shard by position, read a few at a time: enough to follow the lengths from frame to frame."""

    def __init__(self, read: ReadBytes, size: int) -> None:
        self._read, self._size = read, size
        self._start, self._data = 0, memoryview(b"")

    def __getitem__(self, position: int) -> int:
        at = position - self._start
        if not 0 <= at < len(self._data):
            if not 0 <= position < self._size:
                raise IndexError
            self._data = memoryview(self._read(position, min(64, self._size - position)))
            self._start, at = position, 0
        return self._data[at]
