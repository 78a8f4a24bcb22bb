"""The episode index: one Parquet file per source shard with one row per episode, kept or dropped; and index.json.

See docs/formats.md. A row has an episode's location, the filter's decision and its reason, the standardised actions
and the locations of its frames, so that every later command needs only the index and the frames.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from oxe_curate.episode import EpisodeId, Trajectory
from oxe_curate.errors import ConfigError, DataError
from oxe_curate.index.index_json import FORMAT, INDEX_JSON, DatasetEntry, IndexJson, Summary, existing_cards
from oxe_curate.index.metrics import action_hash, metrics
from oxe_curate.storage import Folder

_META = b"oxe_curate"

FRAME = pa.struct([("offset", pa.int64()), ("length", pa.int32())])
SPAN = pa.struct([("offset", pa.int64()), ("length", pa.int64())])
METRICS = pa.struct(
    [
        ("idle_share", pa.float32()),
        ("largest_action", pa.float32()),
        ("path_length", pa.float32()),
        ("seconds", pa.float32()),
    ]
)
SCHEMA = pa.schema(
    [
        ("episode_id", pa.string()),
        ("shard", pa.string()),
        ("record_offset", pa.int64()),
        ("record_length", pa.int64()),
        ("num_steps", pa.int32()),
        ("source_steps", pa.int32()),
        ("kept", pa.bool_()),
        ("reason", pa.string()),
        ("instruction", pa.string()),
        ("instructions", pa.list_(pa.string())),
        ("instruction_index", pa.list_(pa.int32())),
        ("frame_index", pa.list_(pa.int32())),
        ("action", pa.list_(pa.list_(pa.float32(), 7))),
        ("proprio", pa.list_(pa.list_(pa.float32()))),
        ("cameras", pa.map_(pa.string(), pa.list_(FRAME))),
        ("camera_spans", pa.map_(pa.string(), SPAN)),
        ("metrics", METRICS),
        ("action_hash", pa.uint64()),
        ("image_hash", pa.list_(pa.uint64())),
        ("duplicate_of", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class IndexRow:
    """An episode to be written to the index.

    Attributes:
        record: (offset, length) of the record's data in the shard.
        source_steps: T, before the trim.
        reason: why it is dropped; None if it is kept.
        trajectory: None if the card has no recipe.
        frames: role -> int64 (T', 2), (offset, length) of each remaining step's encoded frame; empty if the frames
            were not located (see `spans`).
        spans: role -> (offset, length) of the whole list of frames in the shard.
        image_hash: perceptual hashes of a few frames, if requested (see `FrameReader.hashes` in filter/frames.py).
    """

    id: EpisodeId
    shard: str
    record: tuple[int, int]
    source_steps: int
    reason: str | None
    trajectory: Trajectory | None
    frames: Mapping[str, NDArray[np.int64]]
    spans: Mapping[str, tuple[int, int]]
    control_hz: float | None
    image_hash: tuple[int, ...] | None = None

    @property
    def num_steps(self) -> int:
        """Steps after the trim; of the source if the card has no recipe."""
        return self.source_steps if self.trajectory is None else len(self.trajectory)


def _metrics(rows: Sequence[IndexRow], action: NDArray[np.float32], lengths: Sequence[int]) -> Any:
    columns = metrics(action, np.array(lengths, np.int64), [row.control_hz for row in rows])
    return pa.StructArray.from_arrays(
        [pa.array(columns[field.name], from_pandas=True) for field in METRICS],
        fields=list(METRICS),
        mask=pa.array([row.trajectory is None for row in rows], pa.bool_()),
    )


def index_table(rows: Sequence[IndexRow]) -> pa.Table:
    """Build an Arrow table with `SCHEMA` from rows, without a Python object per step."""
    trajectories = [row.trajectory for row in rows]
    lengths = [len(t) if t is not None else 0 for t in trajectories]
    missing = np.array([t is None for t in trajectories], bool)
    action = _join([t.action for t in trajectories if t is not None], np.float32).reshape(-1, 7)
    columns: dict[str, Any] = {
        "episode_id": [str(row.id) for row in rows],
        "shard": [row.shard for row in rows],
        "record_offset": [row.record[0] for row in rows],
        "record_length": [row.record[1] for row in rows],
        "num_steps": [row.num_steps for row in rows],
        "source_steps": [row.source_steps for row in rows],
        "kept": [row.reason is None for row in rows],
        "reason": [row.reason for row in rows],
        "instruction": [t.instruction if t is not None else "" for t in trajectories],
        "instructions": [list(t.instructions) if t is not None else [] for t in trajectories],
        # most episodes have a single instruction, so its index is omitted
        "instruction_index": [
            t.instruction_index if t is not None and t.instructions and np.any(t.instruction_index) else None
            for t in trajectories
        ],
        "frame_index": _lists(
            _join([t.frame_index for t in trajectories if t is not None], np.int32), lengths, pa.int32(), missing
        ),
        "action": _lists(
            pa.FixedSizeListArray.from_arrays(pa.array(action.ravel()), 7), lengths, pa.list_(pa.float32(), 7), missing
        ),
        "proprio": _proprio(trajectories, lengths, missing),
        "cameras": _cameras(rows),
        "camera_spans": [[(role, {"offset": o, "length": n}) for role, (o, n) in r.spans.items()] for r in rows],
        "metrics": _metrics(rows, action, lengths),
        "action_hash": [action_hash(t) if t is not None else None for t in trajectories],
        "image_hash": [row.image_hash for row in rows],
        "duplicate_of": [None] * len(rows),  # filled in by across.py
    }
    return pa.table(
        [c if isinstance(c, pa.Array) else pa.array(c, SCHEMA.field(n).type) for n, c in columns.items()], schema=SCHEMA
    )


def _join(parts: Sequence[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate(parts).astype(dtype, copy=False) if parts else np.empty(0, dtype)


def _offsets(lengths: Iterable[int]) -> NDArray[np.int32]:
    return np.concatenate(([0], np.cumsum(list(lengths), dtype=np.int64))).astype(np.int32)


def _lists(values: Any, lengths: Sequence[int], kind: Any, missing: NDArray[np.bool_] | None = None) -> Any:
    values = values if isinstance(values, pa.Array) else pa.array(values)
    mask = pa.array(missing) if missing is not None and missing.any() else None
    return pa.ListArray.from_arrays(pa.array(_offsets(lengths)), values, type=pa.list_(kind), mask=mask)


def _proprio(trajectories: Sequence[Trajectory | None], lengths: Sequence[int], missing: NDArray[np.bool_]) -> Any:
    widths = np.repeat([t.proprio.shape[1] if t is not None else 0 for t in trajectories], lengths)
    flat = _join([t.proprio.ravel() for t in trajectories if t is not None], np.float32)
    return _lists(_lists(flat, widths.tolist(), pa.float32()), lengths, pa.list_(pa.float32()), missing)


def _cameras(rows: Sequence[IndexRow]) -> Any:
    frames = [array for row in rows for array in row.frames.values()]
    flat = np.concatenate(frames) if frames else np.empty((0, 2), np.int64)
    items = pa.StructArray.from_arrays(
        [pa.array(np.ascontiguousarray(flat[:, 0])), pa.array(flat[:, 1].astype(np.int32))], fields=list(FRAME)
    )
    lists = _lists(items, [len(array) for array in frames], FRAME)
    keys = pa.array([role for row in rows for role in row.frames], pa.string())
    return pa.MapArray.from_arrays(pa.array(_offsets(len(row.frames) for row in rows)), keys, lists)


def write_shard(out: Folder, path: str, rows: Sequence[IndexRow], summary: Summary, fingerprint: str) -> None:
    """Publish one shard's rows; the summary and the fingerprint of its inputs go into the file's metadata."""
    write_table(out, path, index_table(rows), summary, fingerprint)


def write_table(out: Folder, path: str, table: pa.Table, summary: Summary, fingerprint: str) -> None:
    """Publish an index table, like `write_shard`."""
    meta = {"format": FORMAT, "fingerprint": fingerprint, "summary": asdict(summary)}
    table = table.replace_schema_metadata({_META: json.dumps(meta, sort_keys=True)})
    # zstd level 1: no codec compresses the actions, and any level compresses the offsets and texts
    out.publish(path, lambda sink: pq.write_table(table, sink, compression="zstd", compression_level=1))


def read_index_meta(out: Folder, path: str) -> dict[str, Any]:
    """Read the metadata of an index file from its footer. Raises DataError if it is not one."""
    try:
        with out.open(path) as file:
            schema = pq.read_schema(file)
        return dict(json.loads(schema.metadata[_META]))
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{out}/{path}: not an episode index file ({error}); run `oxe-curate filter` again") from None


def read_table(out: Folder, path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one index file, or some of its columns. Raises DataError if it is damaged."""
    try:
        with out.open(path) as file:
            # pq.read_table would import pyarrow.dataset, which takes 0.2 s
            return pq.ParquetFile(file).read(columns=list(columns) if columns else None, use_threads=False)
    except pa.ArrowException as error:
        raise DataError(f"{out}/{path}: damaged ({error}); delete it and run `oxe-curate filter` again") from None


def split_of(path: str) -> str:
    """Return the split that an index file belongs to."""
    return path.rsplit("/", 1)[-1].rsplit("-", 3)[0]


def shard_files(index: Folder, dataset: str) -> list[str]:
    """The index files of one data set (all versions and splits), sorted."""
    return [name for name, is_folder, _ in index.list(dataset, recursive=True) if name.endswith(".parquet")]


@dataclass(frozen=True, eq=False)
class Index:
    """An opened index: the contents of index.json, and access to the index files.

    Attributes:
        source: root of the data sets that were filtered.
        criteria: those of the run, as in a criteria file.
        cards: the folder of the user's own cards that filter was given, if any.
    """

    folder: Folder
    source: Folder
    datasets: dict[str, DatasetEntry]
    criteria: dict[str, Any]
    cards: Path | None = None

    @classmethod
    def open(cls, uri: Any) -> Index:
        """Open a folder that filter wrote. Raises ConfigError if it is not one, or of another format version."""
        folder = uri if isinstance(uri, Folder) else Folder.of(uri)
        if not folder.exists(INDEX_JSON):
            raise ConfigError(
                f"{INDEX_JSON} not found in {folder}; run `oxe-curate filter SOURCE --out {folder}` first"
            )
        data = IndexJson.read(folder)
        cards = Path(data.cards) if data.cards else None
        return cls(folder, Folder.of(data.source), data.datasets, data.criteria, cards)

    def find_cards(self, given: Path | None = None) -> Path | None:
        """Return the folder of the user's own cards: `given`, or the one that filter was given.

        Raises:
            ConfigError: the folder that filter was given no longer exists.
        """
        if given is not None or self.cards is None:
            return given
        return existing_cards(self.cards, f"{self.folder}/{INDEX_JSON}")

    @functools.lru_cache(maxsize=4)  # noqa: B019 (an index is opened once per process)
    def files(self, dataset: str) -> list[str]:
        """Paths of a data set's index files, sorted.

        Raises:
            ConfigError: there are files of several versions, so episodes would count twice.
        """
        found = shard_files(self.folder, dataset)
        if len(versions := sorted({path.rpartition("/")[0] for path in found})) > 1:
            named = " and ".join(folder.rpartition("/")[2] for folder in versions)
            raise ConfigError(
                f"{self.folder}: {dataset} is indexed in versions {named}, so an episode in both would count twice; "
                "delete the folder of the version that you do not need, or filter into an empty --out"
            )
        return found

    def tables(self, dataset: str, columns: Sequence[str]) -> Iterator[tuple[str, pa.Table]]:
        """Yield (file, table with these columns) one source shard at a time."""
        for path in self.files(dataset):
            yield path, self.table(path, columns)

    def table(self, path: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Read one index file. Raises DataError if it is damaged."""
        return read_table(self.folder, path, columns)
