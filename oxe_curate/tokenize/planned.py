"""The plan of a mixture: the episodes of each output shard, written to a file of which each worker reads its part.

A part is an Arrow record batch. It has what the index says of each episode except the numbers per step; those are read
by byte range from the index files, or with the whole file if most of its rows are needed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import crc32c
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from oxe_curate.actions.bounds import Bounds
from oxe_curate.errors import DataError
from oxe_curate.index.episodes import Episode
from oxe_curate.index.layout import VALUE_TYPES
from oxe_curate.index.table import values_crc
from oxe_curate.index.values import read_ranges
from oxe_curate.mixture.spec import IndexedDataset, Mixture, roles_to_read
from oxe_curate.storage import Folder

_CODEC = "zstd"


@dataclass(frozen=True)
class TokenizeJob:
    """What all tasks of a mixture have in common; sent once to each worker.

    Attributes:
        index: folder of the index.
        roots: where the shards of each of `sources` are.
        plan: name of the plan in the output folder.
        check_records: whether to compare records with their checksums, see `SourceRecords`.
    """

    index: Folder
    mixture: Mixture
    sources: tuple[IndexedDataset, ...]
    roots: tuple[Folder, ...]
    bounds: dict[str, Bounds]
    plan: str = ""
    check_records: bool | None = None

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles whose frames may be read."""
        return roles_to_read(self.mixture, self.sources)


@dataclass(frozen=True)
class TokenizeTask:
    """One output shard: its place in the plan.

    Attributes:
        output: file name, "train-00003-of-00024.parquet".
        size: expected bytes of images, used to balance the workers.
        fingerprint: hash of everything that determines the contents.
        start, length, crc: of the task's part of the plan, in bytes, and its CRC32C.
        at_once: how many such tasks a worker runs at once: one waits for an object store while another is written.
    """

    out: Folder
    output: str
    size: int
    fingerprint: str
    start: int = 0
    length: int = 0
    crc: int = 0
    at_once: int = 1

    @property
    def name(self) -> str:
        """The output file, for messages."""
        return f"{self.out}/{self.output}"

    @property
    def validation(self) -> bool:
        """Whether its episodes are held out."""
        return self.output.startswith("validation-")


@dataclass(frozen=True, eq=False)
class PlannedEpisode:
    """An episode of an output shard.

    Attributes:
        source: number of its data set in the mixture.
        path, row: the index file and the episode's row in it.
        shard: number of its source shard in the plan's `sources`.
    """

    source: int
    path: str
    row: int
    shard: int
    episode: Episode


@functools.lru_cache(maxsize=8)
def plan_schema(cameras: tuple[str, ...]) -> Any:
    """The columns of a plan for a mixture with these cameras.

    `file` numbers the index files of the plan. `steps_before` and `frames_before` count the steps, and the located
    frames of all cameras, of earlier rows of the index file that have numbers; `at_<column>` is where that column's
    values begin in the file, or -1.
    """
    return pa.schema(
        [
            ("source", pa.int16()),
            ("file", pa.int32()),
            ("path", pa.string()),
            ("rows", pa.int32()),
            ("row", pa.int32()),
            ("episode_id", pa.string()),
            ("shard", pa.string()),
            ("record_offset", pa.int64()),
            ("record_length", pa.int64()),
            ("record_crc", pa.uint32()),
            ("num_steps", pa.int32()),
            ("source_steps", pa.int32()),
            ("instruction", pa.string()),
            ("instructions", pa.list_(pa.string())),
            ("instruction_index", pa.list_(pa.int32())),
            ("values_crc", pa.uint32()),
            ("steps_before", pa.int64()),
            ("frames_before", pa.int64()),
            ("proprio_width", pa.int32()),
            ("cameras", pa.int16()),
            *((f"at_{name}", pa.int64()) for name in VALUE_TYPES),
            *((f"{role}_{part}", pa.int64()) for role in cameras for part in ("offset", "length", "place")),
        ]
    )


def pack_part(part: Any) -> bytes:
    """A part of the plan as bytes: the length of an Arrow message, and the message, compressed as a whole."""
    message = part.serialize()
    return len(message).to_bytes(8, "little") + bytes(pa.compress(message, codec=_CODEC, asbytes=True))


def read_part(job: TokenizeJob, task: TokenizeTask) -> Any:
    """A task's part of the plan. Raises DataError if the plan is damaged, StorageError if it is gone."""
    data = task.out.read_bytes(job.plan, task.start, task.length)
    if len(data) != task.length or crc32c.crc32c(data) != task.crc:
        raise DataError(f"{task.out}/{job.plan}: the plan of this run is damaged; run the same command again")
    message = pa.decompress(data[8:], int.from_bytes(data[:8], "little"), codec=_CODEC)
    return pa.ipc.read_record_batch(message, plan_schema(job.roles))


