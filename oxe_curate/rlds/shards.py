"""Open a shard of any format, wherever it is."""

from __future__ import annotations

from oxe_curate.rlds.array_record import ArrayRecordShard
from oxe_curate.rlds.object_shard import RemoteShard
from oxe_curate.rlds.remote import LocalShard, ShardBytes
from oxe_curate.storage import Folder


def is_array_record(path: str) -> bool:
    """Whether a shard is an array_record file, by its name."""
    return "array_record" in path.rpartition("/")[2]


def open_shard(source: Folder, path: str) -> ShardBytes:
    """Open a shard for random reading, an array_record file as the TFRecord file with its records.

    Raises:
        StorageError: it cannot be read. CorruptError, DataError: see `ArrayRecordShard`.
    """
    if is_array_record(path):
        return ArrayRecordShard(source, path)
    return LocalShard(source, path) if source.is_local else RemoteShard(source, path)
