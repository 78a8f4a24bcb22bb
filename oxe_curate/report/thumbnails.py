"""A few frames of an episode as small JPEGs, read from the source shard by byte range."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from oxe_curate.errors import CurateError
from oxe_curate.filter.scan import ROLES
from oxe_curate.index import images
from oxe_curate.index.frame_pool import locate
from oxe_curate.rlds.remote import RemoteShard
from oxe_curate.storage import Folder

WIDTH = 160
QUALITY = 80


@dataclass(frozen=True)
class Picture:
    """One frame, or what kept it from being shown.

    Attributes:
        uri: data URI of a JPEG; empty where `problem` says why there is none.
        step: of the source, from 0.
    """

    uri: str
    role: str
    step: int
    width: int = WIDTH
    height: int = WIDTH
    problem: str = ""


def pictures(source: Folder, row: dict[str, Any], count: int, bgr: frozenset[str] = frozenset()) -> list[Picture]:
    """First, last and evenly spaced frames of an episode, of its first camera that looks from outside, or any other.

    Nothing is raised for a shard that is gone or a frame that does not decode: a report must show what there is.

    Args:
        source: root of the shards.
        row: columns of the index: shard, source_steps, frame_index, cameras, camera_spans.
        count: how many frames; of one, it is the middle one.
        bgr: roles whose frames are stored with red and blue exchanged.
    """
    spans = {role: (span["offset"], span["length"]) for role, span in row["camera_spans"]}
    role = next((r for r in ROLES if spans.get(r, (0, 0))[1]), None)
    if role is None:
        return [Picture("", "", 0, problem="no frames")]
    try:
        if not source.exists(row["shard"]):
            return [Picture("", role, 0, problem="the source shard is not there")]
        shard = _Shard(source, row["shard"])
        frames = locate(shard.ensured(*spans[role]), spans[role], row["source_steps"], role)
    except CurateError as error:
        return [Picture("", role, 0, problem=str(error).split(". ")[0])]
    steps = row["frame_index"] or list(range(row["source_steps"]))
    return [_picture(shard, frames, step, role, role in bgr) for step in _spread(steps, count)]


def _spread(steps: Sequence[int], count: int) -> list[int]:
    if not steps:
        return []
    at = [len(steps) // 2] if count == 1 else np.linspace(0, len(steps) - 1, count).round().astype(int).tolist()
    return [steps[i] for i in sorted(set(at))]


def _picture(shard: _Shard, frames: NDArray[np.int64], step: int, role: str, swap: bool) -> Picture:
    offset, length = frames[step].tolist()
    if not length:
        return Picture("", role, step, problem="empty frame")
    try:
        pixels = images.decode(shard.ensured(offset, length)[offset : offset + length])
    except ValueError:
        return Picture("", role, step, problem="does not decode")
    image = Image.fromarray(np.ascontiguousarray(pixels[:, :, ::-1] if swap else pixels))
    size = (WIDTH, max(1, round(WIDTH * image.height / image.width)))
    small = np.asarray(image.resize(size, Image.Resampling.LANCZOS))
    uri = "data:image/jpeg;base64," + base64.b64encode(images.encode(small, QUALITY)).decode()
    return Picture(uri, role, step, *size)


class _Shard:
    """A source shard, mapped or fetched."""

    def __init__(self, source: Folder, path: str) -> None:
        self._remote = None if source.is_local else RemoteShard(source, path)
        self._buffer = self._remote.buffer if self._remote else source.map(path)

    def ensured(self, offset: int, length: int) -> memoryview:
        if self._remote:
            self._remote.ensure(offset, length)
        return self._buffer
