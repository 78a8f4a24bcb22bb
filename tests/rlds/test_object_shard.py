"""What is requested of a shard in an object store, with an object in memory in its place."""

import itertools
import threading
from typing import Any

import numpy as np
import pytest

from oxe_curate.errors import StorageError
from oxe_curate.lru import LruCache
from oxe_curate.rlds import memory, object_shard, tfrecord
from oxe_curate.rlds.object_shard import RemoteShard
from oxe_curate.rlds.remote import HERE, PAGE
from oxe_curate.storage import transfers
from oxe_curate.storage.link import Link

GAP = 1 << 20
DATA = np.random.default_rng(0).integers(0, 256, 24 << 20, np.uint8).tobytes()


class Stored:
    """Stands for a folder with one object, and for the object."""

    name = uri = "s3://bucket/object"

    def __init__(self, data: bytes = DATA) -> None:
        self.data, self.requests = data, list[tuple[int, int]]()
        self.error: Exception | None = None
        self.open_ = threading.Event()
        self.open_.set()

    def open_object(self, path: str) -> Any:
        return self

    def size(self) -> int:
        return len(self.data)

    def identity(self) -> str:
        return "same"

    def check_unchanged(self, retries: int | None = None) -> None:
        pass

    def request(self, offset: int, into: memoryview) -> None:
        self.open_.wait(60)
        self.requests.append((offset, len(into)))
        if self.error:
            raise self.error
        into[:] = self.data[offset : offset + len(into)]


@pytest.fixture(autouse=True)
def _link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Link, "gap", GAP)
    monkeypatch.setenv("OXE_CURATE_STORE_REQUESTS", "4")
    monkeypatch.setattr(transfers, "_workers", transfers._Workers())
    monkeypatch.setattr(object_shard, "_whole", object_shard._Whole())
    monkeypatch.setattr(object_shard, "_clusters", LruCache(8))


def opened(stored: Stored) -> RemoteShard:
    return RemoteShard(stored, "object")  # type: ignore[arg-type]


def check(shard: RemoteShard, offset: int, length: int = 100) -> None:
    assert bytes(shard.read(offset, length)) == DATA[offset : offset + length]


def test_small_records_are_read_through_and_large_ones_are_not() -> None:
    stored = Stored()
    shard = opened(stored)
    shard.expect(48)  # records of half a MiB
    for offset in range(0, len(DATA), 512 << 10):
        check(shard, offset)
    assert shard.bytes_fetched == len(DATA)
    assert len(stored.requests) <= 8
    stored = Stored()
    shard = opened(stored)
    shard.expect(12)
    for offset in range(0, len(DATA), 2 << 20):
        check(shard, offset)
    assert len(stored.requests) == 12
    assert shard.bytes_fetched == 12 * object_shard._REMOTE << PAGE


def test_jumps_that_turn_out_to_be_short_are_read_through() -> None:
    stored = Stored()
    shard = opened(stored)
    for offset in range(0, len(DATA), 300 << 10):
        check(shard, offset)
    assert len(stored.requests) <= object_shard._JUMPS + 6
    assert shard.bytes_fetched > 0.9 * len(DATA)


def test_what_was_needed_after_earlier_jumps_is_fetched_with_the_next() -> None:
    stored = Stored()
    shard = opened(stored)
    for start in range(0, len(DATA), 4 << 20):
        for offset in range(start, start + (600 << 10), 150 << 10):
            check(shard, offset)
    first, last = (sum(at >> 22 == i for at, _ in stored.requests) for i in (0, 5))
    assert first > last == 1
    assert shard.bytes_fetched < 0.5 * len(DATA)
    other = Stored()
    shard = opened(other)  # of the same folder
    for offset in range(0, 600 << 10, 150 << 10):
        check(shard, offset)
    assert len(other.requests) == 1


def test_gaps_are_fetched_with_their_neighbours_and_dropped() -> None:
    stored = Stored()
    shard = opened(stored)
    ranges = [(100, 50_000), (900_000, 10), (5 << 20, 2 << 20), ((7 << 20) + 900_000, 1)]
    shard.prefetch_many(ranges)
    shard.wait()
    assert sorted(stored.requests) == [(0, 220 << 12), (5 << 20, (2 << 20) + (220 << 12))]
    held = shard._state.count(HERE) << PAGE
    assert sum(length for _, length in ranges) < held < sum(length for _, length in ranges) + 8 * 4096
    for offset, length in ranges:
        check(shard, offset, length)
    assert len(stored.requests) == 2
    check(shard, 500_000)  # was dropped
    assert len(stored.requests) > 2


def test_what_is_needed_while_it_passes_is_kept() -> None:
    stored = Stored()
    stored.open_.clear()
    shard = opened(stored)
    shard.prefetch_many([(0, 10), (1_000_000, 10)])
    shard.prefetch_many([(500_000, 100_000)])
    stored.open_.set()
    shard.wait()
    check(shard, 500_000, 100_000)
    assert len(stored.requests) == 1


def test_memory_is_bounded_while_an_object_is_read_through(monkeypatch: pytest.MonkeyPatch) -> None:
    ahead = (4 << 20) >> PAGE
    monkeypatch.setattr(object_shard, "_AHEAD", ahead)
    memory._free.clear()
    stored = Stored()
    shard = opened(stored)
    shard.expect(48)
    most = 0
    for offset in range(0, len(DATA), 256 << 10):
        check(shard, offset)
        most = max(most, len(shard._state) - shard._state.count(0))
        check(shard, max(offset - (200 << 10), 0))  # a reader may look back in its record
    assert ahead <= most < 2 * ahead + 400
    assert shard.bytes_fetched == len(DATA)
    assert shard._region.written < (2 * ahead + 400) << PAGE


def test_objects_are_read_through_as_far_as_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_shard, "_MOST", 40 << 20)
    first, second = opened(Stored()), opened(Stored())
    for shard in (first, second):
        shard.expect(48)
        check(shard, 0)
        shard.wait()
    assert (first.bytes_fetched, second.bytes_fetched) == (len(DATA), object_shard._REMOTE << PAGE)
    del first, shard
    for offset in range(0, len(DATA), 512 << 10):
        check(second, offset)
    assert second.bytes_fetched > 0.95 * len(DATA)


def test_an_error_reaches_the_reader_and_a_closed_shard_requests_nothing() -> None:
    stored = Stored()
    stored.error = StorageError("broken")
    shard = opened(stored)
    with pytest.raises(StorageError, match="broken"):
        shard.read(0, 10)
    shard.prefetch_many([(0, 10)])
    with pytest.raises(StorageError, match="broken"):
        shard.wait()
    stored.error = None
    check(shard, 0)
    stored.open_.clear()
    with opened(stored) as shard:
        shard.prefetch_many([(i << 21, 100) for i in range(12)])
    before = len(stored.requests)
    stored.open_.set()
    transfers.submit(lambda: None).result(60)
    assert len(stored.requests) - before <= 4


def test_a_scan_of_framing_reads_small_records_through(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = Stored(tfrecord.frame_record(DATA[: 300 << 10]) * 40)
    shard = opened(stored)
    shard.expect(40)
    offsets = [offset for offset, _ in tfrecord.records(shard.buffer, shard.ensure)]
    assert [b - a for a, b in itertools.pairwise(offsets)] == [(300 << 10) + 16] * 39
    assert len(stored.requests) <= 3
