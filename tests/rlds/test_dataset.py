import gzip
import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest

from oxe_curate.errors import ConfigError, CurateError, DataError
from oxe_curate.filter.pipeline import FilterOptions, run_filter
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


def test_a_version_is_the_whole_name_of_a_folder(tmp_path: Path) -> None:
    for version in ("1.2.0", "1.10.0", "2.0.0", "2.0.0.incompleteA1B2", "10.0.0.incompleteZZ", "v3.0.0", "2.0.0-copy"):
        write_dataset(tmp_path, "franka", version, BRIDGE, 1, shards=1)
    root = Folder.of(tmp_path)
    (found,) = find(root)
    assert found.version == "2.0.0"
    assert set(found.ignored) == {"2.0.0.incompleteA1B2", "10.0.0.incompleteZZ", "v3.0.0", "2.0.0-copy"}
    assert find(root, ["franka:1.*.*"])[0].version == "1.10.0"
    assert find(Folder.of(tmp_path / "franka"))[0].version == "2.0.0"
    assert find(Folder.of(tmp_path / "franka/v3.0.0"))[0].version == "v3.0.0"  # named by the user
    with pytest.raises(ConfigError, match=r"2\.0\.0\.incompleteA1B2: tfds had not finished writing this folder"):
        find(Folder.of(tmp_path / "franka/2.0.0.incompleteA1B2"))
    assert find(root, ["franka:v3.0.0"])[0].version == "v3.0.0"
    with pytest.raises(ConfigError, match=r"no version '2\.0\.0\.incompleteA1B2'"):
        find(root, ["franka:2.0.0.incompleteA1B2"])
    with pytest.raises(ConfigError, match=r"no version '3\.0\.0'"):
        find(root, ["franka:3.0.0"])


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("1.0.0.incompleteA1", "only franka/1.0.0.incompleteA1, which tfds had not finished writing"),
        ("v1", "only franka/v1, whose name is not a version such as 1.0.0"),
    ],
)
def test_a_data_set_without_a_version_folder_is_an_error(tmp_path: Path, version: str, message: str) -> None:
    write_dataset(tmp_path, "franka", version, BRIDGE, 1, shards=1)
    for names in ([], ["franka"]):
        with pytest.raises(ConfigError, match=re.escape(message)):
            find(Folder.of(tmp_path), names)
    write_dataset(tmp_path, "other", "1.0.0", BRIDGE, 1, shards=1)
    with pytest.raises(ConfigError, match=f"has no data set 'franka'.*{re.escape(message)}"):
        find(Folder.of(tmp_path), ["franka"])


def test_names_of_classes_and_configs_are_resolved_as_tfds_does(tmp_path: Path) -> None:
    root = Folder.of(tmp_path)
    write_dataset(tmp_path, "my_robot_v2", "1.0.0", BRIDGE, 1, shards=1)
    assert find(root, ["MyRobotV2"])[0].name == "my_robot_v2"
    write_dataset(tmp_path / "arm", "small", "1.0.0", BRIDGE, 1, shards=1)
    assert find(root, ["arm"])[0].name == "arm/small"
    write_dataset(tmp_path / "arm", "large", "1.0.0", BRIDGE, 1, shards=1)
    with pytest.raises(ConfigError, match="several builder configs and no default; choose one of arm/large, arm/small"):
        find(root, ["arm"])
    (tmp_path / "arm/.config").mkdir()
    (tmp_path / "arm/.config/metadata.json").write_text('{"default_config_name": "large"}')
    assert find(root, ["arm"])[0].name == "arm/large"
    assert find(root, ["Arm/small"])[0].name == "arm/small"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"splits": []}, r"dataset_info\.json: lists no splits"),
        ({"splits": [{"name": "train"}]}, r"dataset_info\.json: the split 'train' has no shardLengths"),
        ({"splits": [{"name": "train", "shardLengths": ["0"]}]}, "the split 'train' has the shardLengths 0, so"),
        ({"splits": [{"name": "train", "shardLengths": ["3", "-1"]}]}, "the split 'train' has the shardLengths 3, -1"),
    ],
)
def test_a_data_set_without_shard_lengths_is_an_error(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write_dataset(tmp_path, "bridge_dataset", "1.0.0", BRIDGE, 1, shards=1)
    file = tmp_path / "bridge_dataset/1.0.0/dataset_info.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(DataError, match=message):
        find(Folder.of(tmp_path))[0].shards()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 12345\n"
FOREIGN = {
    "a Git LFS pointer, not the data itself: run `git lfs pull`": POINTER,
    "a web page or an error message": b"\n<!DOCTYPE html><html><body>404</body></html>",
    "an error message of a server": b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>',
    "compressed (gzip): decompress it": gzip.compress(b"x" * 1000),
    "begins with zeros": bytes(4096),
}


@pytest.mark.parametrize("what", FOREIGN)
@pytest.mark.parametrize("name", ["dataset_info.json", "features.json", "shard"])
def test_a_file_of_another_kind_is_named(tmp_path: Path, what: str, name: str) -> None:
    write_dataset(tmp_path, "bridge_dataset", "1.0.0", BRIDGE, 1, shards=1)
    (dataset,) = find(Folder.of(tmp_path))
    path = dataset.shards()[0].path if name == "shard" else f"bridge_dataset/1.0.0/{name}"
    (tmp_path / path).write_bytes(FOREIGN[what])
    with pytest.raises(CurateError, match=re.escape(what)) as caught:
        run_filter(tmp_path, tmp_path.parent / f"{tmp_path.name}-out", FilterOptions(progress=False, workers=1))
    assert path.rpartition("/")[2] in str(caught.value)
    assert str(caught.value).count("\n") <= 1  # the second line says that finished files are kept
