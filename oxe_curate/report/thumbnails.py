"""A few frames of an episode as small JPEGs, read from the source shard by byte range."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from oxe_curate.errors import CurateError
from oxe_curate.filter.scanner import ROLES
from oxe_curate.index import images
from oxe_curate.index.frame_pool import locate
from oxe_curate.report.flags import evenly
from oxe_curate.rlds.remote import ShardBytes
from oxe_curate.rlds.shards import open_shard
from oxe_curate.storage import Folder

_WIDTH = 144
_QUALITY = 72
_AROUND = (-6, -1, 0, 1, 6)
"""Steps to show around the one at which a criterion saw something."""


@dataclass(frozen=True)
class Thumbnail:
    """One frame, or the reason it cannot be shown.

    Attributes:
        jpeg: Base64 of a JPEG; empty if there is a `problem`.
        step: of the episode in the index, from 0.
    """

    jpeg: str
    role: str
    step: int
    width: int = _WIDTH
    height: int = _WIDTH
    problem: str = ""


def read_thumbnails(
    source: Folder, row: Mapping[str, Any], steps: Sequence[int], detail: str = "", bgr: frozenset[str] = frozenset()
) -> list[Thumbnail]:
    """Read frames of an episode: of the camera that is named in `detail`, or else preferably a third-person one.

    A missing shard or a damaged frame raises nothing: it gives a thumbnail with a `problem`.

    Args:
        source: root of the shards.
        row: columns of the index: shard, source_steps, frame_index, cameras, camera_spans.
        steps: of the episode in the index.
        detail: words of a criterion.
        bgr: roles whose frames are stored as BGR.
    """
    spans = {role: (span["offset"], span["length"]) for role, span in row["camera_spans"]}
    named = [role for role in ROLES if re.search(rf"\b{role}\b", detail)]
    role = next((r for r in (*named, *ROLES) if spans.get(r, (0, 0))[1]), None)
    if role is None:
        return [Thumbnail("", "", 0, problem="no frames")]
    try:
        if not source.exists(row["shard"]):
            return [Thumbnail("", role, 0, problem="source shard not found")]
        shard = open_shard(source, row["shard"])
        places = [(frame["offset"], frame["length"]) for frame in dict(row["cameras"]).get(role, ())]
        if not places:
            shard.prefetch(*spans[role])
            every = locate(shard.buffer, spans[role], row["source_steps"], role)
            chosen = row["frame_index"] if row["frame_index"] else range(row["source_steps"])
            places = every[list(chosen)].tolist()
        return [_thumbnail(shard, *places[step], step, role, role in bgr) for step in steps if step < len(places)]
    except CurateError as error:
        return [Thumbnail("", role, 0, problem=str(error).split(". ")[0])]


def steps_to_show(count: int, step: int, frames: int) -> list[int]:
    """Which steps of an episode to show: those around one step, or, if it is -1, evenly spaced ones.

    Args:
        count: steps of the episode.
        step: of interest, or -1.
        frames: how many.
    """
    if not 0 <= step < count:
        return list(evenly(count, frames))
    around = {step + offset for offset in _AROUND if 0 <= step + offset < count}
    while len(around) < min(frames, count):  # near an end: those furthest from the others
        around.add(max(range(count), key=lambda step: min(abs(step - other) for other in around)))
    return sorted(around)


def _thumbnail(shard: ShardBytes, offset: int, length: int, step: int, role: str, swap: bool) -> Thumbnail:
    if not length:
        return Thumbnail("", role, step, problem="empty frame")
    try:
        pixels = images.decode(shard.read(offset, length))
    except ValueError:
        return Thumbnail("", role, step, problem="cannot be decoded")
    image = Image.fromarray(np.ascontiguousarray(pixels[:, :, ::-1] if swap else pixels))
    width = min(_WIDTH, image.width)
    size = (width, min(2 * width, max(1, round(width * image.height / image.width))))
    small = np.asarray(image.resize(size, Image.Resampling.LANCZOS))
    return Thumbnail(base64.b64encode(images.encode(small, _QUALITY)).decode(), role, step, *size)
