"""materialize: a mixture by reference becomes, byte for byte, the one that tokenize writes with copies."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from oxe_curate.errors import ConfigError, DataError
from oxe_curate.filter.pipeline import FilterOptions, run_filter
from oxe_curate.tokenize import materialize as module
from oxe_curate.tokenize.materialize import MaterializeOptions, run_materialize
from oxe_curate.tokenize.pipeline import TokenizeOptions, TokenizeResult, run_tokenize
from tests import bridge
from tests.mixture.test_texts import write as write_texts
from tests.tokenize.test_pipeline import tree

BOTH = "datasets: [{name: bridge_dataset, weight: 2.5}, {name: bridge_data_msr, weight: 0.4, swap_channels: true}]\n"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("index")
    several = bridge.episode(5, 9)
    several["steps"]["language_instruction"] = ["reach"] * 5 + ["lift"] * 4
    bridge.write(root / "in", episodes={"train": [*(bridge.episode(i, 6 + i % 5) for i in range(10)), several]})
    bridge.write(root / "in", "bridge_data_msr", {"train": [bridge.episode(50 + i, 15) for i in range(4)]}, shards=1)
    write_texts(root / "vqa/a.parquet", 20)
    for frames in ("exact", "span"):
        run_filter(root / "in", root / frames, FilterOptions(progress=False, workers=1, frames=frames))
    return root / "exact"


def tokenize(index: Path, out: Path, text: str, copy: bool, **options: Any) -> TokenizeResult:
    out.parent.mkdir(parents=True, exist_ok=True)
    path = out.parent / f"{out.name}.yaml"
    image = "image: {" + ("" if copy else "copy: false, ")
    text = text.replace("image: {", image) if "image" in text else f"{text}\n{image}}}\n"
    path.write_text(f"name: m\n{text if 'datasets' in text else BOTH + text}")
    return run_tokenize(path, index, out, TokenizeOptions(**{"progress": False, "workers": 1, **options}))


def materialize(mixture: Path, out: Path, **options: Any) -> TokenizeResult:
    return run_materialize(mixture, out, MaterializeOptions(**{"progress": False, "workers": 1, **options}))


MIXTURES = {
    "one frame": "",
    "two cameras": "image: {cameras: [primary, secondary]}\nchunk: 3",
    "windows": "window: 12\nstride: 5\nchunk: 2\nvalidation: 0.3",
    "resized": "image: {size: 32, quality: 80}\nvalidation: 0.2",
    "resized windows": "image: {size: 32, cameras: [secondary, primary]}\nwindow: 3\nstride: 2",
    "texts": "texts: [{name: vqa, path: vqa, weight: 1.5}]\nimage: {size: 24}\nseed: 4",
    "one data set": "datasets: [{name: bridge_dataset, weight: 0.3}]\nvalidation: 0",
}


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("frames", ["exact", "span"])
def test_a_materialized_mixture_is_the_copying_one(index: Path, tmp_path: Path, name: str, frames: str) -> None:
    text = MIXTURES[name].replace("path: vqa", f"path: '{index.parent}/vqa'")
    made, out = index.parent / frames, tmp_path / "out"
    tokenize(made, out, text, copy=True, shard_bytes=9_000)
    expected = tree(out)
    assert sum(path.startswith("train") for path in expected) > 1 or name == "one data set"
    shutil.rmtree(out)
    tokenize(made, tmp_path / "reference", text, copy=False, shard_bytes=9_000)
    result = materialize(tmp_path / "reference", out)
    found = tree(out)
    assert sorted(found) == sorted(expected)
    assert [path for path in found if found[path] != expected[path]] == []
    assert result.shards_done == sum(path.endswith("parquet") for path in found) - 1  # and the action tokens
    assert result.manifest["format"] == 2


def test_a_moved_source_is_named_as_tokenize_names_it(index: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(index.parent / "in", tmp_path / "moved")
    tokenize(index, tmp_path / "out", "", copy=True, source=str(moved))
    expected = tree(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    tokenize(index, tmp_path / "reference", "", copy=False)
    materialize(tmp_path / "reference", tmp_path / "out", source=str(moved))
    assert tree(tmp_path / "out") == expected
    assert json.loads(expected["manifest.json"])["inputs"]["sources"].keys() == {"bridge_dataset", "bridge_data_msr"}


def test_finished_shards_are_kept_and_tokenize_continues_what_materialize_began(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenize(index, tmp_path / "reference", "", copy=False, shard_bytes=9_000)
    out, real, done = tmp_path / "out", module.materialize_shard, []

    def stop(job: Any, task: Any) -> Any:
        if len(done) == 2:
            raise DataError("stopped")
        done.append(task.output)
        return real(job, task)

    monkeypatch.setattr(module, "materialize_shard", stop)
    with pytest.raises(DataError, match="stopped"):
        materialize(tmp_path / "reference", out)
    assert not (out / "manifest.json").exists()
    monkeypatch.setattr(module, "materialize_shard", real)
    damaged = out / done[0]
    damaged.write_bytes(damaged.read_bytes()[:-40] + bytes(40))
    again = materialize(tmp_path / "reference", out)
    assert (again.shards_kept, again.damaged) == (1, (done[0],))
    before = tree(out)
    assert materialize(tmp_path / "reference", out).shards_done == 0
    assert tokenize(index, out, "", copy=True, shard_bytes=9_000).shards_done == 0
    assert tree(out) == before


def test_what_cannot_be_materialized_is_an_error(index: Path, tmp_path: Path) -> None:
    tokenize(index, tmp_path / "copy", "", copy=True)
    with pytest.raises(ConfigError, match="has copies of its frames already"):
        materialize(tmp_path / "copy", tmp_path / "out")
    tokenize(index, tmp_path / "reference", "", copy=False)
    with pytest.raises(ConfigError, match="is the mixture"):
        materialize(tmp_path / "reference", tmp_path / "reference")
    with pytest.raises(ConfigError, match="is inside the source"):
        materialize(tmp_path / "reference", index.parent / "in" / "new")
    tokenize(index, tmp_path / "other", "seed: 3", copy=True)
    with pytest.raises(ConfigError, match="contains another finished mixture"):
        materialize(tmp_path / "reference", tmp_path / "other")
    assert materialize(tmp_path / "reference", tmp_path / "other", overwrite=True).shards_done == 2
    shutil.copytree(index.parent / "in", tmp_path / "moved")
    next((tmp_path / "moved").rglob("*tfrecord*")).unlink()
    with pytest.raises(DataError, match="not found"):
        materialize(tmp_path / "reference", tmp_path / "out", source=str(tmp_path / "moved"))
    assert not list((tmp_path / "out").glob("*"))


def test_a_damaged_shard_by_reference_is_an_error(index: Path, tmp_path: Path) -> None:
    reference = tmp_path / "reference"
    tokenize(index, reference, "validation: 0", copy=False)
    (shard,) = reference.glob("train-*.parquet")
    whole = shard.read_bytes()
    shard.write_bytes(whole.replace(b'{"bridge_data_msr": ', b'{"bridge_data_mst": '))
    assert shard.read_bytes() != whole
    with pytest.raises(DataError, match=r"train-00000.*not the file in the manifest"):
        materialize(reference, tmp_path / "out")
    data = bytearray(whole)
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DataError, match=r"train-00000.*damaged.*Run tokenize again"):
        materialize(reference, tmp_path / "out")


def test_a_damaged_record_is_an_error_unless_records_are_not_checked(index: Path, tmp_path: Path) -> None:
    """The framing is as before, so only the checksum of the data finds it."""
    text = "datasets: [{name: bridge_data_msr, weight: 1}]\nvalidation: 0"
    tokenize(index, tmp_path / "reference", text, copy=False)
    shutil.copytree(index.parent / "in", tmp_path / "moved")
    (shard,) = (tmp_path / "moved/bridge_data_msr").rglob("*tfrecord*")
    data = bytearray(shard.read_bytes())
    at = data.index(b"e50")  # file_path of the first episode
    data[at : at + 3] = b"x50"
    shard.write_bytes(data)
    with pytest.raises(DataError, match="fails the checksum"):
        materialize(tmp_path / "reference", tmp_path / "out", source=str(tmp_path / "moved"))
    options = {"source": str(tmp_path / "moved"), "check_records": False}
    assert materialize(tmp_path / "reference", tmp_path / "out", **options).shards_done == 1


def test_options_have_the_defaults_of_tokenize() -> None:
    ours, theirs = MaterializeOptions(), TokenizeOptions()
    assert ours == replace(ours, **{name: getattr(theirs, name) for name in vars(ours)})
