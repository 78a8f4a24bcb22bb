"""The episode index: one Parquet file per source shard, one row per episode, kept or not; and index.json.

See docs/formats.md. A row says where an episode lies, what was decided about it and why, its standardised actions,
and where its frames are, so that everything after the filter works from the index alone.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from oxe_curate.episode import EpisodeId, Trajectory
from oxe_curate.errors import ConfigError, DataError
from oxe_curate.index.metrics import action_hash, metrics
from oxe_curate.storage import Folder

FORMAT = 1
INDEX_JSON = "index.json"
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
    """One episode on its way into the index.

    Attributes:
        record: (offset, length) of the record's data in the shard.
        source_steps: T, before the trim.
        reason: why it is dropped; None where it is kept.
        trajectory: None where the card has no recipe.
        frames: role -> int64 (T', 2) of (offset, length) of each surviving step's encoded frame; empty where the
            frames were not located (see `spans`).
        spans: role -> (offset, length) of the whole list of frames in the shard.
        image_hash: perceptual hashes of a few frames, where they were asked for (see `frames.FrameLook.hashes`).
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


def _metrics(rows: Sequence[IndexRow], action: NDArray[np.float32], lengths: Sequence[int]) -> Any:
    columns = metrics(action, np.array(lengths, np.int64), [row.control_hz for row in rows])
    return pa.StructArray.from_arrays(
        [pa.array(columns[field.name], from_pandas=True) for field in METRICS],
        fields=list(METRICS),
        mask=pa.array([row.trajectory is None for row in rows], pa.bool_()),
    )


def index_table(rows: Sequence[IndexRow]) -> pa.Table:
    """Rows -> one Arrow table with `SCHEMA`, its numeric columns built without a Python object per step."""
    trajectories = [row.trajectory for row in rows]
    lengths = [len(t) if t is not None else 0 for t in trajectories]
    missing = np.array([t is None for t in trajectories], bool)
    action = _join([t.action for t in trajectories if t is not None], np.float32).reshape(-1, 7)
    columns: dict[str, Any] = {
        "episode_id": [str(row.id) for row in rows],
        "shard": [row.shard for row in rows],
        "record_offset": [row.record[0] for row in rows],
        "record_length": [row.record[1] for row in rows],
        "num_steps": [len(r.trajectory) if r.trajectory is not None else r.source_steps for r in rows],
        "source_steps": [row.source_steps for row in rows],
        "kept": [row.reason is None for row in rows],
        "reason": [row.reason for row in rows],
        "instruction": [t.instruction if t is not None else "" for t in trajectories],
        "instructions": [list(t.instructions) if t is not None else [] for t in trajectories],
        # one text for the whole episode is the rule, so its index is left out
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
        "duplicate_of": [None] * len(rows),  # across.py fills it in
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


@dataclass
class Summary:
    """Counts of episodes and steps, of a shard or a data set."""

    seen: int = 0
    kept: int = 0
    steps_seen: int = 0
    steps_kept: int = 0
    dropped: dict[str, list[int]] = field(default_factory=dict)
    """reason -> [episodes, steps]"""
    bytes_read: int = 0
    corrupt: list[str] = field(default_factory=list)
    """What --skip-corrupt left out, in words."""
    copies: int = 0
    """Kept episodes that are copies of others."""
    leaks: dict[str, int] = field(default_factory=dict)
    """split -> kept episodes that are copies of kept ones of a train split."""

    def add(self, other: Summary) -> None:
        """Add another summary's counts to this one."""
        self.seen += other.seen
        self.kept += other.kept
        self.steps_seen += other.steps_seen
        self.steps_kept += other.steps_kept
        self.bytes_read += other.bytes_read
        self.corrupt += other.corrupt
        self.copies += other.copies
        for split, episodes in other.leaks.items():
            self.leaks[split] = self.leaks.get(split, 0) + episodes
        for reason, (episodes, steps) in other.dropped.items():
            mine = self.dropped.setdefault(reason, [0, 0])
            mine[0] += episodes
            mine[1] += steps

    @classmethod
    def of(cls, rows: Sequence[IndexRow]) -> Summary:
        """Count a shard's rows."""
        return cls.count((len(r.trajectory) if r.trajectory is not None else r.source_steps, r.reason) for r in rows)

    @classmethod
    def count(cls, episodes: Iterable[tuple[int, str | None]]) -> Summary:
        """Count episodes, each told by its steps and the reason it is dropped."""
        summary = cls()
        for steps, reason in episodes:
            summary.seen += 1
            summary.steps_seen += steps
            if reason is None:
                summary.kept += 1
                summary.steps_kept += steps
            else:
                count = summary.dropped.setdefault(reason, [0, 0])
                count[0] += 1
                count[1] += steps
        return summary


def write_shard(out: Folder, path: str, rows: Sequence[IndexRow], summary: Summary, fingerprint: str) -> None:
    """Publish one shard's rows, with their summary and the hash of all that decided them in the file's metadata."""
    write_table(out, path, index_table(rows), summary, fingerprint)


def write_table(out: Folder, path: str, table: pa.Table, summary: Summary, fingerprint: str) -> None:
    """Publish rows that are a table already, as `write_shard` does."""
    meta = {"format": FORMAT, "fingerprint": fingerprint, "summary": asdict(summary)}
    table = table.replace_schema_metadata({_META: json.dumps(meta, sort_keys=True)})
    # zstd 1: the actions are noise to any codec, the offsets and texts shrink at any level
    out.publish(path, lambda sink: pq.write_table(table, sink, compression="zstd", compression_level=1))


def read_index_meta(out: Folder, path: str) -> dict[str, Any]:
    """The metadata of an index file, from its footer alone. Raises DataError if it is not one."""
    try:
        with out.open(path) as file:
            schema = pq.read_schema(file)
        return dict(json.loads(schema.metadata[_META]))
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{out}/{path}: not an episode index file ({error}). Run filter again.") from None


def read_table(out: Folder, path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one index file, or some of its columns. Raises DataError if it is damaged."""
    try:
        with out.open(path) as file:
            # pq.read_table would import pyarrow.dataset for 0.2 s
            return pq.ParquetFile(file).read(columns=list(columns) if columns else None, use_threads=False)
    except pa.ArrowException as error:
        raise DataError(f"{out}/{path}: damaged ({error}). Delete it and run filter again.") from None


def split_of(path: str) -> str:
    """Return the split that an index file belongs to."""
    return path.rsplit("/", 1)[-1].rsplit("-", 3)[0]


def shard_files(index: Folder, dataset: str) -> list[str]:
    """The index files of one data set (all versions and splits), sorted."""
    return [name for name, is_folder, _ in index.list(dataset, recursive=True) if name.endswith(".parquet")]


@dataclass(frozen=True, eq=False)
class Index:
    """An opened index: what index.json says."""

    folder: Folder
    source: Folder
    datasets: dict[str, dict[str, Any]]
    criteria: dict[str, Any]

    @classmethod
    def open(cls, uri: Any) -> Index:
        """Open a folder that filter wrote. Raises ConfigError if it is not one, or of another format version."""
        folder = uri if isinstance(uri, Folder) else Folder.of(uri)
        if not folder.exists(INDEX_JSON):
            raise ConfigError(f"{folder}: no {INDEX_JSON} there. Run `oxe-curate filter SOURCE --out {folder}` first.")
        try:
            data = json.loads(folder.read_bytes(INDEX_JSON))
            version = data["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{folder}/{INDEX_JSON}: cannot be read ({error}). Run filter again.") from None
        if version != FORMAT:
            raise ConfigError(f"{folder}: index format {version}; this version reads {FORMAT}. Run filter again.")
        return cls(folder, Folder.of(data["source"]), data["datasets"], data["criteria"])

    @functools.lru_cache(maxsize=4)  # noqa: B019 (an index is opened once per process)
    def files(self, dataset: str) -> list[str]:
        """Paths of a data set's index files, sorted.

        Raises:
            ConfigError: files of several versions are there: episodes would count twice.
        """
        found = shard_files(self.folder, dataset)
        if len(versions := sorted({path.rpartition("/")[0] for path in found})) > 1:
            named = " and ".join(folder.rpartition("/")[2] for folder in versions)
            raise ConfigError(
                f"{self.folder}: holds {dataset} in the versions {named}, and an episode that is in both would count "
                f"twice. Delete the folder of the one that you do not want, or filter into an empty --out."
            )
        return found

    def tables(self, dataset: str, columns: Sequence[str]) -> Iterator[tuple[str, pa.Table]]:
        """Yield (file, table with these columns) one source shard at a time."""
        for path in self.files(dataset):
            yield path, self.table(path, columns)

    def table(self, path: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Read one index file. Raises DataError if it is damaged."""
        return read_table(self.folder, path, columns)


def write_index_json(out: Folder, data: Mapping[str, Any]) -> None:
    """Publish index.json; it comes last, so that its presence means a finished run."""
    out.publish_bytes(INDEX_JSON, (json.dumps({"format": FORMAT, **data}, indent=1) + "\n").encode())
