"""A changed source or index is noticed: replaced shards, moved data sets, partial downloads, lost and damaged files."""

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from oxe_curate.errors import ConfigError, CurateError, DataError
from oxe_curate.filter.pipeline import FilterOptions, FilterResult, run_filter
from oxe_curate.index.files import FILES_JSON
from oxe_curate.index.index_json import INDEX_JSON, UNFINISHED
from oxe_curate.index.source_shards import SOURCES_JSON
from oxe_curate.index.store import Index, describe_file
from oxe_curate.mixture.members import members  # noqa: F401  (imports polars before files are damaged)
from oxe_curate.rlds import tfrecord
from oxe_curate.storage import Folder
from tests import bridge

SHARD = "bridge_dataset/1.0.0/bridge_dataset-train.tfrecord-00000-of-00002"


def run(source: Path, out: Path, **options: Any) -> FilterResult:
    return run_filter(source, out, FilterOptions(progress=False, workers=1, **options))


def parquet(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*.parquet")}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    bridge.write(tmp_path / "in")
    return tmp_path / "in"


@pytest.fixture
def out(source: Path, tmp_path: Path) -> Path:
    run(source, tmp_path / "index")
    return tmp_path / "index"


def replace_shard(source: Path, same_time: bool) -> None:
    """Replace a shard by one with records of the same lengths and other contents, valid checksums included."""
    path = source / SHARD
    before, data = path.stat(), bytearray(path.read_bytes())
    for offset, length in list(tfrecord.records(memoryview(bytes(data)))):
        at = data.index(b"\xff\xd8\xff", offset)
        data[at + 20 : at + 24] = b"abcd"
        crc = tfrecord.masked_crc(bytes(data[offset : offset + length]))
        data[offset + length : offset + length + 4] = crc.to_bytes(4, "little")
    path.write_bytes(data)
    if same_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("same_time", [False, True])
def test_a_shard_of_the_same_size_with_other_contents_is_scanned_again(
    source: Path, out: Path, same_time: bool
) -> None:
    before = Index.open(out).entry("bridge_dataset/1.0.0/train-00000-of-00002.parquet").shard
    replace_shard(source, same_time)
    assert run(source, out).shards_done == 1
    after = Index.open(out).entry("bridge_dataset/1.0.0/train-00000-of-00002.parquet").shard
    assert (after.bytes, after.records) == (before.bytes, before.records)
    assert after.digest != before.digest
    assert run(source, out).shards_done == 0


def test_a_touched_or_copied_shard_is_not_scanned_again(source: Path, out: Path, tmp_path: Path) -> None:
    os.utime(source / SHARD)
    assert run(source, out).shards_done == 0
    (out / SOURCES_JSON).unlink()
    assert run(source, out).shards_done == 0
    (out / SOURCES_JSON).write_text("{")
    assert run(source, out).shards_done == 0
    shutil.copytree(source, tmp_path / "mirror")
    before = parquet(out)
    assert run(tmp_path / "mirror", out).shards_done == 0
    assert parquet(out) == before
    assert Index.open(out).source_of("bridge_dataset") == Folder.of(tmp_path / "mirror")


def test_another_folder_with_other_shards_is_refused(source: Path, out: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "other")
    replace_shard(tmp_path / "other", same_time=False)
    with pytest.raises(ConfigError, match=r"was filtered from .*/in, and .*differs from the shard there"):
        run(tmp_path / "other", out)
    assert run(source, out).shards_done == 0


def test_data_sets_of_two_folders_share_an_index(source: Path, out: Path, tmp_path: Path) -> None:
    bridge.write(tmp_path / "second", name="bridge_data_msr")
    run(tmp_path / "second", out)
    index = Index.open(out)
    assert index.source_of("bridge_dataset") == Folder.of(source)
    assert index.source_of("bridge_data_msr") == Folder.of(tmp_path / "second")


def test_records_have_the_checksums_of_the_source(source: Path, out: Path) -> None:
    index = Index.open(out)
    for path in index.files("bridge_dataset"):
        columns = ["shard", "record_offset", "record_length", "record_crc"]
        for shard, offset, length, crc in zip(*index.table(path, columns).to_pydict().values(), strict=True):
            data = memoryview((source / shard).read_bytes())
            tfrecord.check_framing(data, offset, length, crc)
            assert tfrecord.masked_crc(data[offset : offset + length]) == crc


def test_a_partial_download_is_reported_with_the_splits_that_are_there(tmp_path: Path) -> None:
    episodes = {"train": [bridge.episode(i) for i in range(9)], "val": [bridge.episode(20)]}
    folder = bridge.write(tmp_path / "in", episodes=episodes, shards=4)
    for number in (0, 2):
        next(folder.glob(f"*-train*-0000{number}-of-*")).unlink()
    with pytest.raises(DataError, match=r"2 of 4 shards of its split 'train'") as caught:
        run(tmp_path / "in", tmp_path / "out", splits=("train",))
    splits = str(caught.value).split("pass ")[1].rstrip(".").replace("'", "").split("--split ")[1:]
    splits = [split.strip() for split in splits]
    assert len(splits) == 2
    result = run(tmp_path / "in", tmp_path / "out", splits=tuple(splits))
    assert result.shards_done == 2
    with pytest.raises(
        DataError, match=r"the shard is missing.*shards of bridge_dataset/1.0.0 are there.*--split 'val'"
    ):
        run(tmp_path / "in", tmp_path / "out2")
    for path in folder.glob("*-train*tfrecord*"):
        path.unlink()
    with pytest.raises(DataError, match="none of them is there"):
        run(tmp_path / "in", tmp_path / "out", splits=("train",))


def test_missing_and_resized_index_files_are_noticed_by_every_reader(out: Path, source: Path) -> None:
    files = Index.open(out).files("bridge_dataset")
    before = parquet(out)
    (out / files[0]).unlink()
    (out / files[2]).unlink()
    with pytest.raises(DataError, match=r"2 of 4 index files of bridge_dataset are missing, such as .*train-00000"):
        Index.open(out).files("bridge_dataset")
    assert run(source, out).shards_done == 2
    (out / files[1]).write_bytes(before[files[1]] + b"x")
    with pytest.raises(DataError, match="1 of 4 index files of bridge_dataset are of another size"):
        Index.open(out).files("bridge_dataset")
    assert run(source, out).shards_done == 1
    assert parquet(out) == before


def test_stray_files_are_never_read(out: Path) -> None:
    folder = out / "bridge_dataset/1.0.0"
    first = next(folder.glob("train*.parquet"))
    for name in (f".oxe-tmp-host-1-{first.name}", "train-00007-of-00008.parquet", "notes.parquet"):
        shutil.copy(first, folder / name)
    assert len(Index.open(out).files("bridge_dataset")) == 4


def test_a_swapped_index_file_is_noticed(out: Path, source: Path) -> None:
    index = Index.open(out)
    one, other = (out / path for path in index.files("bridge_dataset")[:2])
    one.write_bytes(other.read_bytes())
    with pytest.raises(DataError):
        index.table(index.files("bridge_dataset")[0])
    with pytest.raises(DataError):
        Index.open(out).table(index.files("bridge_dataset")[0])
    run(source, out, verify=True)
    assert Index.open(out).table(index.files("bridge_dataset")[0]).num_rows == 4


@pytest.mark.parametrize("unfinished", [False, True])
def test_a_flipped_bit_anywhere_in_an_index_file_is_noticed(out: Path, source: Path, unfinished: bool) -> None:
    path = Index.open(out).files("bridge_dataset")[1]
    whole = (out / path).read_bytes()
    expected = Index.open(out).table(path)
    rng = random.Random(0)
    for at in [0, 3, 4, *rng.sample(range(len(whole)), 300), len(whole) - 1]:
        data = bytearray(whole)
        data[at] ^= 1 << rng.randrange(8)
        (out / path).write_bytes(data)
        with pytest.raises(DataError):
            describe_file(Folder.of(out), path, whole=True)
        try:
            table = Index.open(out).table(path)
        except DataError:
            continue
        assert table.equals(expected), at  # such as the magic number at the start, which readers skip
    if unfinished:
        (out / INDEX_JSON).rename(out / UNFINISHED)
    assert run(source, out, verify=not unfinished).shards_done == 1
    assert (out / path).read_bytes() == whole


@pytest.mark.parametrize("name", [INDEX_JSON, FILES_JSON])
def test_a_flipped_bit_in_a_json_file_is_one_error(out: Path, source: Path, name: str) -> None:
    whole = (out / name).read_bytes()
    rng = random.Random(1)
    for at in rng.sample(range(len(whole)), 200):
        data = bytearray(whole)
        data[at] ^= 1 << rng.randrange(8)
        (out / name).write_bytes(data)
        try:
            Index.open(out).files("bridge_dataset")
        except CurateError as error:
            message = str(error)
        else:  # only the folders may be edited
            assert json.loads(data)["source"] != str(source)
            continue
        assert name in message or "index files" in message
        assert len(message) < 1000
    (out / name).write_bytes(data)
    run(source, out)
    Index.open(out).files("bridge_dataset")


def test_a_file_of_another_index_is_noticed(out: Path, source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "other", splits=("train",))
    shutil.copy(tmp_path / "other" / FILES_JSON, out)
    with pytest.raises(DataError, match="of another index"):
        Index.open(out).files("bridge_dataset")
    (out / FILES_JSON).unlink()
    with pytest.raises(DataError, match=r"files\.json: file not found; run the same"):
        Index.open(out).files("bridge_dataset")
    run(source, out)
    assert len(Index.open(out).files("bridge_dataset")) == 4


def test_a_killed_run_of_another_split_does_not_count(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    run(source, out, splits=("train",))
    (out / INDEX_JSON).unlink()
    (out / FILES_JSON).unlink()
    (out / "bridge_dataset/1.0.0/train-00001-of-00002.parquet").unlink()
    summary = run(source, out, splits=("val",)).summaries["bridge_dataset"]
    assert summary.seen == 2


def test_a_lost_file_of_another_data_set_is_named(source: Path, out: Path) -> None:
    bridge.write(source, name="bridge_data_msr")
    run(source, out, datasets=("bridge_data_msr",))
    (out / "bridge_dataset/1.0.0/val-00000-of-00002.parquet").unlink()
    with pytest.raises(DataError, match=r"index file of bridge_dataset not found; filter bridge_dataset \(split val\)"):
        run(source, out, datasets=("bridge_data_msr",))
    assert run(source, out).shards_done == 1
