import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from oxe_curate.errors import StorageError
from oxe_curate.rlds import example, memory, tfrecord
from oxe_curate.rlds.encode import encode_example
from oxe_curate.rlds.remote import LocalShard, ShardBytes
from oxe_curate.rlds.shards import open_shard
from oxe_curate.rlds.tfrecord import frame_record
from oxe_curate.storage import Folder
from oxe_curate.storage.link import Link
from tests import s3

IMAGE = 300_000


@pytest.fixture(scope="module")
def bucket() -> Iterator[Folder]:
    with s3.bucket() as address:
        yield Folder.of(address)


def records(count: int) -> bytes:
    record = encode_example({"a": np.float32([1, 2]), "image": [bytes([7]) * IMAGE] * 3, "z": np.float32([3])})
    return frame_record(record) * count


def scan(shard: ShardBytes, images: bool = False) -> None:
    for offset, length in tfrecord.records(shard.buffer, shard.ensure):
        spans = example.scan(shard.buffer, offset, length, None, shard.ensure)
        for name in (b"a", b"z"):
            shard.ensure(spans[name].offset, spans[name].length)
        assert example.floats(shard.buffer, spans[b"a"]).tolist() == [1, 2]
        assert example.floats(shard.buffer, spans[b"z"]).tolist() == [3]
        if images:
            assert len(example.byte_ranges(shard.buffer, spans[b"image"], shard.ensure)) == 3


@pytest.mark.parametrize("images", [False, True], ids=["numbers", "frames located"])
def test_a_scan_reads_little_of_a_file_and_asks_an_object_for_the_same(
    images: bool, bucket: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Link, "gap", IMAGE // 2)
    data = records(10)
    (tmp_path / "shard").write_bytes(data)
    bucket.publish_bytes("shard", data)
    local, remote = open_shard(Folder.of(tmp_path), "shard"), open_shard(bucket, "shard")
    assert (local.remote, remote.remote) == (False, True)
    for shard in (local, remote):
        scan(shard, images)
    assert local.bytes_needed == remote.bytes_needed <= local.bytes_fetched
    assert local.bytes_fetched < (0.03 if images else 0.02) * len(data)
    assert remote.bytes_fetched < 0.9 * len(data)


def test_a_file_that_is_truncated_while_it_is_read_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "shard").write_bytes(records(3))
    size = (tmp_path / "shard").stat().st_size
    shard = LocalShard(Folder.of(tmp_path), "shard")
    shard.ensure(0, 100)
    os.truncate(tmp_path / "shard", 5000)
    with pytest.raises(
        StorageError, match=rf"/shard: was truncated while being read \(had {size} bytes, now 5000\)\. "
    ):
        shard.ensure(100_000, 10)
    with pytest.raises(StorageError, match="was truncated while being read"):
        shard.prefetch_many([(200_000, 300_000)])


def test_a_file_that_is_written_to_is_the_cause_of_whatever_else_fails(tmp_path: Path) -> None:
    (tmp_path / "shard").write_bytes(records(1))
    with pytest.raises(StorageError, match="was written to while being read"):
        _fail_after(tmp_path, lambda path: os.utime(path, ns=(1, 1)))
    with pytest.raises(StorageError, match="was extended while being read"):
        _fail_after(tmp_path, lambda path: path.write_bytes(records(2)))
    with pytest.raises(ZeroDivisionError):
        _fail_after(tmp_path, lambda path: None)


def _fail_after(folder: Path, change: object) -> None:
    with open_shard(Folder.of(folder), "shard") as shard:
        shard.read(0, 10)
        change(folder / "shard")  # type: ignore[operator]
        raise ZeroDivisionError


def test_a_file_replaced_by_a_rename_is_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "shard").write_bytes(records(2))
    (tmp_path / "other").write_bytes(b"other" * 10**6)
    with open_shard(Folder.of(tmp_path), "shard") as shard:
        shard.ensure(0, 10)
        (tmp_path / "other").rename(tmp_path / "shard")
        scan(shard)


def test_memory_is_reused_only_when_nothing_refers_to_it(tmp_path: Path) -> None:
    (tmp_path / "shard").write_bytes(b"\1" * 10_000)
    memory._free.clear()
    shard = LocalShard(Folder.of(tmp_path), "shard")
    region, part = shard._region, np.frombuffer(shard.read(100, 50), np.uint8)
    del shard
    assert memory._free == []
    other = LocalShard(Folder.of(tmp_path), "shard")
    assert other._region is not region
    assert part.tolist() == [1] * 50
    del part
    assert memory._free == [region]
    assert LocalShard(Folder.of(tmp_path), "shard")._region is region


def test_empty_files_and_ranges_beyond_the_end(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "one").write_bytes(b"x")
    empty, one = (LocalShard(Folder.of(tmp_path), name) for name in ("empty", "one"))
    assert bytes(empty.read(0, 10)) == b""
    assert bytes(one.read(0, 10)) == b"x"
    one.ensure(5, 10)
    assert (one.bytes_fetched, one.bytes_needed) == (1, 1)
    with pytest.raises(StorageError, match="missing: file or folder not found"):
        LocalShard(Folder.of(tmp_path), "missing")
