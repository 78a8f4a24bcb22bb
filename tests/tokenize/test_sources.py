"""The source shards of a mixture by reference: their list, and comparing it with what is on disk."""

import contextlib
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from oxe_curate.errors import DataError
from oxe_curate.index.store import Index
from oxe_curate.storage import Folder
from oxe_curate.tokenize import sources as module
from oxe_curate.tokenize.sources import SOURCES, MixtureSources, ReferencedShard, read_sources, write_sources
from tests.filter.test_identity import SHARD, out, replace_shard, source  # noqa: F401 (fixtures)


@pytest.fixture
def listed(source: Path, out: Path) -> MixtureSources:  # noqa: F811 (the fixtures)
    """The shards of an index, compared once."""
    index = Index.open(out)
    found = [index.entry(path).shard for path in index.files("bridge_dataset")]
    return MixtureSources(tuple(ReferencedShard("bridge", Folder.of(source), shard) for shard in found)).compare()


def test_the_list_is_read_as_it_was_written(listed: MixtureSources, tmp_path: Path) -> None:
    write_sources(Folder.of(tmp_path / "a"), listed)
    first = (tmp_path / "a" / SOURCES).read_bytes()
    assert read_sources(Folder.of(tmp_path / "a")) == listed
    write_sources(Folder.of(tmp_path / "a"), listed)
    assert (tmp_path / "a" / SOURCES).read_bytes() == first
    assert SHARD in [row.shard.path for row in listed]
    assert len(listed) == 4
    assert all(row.identity for row in listed)
    moved = read_sources(Folder.of(tmp_path / "a"), Folder.of("/elsewhere"))
    assert moved[0].name == f"/elsewhere/{listed[0].shard.path}"
    assert moved == listed.moved(Folder.of("/elsewhere"))


def test_unchanged_shards_are_not_read(listed: MixtureSources, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "matches_shard", lambda *_: pytest.fail("read"))
    assert listed.compare() == listed


@pytest.mark.parametrize("how", ["touched", "copied", "moved"])
def test_shards_that_look_different_are_compared_once(
    source: Path,  # noqa: F811 (the fixture)
    listed: MixtureSources,
    tmp_path: Path,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if how == "touched":
        os.utime(source / SHARD)
    elif how == "copied":
        shutil.copytree(source, tmp_path / "mirror")
        listed = listed.moved(Folder.of(tmp_path / "mirror"))
    else:
        source.rename(tmp_path / "new")
        listed = listed.moved(Folder.of(tmp_path / "new"))
    again = listed.compare()
    assert replace(again[0], identity="") == replace(listed[0], identity="")
    monkeypatch.setattr(module, "matches_shard", lambda *_: pytest.fail("read again"))
    assert again.compare() == again


@pytest.mark.parametrize("same_time", [False, True])
def test_changed_contents_are_an_error(
    source: Path,  # noqa: F811 (the fixture)
    listed: MixtureSources,
    same_time: bool,
) -> None:
    replace_shard(source, same_time)
    with pytest.raises(DataError, match=f"{SHARD}: its records are not those that were filtered.*--source"):
        listed.compare()


def test_missing_and_resized_shards_are_one_error_with_counts(
    source: Path,  # noqa: F811 (the fixture)
    listed: MixtureSources,
) -> None:
    second = source / listed[1].shard.path
    os.truncate(second, second.stat().st_size - 1)
    with pytest.raises(DataError, match=rf"{second.name}: its size differs from the [\d,]+ bytes .*--source"):
        listed.compare()
    (source / listed[0].shard.path).unlink()
    with pytest.raises(DataError, match=r"not found; 1 more of 4 source shards are missing or have changed.*--source"):
        listed.compare()
    source.rename(source.with_name("gone"))
    with pytest.raises(DataError, match=r"not found, and neither is any other of the 4 source shards.*--source"):
        listed.compare()


def test_a_damaged_list_is_an_error(listed: MixtureSources, tmp_path: Path) -> None:
    folder = Folder.of(tmp_path / "a")
    write_sources(folder, listed)
    whole, rng = (tmp_path / "a" / SOURCES).read_bytes(), random.Random(0)
    for _ in range(300):
        data = bytearray(whole)
        if rng.random() < 0.2:
            del data[rng.randrange(len(data)) :]
        else:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (tmp_path / "a" / SOURCES).write_bytes(data)
        with contextlib.suppress(DataError):
            read_sources(folder)
    (tmp_path / "a" / SOURCES).unlink()
    with pytest.raises(DataError, match=r"sources\.parquet"):
        read_sources(folder)


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x"])
def test_a_path_outside_the_root_is_an_error(listed: MixtureSources, tmp_path: Path, path: str) -> None:
    row = replace(listed[0], shard=replace(listed[0].shard, path=path))
    write_sources(Folder.of(tmp_path), [row])
    with pytest.raises(DataError, match="expected a path below the root"):
        read_sources(Folder.of(tmp_path))
