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
from oxe_curate.rlds.remote import ShardBytes
from oxe_curate.rlds.shards import open_shard
from oxe_curate.storage import Folder

_WIDTH = 160
_QUALITY = 80


@dataclass(frozen=True)
class Thumbnail:
    """One frame, or the reason it cannot be shown.

    Attributes:
        uri: data URI of a JPEG; empty if there is a `problem`.
        step: of the source, from 0.
    """

    uri: str
    role: str
    step: int
    width: int = _WIDTH
    height: int = _WIDTH
    problem: str = ""


def read_thumbnails(
    source: Folder, row: dict[str, Any], count: int, bgr: frozenset[str] = frozenset()
) -> list[Thumbnail]:
    """Read the first, the last and evenly spaced frames of an episode, preferably of a third-person camera.

    A missing shard or a damaged frame raises nothing: it gives a thumbnail with a `problem`.

    Args:
        source: root of the shards.
        row: columns of the index: shard, source_steps, frame_index, cameras, camera_spans.
        count: number of frames; 1 gives the middle one.
        bgr: roles whose frames are stored as BGR.
    """
    spans = {role: (span["offset"], span["length"]) for role, span in row["camera_spans"]}
    role = next((r for r in ROLES if spans.get(r, (0, 0))[1]), None)
    if role is None:
        return [Thumbnail("", "", 0, problem="no frames")]
    try:
        if not source.exists(row["shard"]):
            return [Thumbnail("", role, 0, problem="source shard not found")]
        shard = open_shard(source, row["shard"])
        shard.prefetch(*spans[role])
        frames = locate(shard.buffer, spans[role], row["source_steps"], role)
    except CurateError as error:
        return [Thumbnail("", role, 0, problem=str(error).split(". ")[0])]
    steps = row["frame_index"] or list(range(row["source_steps"]))
    return [_thumbnail(shard, frames, step, role, role in bgr) for step in _spread(steps, count)]


def _spread(steps: Sequence[int], count: int) -> list[int]:
    if not steps:
        return []
    at = [len(steps) // 2] if count == 1 else np.linspace(0, len(steps) - 1, count).round().astype(int).tolist()
    return [steps[i] for i in sorted(set(at))]


def _thumbnail(shard: ShardBytes, frames: NDArray[np.int64], step: int, role: str, swap: bool) -> Thumbnail:
    offset, length = frames[step].tolist()
    if not length:
        return Thumbnail("", role, step, problem="empty frame")
    try:
        pixels = images.decode(shard.read(offset, length))
    except ValueError:
        return Thumbnail("", role, step, problem="cannot be decoded")
    image = Image.fromarray(np.ascontiguousarray(pixels[:, :, ::-1] if swap else pixels))
    size = (_WIDTH, max(1, round(_WIDTH * image.height / image.width)))
    small = np.asarray(image.resize(size, Image.Resampling.LANCZOS))
    uri = "data:image/jpeg;base64," + base64.b64encode(images.encode(small, _QUALITY)).decode()
    return Thumbnail(uri, role, step, *size)
