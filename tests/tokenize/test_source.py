"""Source shards that were replaced, damaged, cut or moved after they were filtered: nothing wrong reaches a mixture."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from oxe_curate.errors import CorruptError, CurateError, DataError, StorageError
from oxe_curate.filter.pipeline import FilterOptions, run_filter
from oxe_curate.index.store import Index
from oxe_curate.rlds import tfrecord
from tests import bridge
from tests.tokenize.test_pipeline import rows, tokenize, tree

EPISODES = [bridge.episode(i, 6 + i % 5) for i in range(6)]


@pytest.fixture(params=["exact", "span"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A source and its index in a new folder."""
    bridge.write(tmp_path / "in", episodes={"train": EPISODES}, shards=1)
    run_filter(tmp_path / "in", tmp_path / "index", FilterOptions(progress=False, workers=1, frames=request.param))
    return tmp_path


def shard(world: Path) -> Path:
    (path,) = (world / "in").rglob("*.tfrecord-*")
    return path


def frames(world: Path) -> list[tuple[int, int]]:
    """(offset, length) of every stored frame of the first episode's primary camera."""
    from oxe_curate.index.frame_pool import locate

    table = Index.open(world / "index").table("bridge_dataset/1.0.0/train-00000-of-00001.parquet")
    row = table.to_pylist()[0]
    span = dict(row["camera_spans"])["primary"]
    buffer = memoryview(shard(world).read_bytes())
    found = locate(buffer, (span["offset"], span["length"]), row["source_steps"], "primary")
    return [tuple(frame) for frame in found[row["frame_index"]].tolist()]


def records(data: bytes) -> list[bytes]:
    """The records of a shard with their framing."""
    return [
        data[offset - tfrecord.HEADER : offset + length + tfrecord.FOOTER]
        for offset, length in tfrecord.records(memoryview(data))
    ]


def fails(world: Path, kind: type[CurateError], message: str, **options: Any) -> None:
    with pytest.raises(kind, match=message) as caught:
        tokenize(world / "index", world / "out", "validation: 0", **options)
    assert shard(world).name in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert not list((world / "out").glob("*.parquet"))
    assert not list((world / "out").glob(".oxe-tmp-*"))


@pytest.mark.parametrize("check", [None, True, False])
def test_other_content_of_the_same_size_is_refused(world: Path, check: bool | None) -> None:
    path = shard(world)
    before = path.stat().st_size
    other = [bridge.episode(20 + i, 6 + i % 5) for i in range(6)]
    shutil.rmtree(world / "in")
    bridge.write(world / "in", episodes={"train": other}, shards=1)
    data = path.read_bytes()
    path.write_bytes((data + bytes(before))[:before])
    fails(
        world,
        DataError,
        r"another record is where bridge_dataset/1\.0\.0/train/00000/0000\d was.*--source",
        check_records=check,
    )


def test_records_in_another_order_are_refused(world: Path) -> None:
    path = shard(world)
    parts = records(path.read_bytes())
    path.write_bytes(b"".join([*parts[1:], parts[0]]))
    fails(world, DataError, r"(another record is where|ends before)")


def test_a_cut_shard_is_refused(world: Path) -> None:
    path = shard(world)
    path.write_bytes(path.read_bytes()[:-5])
    fails(world, DataError, r"ends before byte \d+; the file has changed since it was filtered")


