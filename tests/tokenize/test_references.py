"""Mixtures by reference: the rows of the copying mixture, with the place of each frame in the source."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from oxe_curate.errors import CorruptError, DataError, StorageError
from oxe_curate.index.records import _LocalReader
from oxe_curate.mixture.spec import mixture_yaml, read_mixture
from oxe_curate.storage import Folder
from oxe_curate.tokenize.folder import MixtureFolder, read_manifest
from oxe_curate.tokenize.pipeline import TokenizeResult
from oxe_curate.tokenize.references import RECORDS_KEY, pack_records, unpack_records
from tests import bridge
from tests.tokenize.test_materialize import index as index
from tests.tokenize.test_materialize import tokenize
from tests.tokenize.test_pipeline import tree

KIND = {
    "one frame": "validation: 0.2",
    "two cameras": "image: {cameras: [secondary, primary], size: 32}\nchunk: 3",
    "windows": "window: 4\nstride: 2\nvalidation: 0",
}


def source_bytes(folder: Path, row: dict[str, Any], place: dict[str, int]) -> bytes:
    shard = MixtureFolder.open(str(folder)).sources[row["source"]]
    return shard.root.read_bytes(shard.shard.path, place["offset"], place["length"])


@pytest.mark.parametrize("name", KIND)
@pytest.mark.parametrize("frames", ["exact", "span"])
def test_rows_are_those_of_the_copying_mixture_in_the_same_order(
    index: Path, tmp_path: Path, name: str, frames: str
) -> None:
    made = index.parent / frames
    tokenize(made, tmp_path / "copy", KIND[name].replace(", size: 32", ""), copy=True, shard_bytes=9_000)
    reference = tmp_path / "reference"
    tokenize(made, reference, KIND[name].replace(", size: 32", ""), copy=False, shard_bytes=9_000)
    shards = sorted(path.name for path in (tmp_path / "copy").glob("*-of-*"))
    assert sorted(path.name for path in reference.glob("*-of-*")) == shards
    seen = 0
    for shard in shards:
        copied, referred = (pq.read_table(tmp_path / kind / shard) for kind in ("copy", "reference"))
        images = [column for column in copied.column_names if column.startswith("image_")]
        assert [c for c in referred.column_names if c != "source"] == copied.column_names
        numbers = [column for column in copied.column_names if column not in images]
        assert referred.select(numbers).equals(copied.select(numbers))
        for row, other in zip(referred.to_pylist(), copied.to_pylist(), strict=True):
            for image in images:
                places, stored = (v if isinstance(v, list) else [v] for v in (row[image], other[image]))
                for place, frame in zip(places, stored, strict=True):
                    seen += 1
                    assert (place is None) == (frame is None)
                    if place and not other["dataset"].endswith("msr"):  # whose frames are swapped when they are copied
                        assert source_bytes(reference, row, place) == frame["bytes"]
    assert seen > 100


def absent(result: TokenizeResult) -> list[str]:
    return [line for line in result.warnings if "not found" in line]


def test_no_source_is_needed_if_every_frame_is_located(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenize(index, tmp_path / "out", "window: 3", copy=False)
    expected = tree(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    monkeypatch.setattr(_LocalReader, "__init__", lambda *_: pytest.fail("a source shard was opened"))
    assert not absent(tokenize(index, tmp_path / "out", "window: 3", copy=False))
    assert tree(tmp_path / "out") == expected
    shutil.rmtree(tmp_path / "out")
    (warning,) = absent(tokenize(index, tmp_path / "out", "window: 3", copy=False, source=str(tmp_path / "none")))
    assert "none/bridge_data_msr/1.0.0 and 1 other folders of data sets were not found" in warning
    changed = {path for path, data in tree(tmp_path / "out").items() if data != expected[path]}
    assert changed == {"manifest.json", "sources.parquet"}
    assert {shard.identity for shard in MixtureFolder.open(str(tmp_path / "out")).sources} == {""}


def test_frames_that_were_not_located_need_the_source(index: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="folder not found; the data sets were filtered from it"):
        tokenize(index.parent / "span", tmp_path / "out", "", copy=False, source=str(tmp_path / "none"))


def test_the_bytes_of_frames_are_not_read(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    real = _LocalReader.read_into
    monkeypatch.setattr(
        _LocalReader, "read_into", lambda self, at, view: read.append(len(view)) or real(self, at, view)
    )
    tokenize(index.parent / "span", tmp_path / "out", "", copy=False)
    assert read
    assert max(read) <= 64


def test_the_manifest_names_the_sources_and_what_is_not_applied(index: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = tokenize(index, out, "image: {size: 32, cameras: [primary, secondary]}", copy=False)
    assert (result.manifest["format"], result.manifest["images"]) == (3, "reference")
    assert result.manifest["swap"] == {"bridge_data_msr": ["primary", "secondary"]}
    assert read_manifest(Folder.of(out)) == result.manifest
    opened = MixtureFolder.open(str(out))
    assert not opened.copies
    assert (opened.mixture.image.size, opened.mixture.image.copy) == (32, False)
    assert [shard.dataset for shard in opened.sources] == ["bridge_dataset", "bridge_dataset", "bridge_data_msr"]
    files = json.loads((index / "files.json").read_text())["files"].values()
    assert {shard.shard.digest for shard in opened.sources} == {file["shard"]["digest"] for file in files}
    assert all(shard.identity for shard in opened.sources)


def test_copying_mixtures_say_nothing_of_it(index: Path, tmp_path: Path) -> None:
    result = tokenize(index, tmp_path / "out", "", copy=True)
    assert result.manifest["format"] == 2
    assert not {"images", "swap", "copying", "shard_bytes"} & result.manifest.keys()
    assert "copy" not in (tmp_path / "out/mixture.yaml").read_text()
    assert not (tmp_path / "out/sources.parquet").exists()
    (tmp_path / "m.yaml").write_text("name: m\ndatasets: [{name: a, weight: 1}]\nimage: {copy: false}\n")
    assert "copy: false" in mixture_yaml(read_mixture(tmp_path / "m.yaml"))


def test_a_changed_source_is_one_error(index: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(index.parent / "in", tmp_path / "moved")
    assert not absent(tokenize(index, tmp_path / "out", "", copy=False, source=str(moved)))
    shutil.rmtree(moved / "bridge_dataset")
    bridge.write(moved, episodes={"train": [bridge.episode(i, 6 + i % 5) for i in range(11)]})
    with pytest.raises(DataError, match=r"moved/bridge_dataset.*(size differs|records are not those)"):
        tokenize(index, tmp_path / "out", "", copy=False, source=str(moved))


def test_finished_shards_are_kept_and_damaged_ones_written_again(index: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tokenize(index, out, "", copy=False, shard_bytes=9_000)
    expected = tree(out)
    (out / "manifest.json").unlink()
    first, second, *_ = sorted(out.glob("train-*"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-30])
    again = tokenize(index, out, "", copy=False, shard_bytes=9_000)
    assert again.shards_done == 2
    assert tree(out) == expected
    tokenize(index, out, "", copy=True, shard_bytes=9_000, overwrite=True)
    assert "sources.parquet" not in tree(out)


def test_records_are_compared_with_their_checksums_on_request(index: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(index.parent / "in", tmp_path / "moved")
    (shard,) = (moved / "bridge_data_msr").rglob("*tfrecord*")
    data = bytearray(shard.read_bytes())
    at = data.index(b"e50")  # file_path of the first episode
    data[at : at + 3] = b"x50"
    shard.write_bytes(data)
    options = {"copy": False, "source": str(moved)}
    tokenize(index, tmp_path / "out", "validation: 0", **options)
    with pytest.raises(CorruptError, match="fails the checksum"):
        tokenize(index, tmp_path / "checked", "validation: 0", check_records=True, **options)


def test_the_records_of_episodes_are_in_the_metadata(index: Path, tmp_path: Path) -> None:
    tokenize(index, tmp_path / "out", "validation: 0", copy=False)
    (shard,) = (tmp_path / "out").glob("train-*")
    table = pq.ParquetFile(shard)
    ids = sorted(set(table.read(["episode_id"])["episode_id"].to_pylist()))
    found = unpack_records(table.metadata.metadata[RECORDS_KEY], ids)
    known = {}
    for path in index.rglob("train-*.parquet"):
        for row in pq.read_table(path).to_pylist():
            known[row["episode_id"]] = (row["record_offset"], row["record_length"], row["record_crc"])
    assert found == {name: known[name] for name in ids}
    with pytest.raises(ValueError, match="the records of 2 episodes, expected 1"):
        unpack_records(pack_records({"a": (1, 2, 3), "b": (4, 5, 6)}), ["a"])


def test_the_places_of_frames_take_little_room(index: Path, tmp_path: Path) -> None:
    tokenize(index, tmp_path / "out", "datasets: [{name: bridge_dataset, weight: 400}]\nvalidation: 0", copy=False)
    group = [pq.ParquetFile(path).metadata.row_group(0) for path in (tmp_path / "out").glob("train-*")]
    rows = sum(g.num_rows for g in group)
    chunks = [g.column(i) for g in group for i in range(g.num_columns)]
    named = [c for c in chunks if c.path_in_schema.startswith(("source", "image_"))]
    assert np.sum([c.total_compressed_size for c in named]) < 10 * rows
