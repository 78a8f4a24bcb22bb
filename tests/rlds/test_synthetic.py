"""TFDS reads back what is written: dataset_info.json, the shards' names, every feature of a step."""

import json
import struct
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from tensorflow_datasets.core import dataset_info, naming, splits
from tensorflow_datasets.core import features as tfds

from oxe_curate.errors import DataError, StorageError
from oxe_curate.rlds.random_episode import random_episode
from oxe_curate.rlds.synthetic import load_features, write_dataset

STEP = {
    "is_first": np.bool_,
    "is_last": np.bool_,
    "is_terminal": np.bool_,
    "reward": np.float32,
    "action": tfds.FeaturesDict(
        {
            "terminate_episode": tfds.Tensor(shape=(3,), dtype=np.int32),
            "gripper_closedness_action": tfds.Tensor(shape=(1,), dtype=np.float32),
        }
    ),
    "observation": tfds.FeaturesDict(
        {
            "instruction": tfds.Tensor(shape=(512,), dtype=np.int32),
            "natural_language_instruction": tfds.Text(),
            "image": tfds.Image(shape=(8, 10, 3), encoding_format="jpeg"),
            "depth": tfds.Image(shape=(8, 10, 1), dtype=np.float32, encoding_format="png"),
            "pose": tfds.Tensor(shape=(7,), dtype=np.float64),
            "bounds": tfds.Tensor(shape=(3, 3), dtype=np.float32, encoding="zlib"),
            "words": tfds.Sequence(tfds.Text()),
        }
    ),
}
STRUCTURE = tfds.FeaturesDict(
    {"steps": tfds.Dataset(STEP), "episode_metadata": {"file_path": tfds.Text(), "episode_id": np.int32}}
).to_json()


def episode(index: int) -> dict:
    return dict(random_episode(load_features(STRUCTURE), np.random.default_rng(index), index=index))


def read_split(folder: Path, split: str) -> list[dict]:
    """All episodes of a split, found and decoded by TFDS."""
    proto = dataset_info.read_proto_from_builder_dir(folder)
    template = naming.ShardedFileTemplate(data_dir=folder, dataset_name=proto.name, filetype_suffix="tfrecord")
    info = splits.SplitDict.from_proto(repeated_split_infos=proto.splits, filename_template=template)[split]
    structure = tfds.FeatureConnector.from_config(str(folder))
    episodes, size = [], 0
    for path, records in zip(info.filepaths, info.shard_lengths, strict=True):
        data, start = path.read_bytes(), 0
        for _ in range(records):
            (length,) = struct.unpack_from("<Q", data, start)
            episodes.append(structure.deserialize_example_np(data[start + 12 : start + 12 + length]))
            start, size = start + 16 + length, size + length
        assert start == len(data)
    assert size == info.num_bytes
    return episodes


def test_tfds_finds_splits_shards_and_records(tmp_path):
    written = write_dataset(tmp_path, "toy", "1.2.3", STRUCTURE, {"train": 5, "val": 1}, shards=2)
    assert written.path == tmp_path / "toy/1.2.3"
    assert written.splits == {"train": (3, 2), "val": (1,)}
    assert sorted(p.name for p in written.path.iterdir()) == [
        "dataset_info.json",
        "features.json",
        "toy-train.tfrecord-00000-of-00002",
        "toy-train.tfrecord-00001-of-00002",
        "toy-val.tfrecord-00000-of-00001",
    ]
    train, val = read_split(written.path, "train"), read_split(written.path, "val")
    assert [e["episode_metadata"]["episode_id"] for e in train + val] == [0, 2, 4, 1, 3, 0]
    assert written.num_steps == sum(len(e["steps"]) for e in train + val)
    assert written.num_bytes == sum(p.stat().st_size for p in written.path.glob("*.tfrecord-*"))
    assert json.loads((written.path / "features.json").read_text()) == STRUCTURE


def test_given_episodes_come_back(tmp_path):
    given = [episode(i) for i in range(2)]
    folder = write_dataset(tmp_path, "toy", "1.0.0", STRUCTURE, iter(given), shards=1).path
    for source, read in zip(given, read_split(folder, "train"), strict=True):
        assert len(read["steps"]) == len(source["steps"]["reward"])
        for t, step in enumerate(read["steps"]):
            observation = {k: v[t] for k, v in source["steps"]["observation"].items()}
            np.testing.assert_array_equal(step["observation"]["bounds"], observation["bounds"])
            np.testing.assert_array_equal(step["observation"]["pose"], observation["pose"].astype(np.float32))
            assert [w.decode() for w in step["observation"]["words"]] == observation["words"]


