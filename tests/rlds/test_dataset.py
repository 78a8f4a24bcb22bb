import json
import pickle
from pathlib import Path

import pytest

from oxe_curate.errors import ConfigError, DataError
from oxe_curate.rlds.dataset import find
from oxe_curate.rlds.synthetic import write_dataset
from oxe_curate.storage import Folder
from tests.structures import BRIDGE


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rlds")
    write_dataset(folder, "bridge_dataset", "1.0.0", BRIDGE, {"train": 5, "val": 2}, shards=2)
    write_dataset(folder, "bridge_dataset", "0.9.0", BRIDGE, 1, shards=1)
    write_dataset(folder / "franka", "config_b", "1.0.0", BRIDGE, 1, shards=1)
    return folder


def test_data_sets_are_found_by_their_folders(root: Path) -> None:
    found = find(Folder.of(root))
    assert [(d.name, d.version) for d in found] == [("bridge_dataset", "1.0.0"), ("franka/config_b", "1.0.0")]
    assert [d.version for d in find(Folder.of(root), ["bridge_dataset:0.9.0"])] == ["0.9.0"]


@pytest.mark.parametrize("below", ["bridge_dataset", "bridge_dataset/1.0.0"])
def test_a_data_sets_own_folder_may_be_the_source(root: Path, below: str) -> None:
    (dataset,) = find(Folder.of(root / below))
    assert (dataset.source.uri, dataset.path) == (str(root), "bridge_dataset/1.0.0")


def test_shards_of_all_splits_and_of_sub_splits(root: Path) -> None:
    (dataset,) = find(Folder.of(root), ["bridge_dataset"])
    shards = dataset.shards()
    assert [(s.split, s.number, s.records) for s in shards] == [
        ("train", 0, 3), ("train", 1, 2), ("val", 0, 1), ("val", 1, 1),
    ]  # fmt: skip
    assert all((root / s.path).is_file() for s in shards)
    assert [(s.number, s.skip, s.take) for s in dataset.shards(["train[1:4]"])] == [(0, 1, 2), (1, 0, 1)]
    assert sum(s.take for s in dataset.shards(["train[:80%]"])) == 4


def test_a_worker_parses_the_json_itself(root: Path) -> None:
    (dataset,) = find(Folder.of(root), ["bridge_dataset"])
    assert dataset.features is not None
    assert len(pickle.dumps(dataset)) < 1000
    assert pickle.loads(pickle.dumps(dataset)).shards() == dataset.shards()


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("bridge_datset", "train", "no data set 'bridge_datset'. Did you mean 'bridge_dataset'?"),
        ("bridge_dataset:1.0.1", "train", "no version '1.0.1'. Did you mean '1.0.0'?"),
        ("bridge_dataset", "trian", "no split 'trian'. Did you mean 'train'?"),
        ("bridge_dataset", "train[:x]", "split 'train[:x]'"),
    ],
)
def test_an_unknown_name_suggests_the_closest(root: Path, name: str, split: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find(Folder.of(root), [name])[0].shards([split])
    assert message in str(caught.value)


def test_a_folder_without_data_sets_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no TFDS data set found .*dataset_info\.json"):
        find(Folder.of(tmp_path))


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_a_missing_or_broken_json_file_is_named(tmp_path: Path, name: str) -> None:
    write_dataset(tmp_path, "bridge_dataset", "1.0.0", BRIDGE, 1, shards=1)
    file = tmp_path / "bridge_dataset/1.0.0" / name
    text = file.read_text()
    file.unlink()
    with pytest.raises(DataError, match=name):
        _ = find(Folder.of(tmp_path))[0].features
    file.write_text(text[:50])
    with pytest.raises(DataError, match=f"{name}: cannot be read"):
        _ = find(Folder.of(tmp_path))[0].features


def test_another_file_format_is_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path, "bridge_dataset", "1.0.0", BRIDGE, 1, shards=1)
    file = tmp_path / "bridge_dataset/1.0.0/dataset_info.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "fileFormat": "riegeli"}))
    with pytest.raises(DataError, match=r"the format 'riegeli', expected tfrecord or array_record; convert them with"):
        find(Folder.of(tmp_path))[0].shards()