def planned_episodes(job: TokenizeJob, part: Any) -> Iterator[PlannedEpisode]:
    """Yield the episodes of a part, in the order of the index, with their numbers. Raises DataError, StorageError."""
    rows = [dict(zip(part.schema.names, values, strict=True)) for values in zip(*_columns(part), strict=True)]
    files = [(path, list(group)) for path, group in groupby(rows, lambda row: row["path"])]
    sparse = {path: [_ranges(row) for row in group] for path, group in files if _is_sparse(group)}
    wanted = [(path, [part for parts in sparse[path] for part in parts]) for path in sparse]
    found = dict(zip(sparse, read_ranges(job.index, wanted), strict=True))
    for path, group in files:
        held = iter(found.get(path, ()))
        values = [[next(held) for _ in parts] for parts in sparse.get(path, ())]
        episodes: list[Episode | None] = [None] * len(group)
        if values:
            episodes = [_episode(job, row, parts) for row, parts in zip(group, values, strict=True)]
        rest = [i for i, episode in enumerate(episodes) if episode is None]
        read = iter(Episode.read(job.index, path, [group[i]["row"] for i in rest])) if rest else iter(())
        for row, episode in zip(group, episodes, strict=True):
            yield PlannedEpisode(row["source"], path, row["row"], row["file"], episode or next(read))


def _columns(part: Any) -> list[Any]:
    return [column.to_pylist() for column in part.columns]


def _is_sparse(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether the numbers of these rows of a file are to be read by byte range."""
    addressed = all(rows[0][f"at_{name}"] >= 0 for name in VALUE_TYPES)
    return addressed and 2 * len(rows) <= rows[0]["rows"] and all(row["values_crc"] is not None for row in rows)


def _counts(row: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Column -> values of earlier rows of the file, and of this row."""
    before, steps, width = row["steps_before"], row["num_steps"], row["proprio_width"]
    frames = row["frames_before"], steps * row["cameras"]
    return {
        "action": (7 * before, 7 * steps),
        "proprio": (width * before, width * steps),
        "frame_index": (before, steps),
        "cameras.offset": frames,
        "cameras.length": frames,
    }


def _ranges(row: dict[str, Any]) -> list[tuple[int, int]]:
    found = []
    for name, (before, count) in _counts(row).items():
        width = np.dtype(VALUE_TYPES[name]).itemsize
        found.append((row[f"at_{name}"] + width * before, width * count))
    return found


def _episode(job: TokenizeJob, row: dict[str, Any], parts: Sequence[bytes]) -> Episode | None:
    """An episode from the plan and its numbers; None if these are not the numbers that the index has for it."""
    steps, width = row["num_steps"], row["proprio_width"]
    values: dict[str, NDArray[Any]] = {}
    for (name, (_, count)), data in zip(_counts(row).items(), parts, strict=True):
        if len(data) != count * np.dtype(VALUE_TYPES[name]).itemsize:
            return None
        values[name] = np.frombuffer(data, VALUE_TYPES[name])
    places = [values["cameras.offset"], values["cameras.length"].astype(np.int64)]
    frames: NDArray[np.int64] = np.stack(places, axis=1)
    action = values["action"].reshape(steps, 7)
    proprio = values["proprio"].reshape(steps, width)
    if values_crc(action, proprio, values["frame_index"], frames) != row["values_crc"]:
        return None
    spans: dict[str, tuple[int, int]] = {}
    located: dict[str, NDArray[np.int64]] = {}
    for role in job.roles:
        place = row[f"{role}_place"]
        if place < 0:
            continue
        spans[role] = (row[f"{role}_offset"], row[f"{role}_length"])
        if row["cameras"]:
            located[role] = frames[place * steps : (place + 1) * steps]
    index = row["instruction_index"]
    return Episode(
        id=row["episode_id"],
        shard=row["shard"],
        record=(row["record_offset"], row["record_length"]),
        record_crc=row["record_crc"],
        num_steps=steps,
        source_steps=row["source_steps"],
        instruction=row["instruction"],
        instructions=tuple(row["instructions"] or ()),
        instruction_index=None if index is None else np.array(index, np.int32),
        frame_index=values["frame_index"],
        action=action,
        proprio=proprio,
        frames=located,
        spans=spans,
    )