def test_random_episodes_are_plausible():
    steps = random_episode(load_features(STRUCTURE), np.random.default_rng(0), num_steps=4)["steps"]
    assert steps["is_first"].tolist() == [True, False, False, False]
    assert steps["is_last"].tolist() == steps["is_terminal"].tolist() == [False, False, False, True]
    assert steps["action"]["terminate_episode"].tolist() == [[0, 1, 0]] * 3 + [[1, 0, 0]]
    assert abs(steps["action"]["gripper_closedness_action"]).max() <= 1
    observation = steps["observation"]
    text = observation["natural_language_instruction"]
    assert "".join(map(chr, observation["instruction"][0])).rstrip("\0") == text[0] == text[3]
    np.testing.assert_allclose(np.linalg.norm(observation["pose"][:, 3:], axis=1), 1)


def test_a_declared_range_is_kept():
    structure = tfds.FeaturesDict(
        {"steps": tfds.Dataset({"x": tfds.Tensor(shape=(50,), dtype=np.float32, minimum=3.0, maximum=4.0)})}
    )
    x = random_episode(structure, np.random.default_rng(0))["steps"]["x"]
    assert 3 <= x.min() < 3.1 < 3.9 < x.max() <= 4


def test_an_unknown_connector_is_refused():
    sound = mock.create_autospec(tfds.FeatureConnector, instance=True)
    structure = tfds.FeaturesDict({"steps": tfds.Dataset({"sound": sound})})
    with pytest.raises(DataError, match="sound: cannot make random values"):
        random_episode(structure, np.random.default_rng(0))


def test_bytes_depend_only_on_the_seed(tmp_path):
    folders = [
        write_dataset(tmp_path / str(i), "toy", "1.0.0", STRUCTURE, 2, shards=1, seed=seed).path
        for i, seed in enumerate([0, 0, 1])
    ]
    first, again, other = [(f / "toy-train.tfrecord-00000-of-00001").read_bytes() for f in folders]
    assert first == again != other


def test_an_existing_folder_is_not_replaced(tmp_path):
    folder = write_dataset(tmp_path, "toy", "1.0.0", STRUCTURE, 1).path
    with pytest.raises(StorageError, match="already exists"):
        write_dataset(tmp_path, "toy", "1.0.0", STRUCTURE, 2)
    assert write_dataset(tmp_path, "toy", "1.0.0", STRUCTURE, 2, replace=True).splits == {"train": (1, 1)}
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("oxe_curate", "bridge"))
    with pytest.raises(StorageError, match="did not generate"):
        write_dataset(tmp_path, "toy", "1.0.0", STRUCTURE, 1, replace=True)
    assert len(read_split(folder, "train")) == 2


def test_a_wrong_episode_leaves_nothing_behind(tmp_path):
    wrong = episode(1) | {"episode_metadata": {"file_path": "a"}}
    with pytest.raises(DataError, match="toy, train, episode 1: episode_metadata/episode_id"):
        write_dataset(tmp_path, "toy", "1.0.0", STRUCTURE, [episode(0), wrong])
    assert list((tmp_path / "toy").iterdir()) == []


def test_an_empty_split_and_an_unwritable_folder_are_errors(tmp_path):
    with pytest.raises(DataError, match="'val' has no episodes"):
        write_dataset(tmp_path, "toy", "1.0.0", STRUCTURE, {"train": 1, "val": []})
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        write_dataset(tmp_path / "file", "toy", "1.0.0", STRUCTURE, 1)


@pytest.mark.parametrize("text", ["[]", "{", '{"type": "no.such.Feature", "content": {}}'])
def test_a_wrong_features_json_is_an_error(tmp_path, text):
    path = tmp_path / "features.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"features\.json: (not JSON|TFDS cannot read|expected a JSON object)"):
        write_dataset(tmp_path, "toy", "1.0.0", path, 1)


def test_every_structure_of_oxe_comes_back(tmp_path, shared: Path):
    paths = sorted(p for p in (shared / "oxe/features").glob("*.json") if p.stem != "index")
    assert len(paths) > 60
    for path in paths:
        folder = write_dataset(tmp_path, path.stem, "0.1.0", path, 2, shards=1).path
        for read in read_split(folder, "train"):
            steps = read["steps"]
            first, last = steps[0], steps[len(steps) - 1]  # decoding all would take seconds
            assert [s[flag] for s in (first, last) for flag in ("is_first", "is_last")] == [1, 0, 0, 1], path
            for name, value in flat(first):
                if isinstance(value, (bytes, str)):
                    assert value, (path.stem, name)
                else:
                    assert np.isfinite(value).all(), (path.stem, name)


def flat(tree: dict, path: str = ""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{path}{key}/")
        else:
            yield path + key, value
