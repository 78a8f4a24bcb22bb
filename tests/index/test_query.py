"""Lazy scans over index files: order, row numbers, splits, object stores and damaged files."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from oxe_curate.errors import DataError, StorageError
from oxe_curate.filter.criteria import Criteria
from oxe_curate.filter.pipeline import FilterOptions, run_filter
from oxe_curate.index.query import collect, count_kept, scan_files, scan_index
from oxe_curate.index.store import Index
from oxe_curate.storage import Folder
from tests import bridge, s3


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Index:
    root = tmp_path_factory.mktemp("an index = [with] *signs*")
    bridge.write(root / "in")
    run_filter(root / "in", root / "index", FilterOptions(progress=False, workers=1, criteria=Criteria(too_short=6)))
    return Index.open(root / "index")


@pytest.fixture(scope="module")
def remote(local: Index) -> Iterator[Index]:
    with s3.bucket() as address:
        folder = Folder.of(f"{address}/index")
        for path in local.folder.path().rglob("*"):
            if path.is_file():
                folder.publish_bytes(str(path.relative_to(local.folder.path())), path.read_bytes())
        yield Index.open(folder)


@pytest.fixture(params=["local", "remote"])
def index(request: pytest.FixtureRequest) -> Index:
    found: Index = request.getfixturevalue(request.param)
    return found


def test_rows_keep_the_order_of_the_files(index: Index) -> None:
    files = index.files("bridge_dataset")
    for paths in (files, files[::-1]):
        expected = [
            (number, path, row, name)
            for number, (path, row, name) in enumerate(
                (path, row, name)
                for path in paths
                for row, name in enumerate(index.table(path, ["episode_id"])["episode_id"].to_pylist())
            )
        ]
        found = collect(scan_files(index.contents, paths).select("position", "file", "row", "episode_id"))
        assert found.rows() == expected


def test_a_scan_can_be_limited_to_splits(index: Index) -> None:
    found = collect(scan_index(index, "bridge_dataset", ["val"]).select("episode_id"))
    assert len(found) == 2
    assert found["episode_id"].str.contains("/val/").all()


def test_every_column_of_the_schema_can_be_read(index: Index) -> None:
    frame = collect(scan_index(index, "bridge_dataset"))
    assert frame.height == 10
    assert frame["action"].list.len().to_list() == frame["num_steps"].to_list()
    assert collect(scan_index(index, "bridge_dataset").select(pl.len())).item() == 10
    second = scan_index(index, "bridge_dataset").filter(pl.col("row") == 1).head(2)
    assert collect(second)["row"].to_list() == [1, 1]


def test_kept_episodes_and_steps_are_counted_by_split(index: Index) -> None:
    entry = index.datasets["bridge_dataset"]
    assert count_kept(index, "bridge_dataset", ["train", "val"]) == (entry.summary.kept, entry.summary.steps_kept)
    assert count_kept(index, "bridge_dataset", ["val"]) == (2, 12)
    assert count_kept(index, "bridge_dataset", []) == (0, 0)


def test_no_files_give_an_empty_frame(index: Index) -> None:
    frame = collect(scan_index(index, "bridge_dataset", []))
    assert frame.is_empty()
    assert {"episode_id", "position", "file", "row"} <= set(frame.columns)


def test_a_damaged_or_missing_file_is_one_error(local: Index, tmp_path: Path) -> None:
    shutil.copytree(local.folder.path(), tmp_path / "index")
    index = Index.open(tmp_path / "index")
    paths = index.files("bridge_dataset")
    damaged = tmp_path / "index" / paths[1]
    data = bytearray(damaged.read_bytes())
    scan = scan_files(index.contents, paths).select("kept", "episode_id")
    data[len(data) - 100] ^= 1
    damaged.write_bytes(data)
    with pytest.raises(DataError, match="changed after filter wrote it"):
        collect(scan)
    damaged.write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"changed after filter wrote it.*run the same `oxe-curate filter` again"):
        collect(scan)
    damaged.unlink()
    with pytest.raises(StorageError, match="not found"):
        collect(scan)


def test_the_filter_does_not_import_polars_where_shards_are_scanned() -> None:
    code = "import sys, oxe_curate.filter.pipeline, oxe_curate.beam.fn; print('polars' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
