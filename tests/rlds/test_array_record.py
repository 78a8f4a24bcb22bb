"""array_record files in every form that its writer has, read as TFRecord shards."""

from pathlib import Path

import numpy as np
import pytest

from oxe_curate.errors import CorruptError, StorageError
from oxe_curate.rlds import tfrecord
from oxe_curate.rlds.remote import ShardBytes
from oxe_curate.rlds.shards import open_shard
from oxe_curate.rlds.tfrecord import frame_record
from oxe_curate.storage import Folder

module = pytest.importorskip("array_record.python.array_record_module")
NAME = "x-train.array_record-00000-of-00001"
RECORDS = [np.random.default_rng(i).bytes(n) for i, n in enumerate([0, 1, 30_000, 200_000, 65_472, 5, 4096, 140_000])]


def write(folder: Path, options: str, records: list[bytes]) -> ShardBytes:
    writer = module.ArrayRecordWriter(str(folder / NAME), options)
    for record in records:
        writer.write(record)
    writer.close()
    return open_shard(Folder.of(folder), NAME)


@pytest.mark.parametrize(
    "options",
    [
        "group_size:1", "group_size:1,uncompressed", "group_size:1,brotli:3", "group_size:1,snappy",
        "group_size:1,transpose", "group_size:1,pad_to_block_boundary:true", "group_size:3",
        "group_size:100,uncompressed",
    ],
)  # fmt: skip
def test_the_buffer_is_the_tfrecord_file_of_the_same_records(tmp_path: Path, options: str) -> None:
    shard = write(tmp_path, options, RECORDS)
    framing = tfrecord.Framing()
    found = []
    for offset, length in tfrecord.records(shard.buffer, shard.ensure, framing):
        shard.ensure(offset, length + tfrecord.FOOTER)
        tfrecord.check_data(shard.buffer, offset, length)
        found.append(bytes(shard.buffer[offset : offset + length]))
    assert found == RECORDS
    assert bytes(shard.buffer) == b"".join(map(frame_record, RECORDS))
    assert shard.file_size == (tmp_path / NAME).stat().st_size


def test_only_the_records_that_are_needed_are_decompressed(tmp_path: Path) -> None:
    records = [np.random.default_rng(i).bytes(50_000) for i in range(20)]
    shard = write(tmp_path, "group_size:1", records)
    assert shard.bytes_fetched == 0
    start = 10 * (50_000 + 16) + tfrecord.HEADER + 20_000
    assert shard.read(start, 100) == records[10][20_000:20_100]
    assert shard.bytes_fetched == 50_016


def test_an_empty_file_has_no_records(tmp_path: Path) -> None:
    assert list(tfrecord.records(write(tmp_path, "group_size:1", []).buffer)) == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n", "Git LFS pointer"),
        (b"nothing of this kind", "is not an array_record file"),
    ],
)
def test_another_file_is_named(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / NAME).write_bytes(data)
    with pytest.raises(CorruptError, match=message):
        open_shard(Folder.of(tmp_path), NAME)


def test_a_truncated_file_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, "group_size:1", RECORDS)
    data = (tmp_path / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(data[: len(data) // 2])
    with pytest.raises(CorruptError, match="cannot be read"):
        open_shard(Folder.of(tmp_path), NAME)


def test_an_object_store_is_refused() -> None:
    with pytest.raises(StorageError, match="from a disk only"):
        open_shard(Folder.of("s3://bucket/x"), NAME)


def test_damaged_data_is_found_when_it_is_read(tmp_path: Path) -> None:
    records = [np.random.default_rng(i).bytes(50_000) for i in range(3)]
    write(tmp_path, "group_size:1", records)
    data = bytearray((tmp_path / NAME).read_bytes())
    data[80_000] ^= 1
    (tmp_path / NAME).write_bytes(data)
    shard = open_shard(Folder.of(tmp_path), NAME)
    assert shard.read(tfrecord.HEADER, 100) == records[0][:100]
    with pytest.raises(CorruptError, match="record 1 of the array_record file cannot be read"):
        shard.read(70_000, 10)