def test_a_flipped_bit_in_a_record_fails_its_checksum(world: Path) -> None:
    path = shard(world)
    offset, length = frames(world)[1]
    data = bytearray(path.read_bytes())
    data[offset + length // 2] ^= 4
    path.write_bytes(data)
    fails(world, CorruptError, r"train/00000/00000: the data of its record fails the checksum.*--no-check-records")
    tokenize(
        world / "index", world / "out", "validation: 0", check_records=False
    )  # as asked: the frame's ends are right
    assert len(rows(world / "out")) == sum(len(e["steps"]["is_first"]) - 2 for e in EPISODES)


@pytest.mark.parametrize("part", ["all", "start", "end"])
@pytest.mark.parametrize("size", ["null", "32"])
def test_a_frame_that_is_no_image_is_refused_without_checksums(world: Path, part: str, size: str) -> None:
    path = shard(world)
    offset, length = frames(world)[2]
    data = bytearray(path.read_bytes())
    places = {"all": slice(0, length), "start": slice(0, 1), "end": slice(length - 1, length)}[part]
    for i in range(*places.indices(length)):
        data[offset + i] = 0
    path.write_bytes(data)
    message = r"train/00000/00000, step 2, primary camera: expected a complete JPEG or PNG"
    with pytest.raises(DataError, match=message) as caught:
        tokenize(world / "index", world / "out", f"validation: 0\nimage: {{size: {size}}}", check_records=False)
    assert shard(world).name in str(caught.value)
    assert not list((world / "out").glob("*.parquet"))


def test_every_flipped_bit_of_the_framing_is_noticed(world: Path) -> None:
    path = shard(world)
    data = path.read_bytes()
    offset, length = next(iter(tfrecord.records(memoryview(data))))
    for place in [*range(tfrecord.HEADER), *range(offset + length, offset + length + tfrecord.FOOTER)]:
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="another record is where"):
            tokenize(world / "index", world / "out", "validation: 0", check_records=False)


def test_a_moved_source_is_given_with_source(world: Path) -> None:
    tokenize(world / "index", world / "out")
    before = {name: data for name, data in tree(world / "out").items() if name.startswith(("train-", "validation-"))}
    (world / "in").rename(world / "moved")
    with pytest.raises(StorageError, match=f"{re.escape(str(world / 'in'))}: folder not found.*--source"):
        tokenize(world / "index", world / "other")
    result = tokenize(world / "index", world / "other", source=str(world / "moved"))
    after = tree(world / "other")
    assert {name: after[name] for name in before} == before
    assert result.manifest["inputs"]["sources"] == {"bridge_dataset": str(world / "moved")}
    assert tokenize(world / "index", world / "out", source=str(world / "moved")).shards_done == 0


def test_only_records_that_are_drawn_from_are_checked(world: Path) -> None:
    path = shard(world)
    parts = [bytearray(part) for part in records(path.read_bytes())]
    text = "name: m\ndatasets: [{name: bridge_dataset, weight: 0.1}]\nvalidation: 0"
    tokenize(world / "index", world / "out", text)
    drawn = {int(row["episode_id"][-5:]) for row in rows(world / "out")}
    assert 0 < len(drawn) < 6
    for number in set(range(6)) - drawn:
        parts[number][100] ^= 1
    path.write_bytes(b"".join(parts))
    tokenize(world / "index", world / "again", text)
    assert rows(world / "again") == rows(world / "out")


def test_long_lists_of_frames_are_followed_header_by_header(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from oxe_curate.index import frame_pool, records

    tokenize(world / "index", world / "out", "validation: 0")
    monkeypatch.setattr(frame_pool, "_WHOLE", 0)
    monkeypatch.setattr(records, "_HELD", 100)
    monkeypatch.setattr(records, "_OPEN_FILES", 1)
    tokenize(world / "index", world / "again", "validation: 0")
    assert rows(world / "again") == rows(world / "out")


def test_a_file_that_is_cut_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    from oxe_curate.index.records import _LocalReader, _OpenFiles
    from oxe_curate.storage import Folder

    (tmp_path / "a").write_bytes(bytes(range(200)))
    reader = _LocalReader(Folder.of(tmp_path), "a", _OpenFiles())
    assert bytes(reader.read(10, 5)) == bytes(range(10, 15))
    (tmp_path / "a").write_bytes(b"short")
    with pytest.raises(DataError, match=r"a: ends before byte 15"):
        reader.read(10, 5)
    with pytest.raises(DataError, match="ends before"):
        reader.read(-5, 3)
    assert bytes(reader.read(0, 5)) == b"short"


def test_a_shard_that_is_replaced_meanwhile_is_noticed(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the check of the records and the last image."""
    from oxe_curate.index.images import EncodedFrames

    path, data, real = shard(world), shard(world).read_bytes(), EncodedFrames.gather

    def gather(self: EncodedFrames, chosen: Any) -> Any:
        found = real(self, chosen)
        path.write_bytes(data[:-1] + b"x")
        os.utime(path, ns=(1, 1))
        return found

    monkeypatch.setattr(EncodedFrames, "gather", gather)
    fails(world, StorageError, "was written to while being read")
