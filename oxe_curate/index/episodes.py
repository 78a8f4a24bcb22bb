"""Episodes from the index files, whose columns are unpacked once: a row is then a few slices."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from oxe_curate.index.store import Index
from oxe_curate.lru import LruCache
from oxe_curate.storage import Folder

_PLAIN = (
    "episode_id", "shard", "record_offset", "record_length", "record_crc", "num_steps", "source_steps",
    "instruction", "instructions", "camera_spans",
)  # fmt: skip
_COLUMNS = (*_PLAIN, "instruction_index", "frame_index", "action", "proprio", "cameras")
_CACHE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Episode:
    """An index row as arrays.

    Attributes:
        record: (offset, length) of the record's data in the shard; `record_crc` is the masked CRC32C of the data.
    """

    id: str
    shard: str
    record: tuple[int, int]
    record_crc: int
    num_steps: int
    source_steps: int
    instruction: str
    instructions: tuple[str, ...]
    instruction_index: NDArray[np.int32] | None
    frame_index: NDArray[np.int32]
    action: NDArray[np.float32]
    proprio: NDArray[np.float32]
    frames: dict[str, NDArray[np.int64]]
    spans: dict[str, tuple[int, int]]

    @classmethod
    def read(cls, index: Folder, path: str, rows: Sequence[int]) -> list[Episode]:
        """Read some rows of an index file."""

        def read() -> tuple[_IndexFile, int]:
            table = _open_index(index.uri).table(path, _COLUMNS)
            return _IndexFile(table), table.nbytes

        file = _files.get((index.uri, path), read)
        return [file.episode(row) for row in rows]


class _List:
    """A list column as numpy arrays: the values of row i are `values[offsets[i]:offsets[i + 1]]`."""

    def __init__(self, column: Any, values: NDArray[Any] | None = None) -> None:
        self.valid = np.asarray(column.is_valid())
        self.offsets = np.asarray(column.offsets)
        self.values = np.asarray(column.values) if values is None else values

    def __getitem__(self, row: int) -> NDArray[Any]:
        return self.values[self.offsets[row] : self.offsets[row + 1]]


class _IndexFile:
    """An index file with unpacked columns."""

    def __init__(self, table: Any) -> None:
        columns = {name: table[name].combine_chunks() for name in table.column_names}
        columns = {n: c.chunk(0) if isinstance(c, pa.ChunkedArray) else c for n, c in columns.items()}
        self._plain = {name: columns[name].to_pylist() for name in _PLAIN}
        self._frame_index = _List(columns["frame_index"])
        self._instruction_index = _List(columns["instruction_index"])
        actions = columns["action"].values
        self._action = _List(columns["action"], np.asarray(actions.flatten()).reshape(-1, 7))
        self._proprio = _List(columns["proprio"], np.asarray(columns["proprio"].values.offsets))
        self._proprio_values = np.asarray(columns["proprio"].values.values)
        cameras = columns["cameras"]
        self._cameras = np.asarray(cameras.offsets)
        self._roles = cameras.keys.to_pylist()
        frames = cameras.items.values
        places = [np.asarray(frames.field(name)).astype(np.int64) for name in ("offset", "length")]
        self._frames = _List(cameras.items, np.stack(places, axis=1))

    def episode(self, row: int) -> Episode:
        plain = {name: values[row] for name, values in self._plain.items()}
        has_index = self._instruction_index.valid[row]
        start, stop = self._cameras[row], self._cameras[row + 1]
        return Episode(
            id=plain["episode_id"],
            shard=plain["shard"],
            record=(plain["record_offset"], plain["record_length"]),
            record_crc=plain["record_crc"],
            num_steps=plain["num_steps"],
            source_steps=plain["source_steps"],
            instruction=plain["instruction"],
            instructions=tuple(plain["instructions"]),
            instruction_index=self._instruction_index[row] if has_index else None,
            frame_index=self._frame_index[row],
            action=self._action[row],
            proprio=self._proprio_rows(row),
            frames={self._roles[i]: self._frames[i] for i in range(start, stop)},
            spans={role: (span["offset"], span["length"]) for role, span in plain["camera_spans"]},
        )

    def _proprio_rows(self, row: int) -> NDArray[np.float32]:
        """float32 (T', P); every step of an episode has the same P."""
        first, last = self._proprio.offsets[row], self._proprio.offsets[row + 1]
        values = self._proprio_values[self._proprio.values[first] : self._proprio.values[last]]
        return values.reshape(last - first, -1) if last > first else np.empty((0, 0), np.float32)


_files: LruCache[_IndexFile] = LruCache(_CACHE_BYTES)
"""The index files read last: several output shards draw from each."""


@functools.lru_cache(maxsize=4)
def _open_index(uri: str) -> Index:
    return Index.open(Folder(uri))
