import json
from pathlib import Path

import numpy as np
import pytest
from tensorflow_datasets.core import features as tfds

from benchmarks.make_shards import base_episodes, find_base, link_part, make_dataset, make_episode, records, vary_states


@pytest.fixture
def source(shared: Path) -> Path:
    return shared / "data" / "rlds" / "bridge_dataset" / "1.0.0"


@pytest.fixture(scope="module")
def made(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = shared / "data" / "rlds" / "bridge_dataset" / "1.0.0"
    return make_dataset(tmp_path_factory.mktemp("made"), source, gb=0.003, shards=2, size=64)


def test_states_go_on_and_actions_follow_them():
    base = np.linspace(0, 0.1, 10)[:, None].repeat(7, axis=1).astype(np.float32)
    state, action, index = vary_states(base, np.random.default_rng(0))
    assert 30 <= len(index) <= 50
    assert np.abs(np.diff(index)).max() == 1
    np.testing.assert_allclose(action[1:-1, :6], np.diff(state[1:, :6], axis=0), atol=0.003)
    assert set(action[:, 6]) <= {0.0, 0.5, 1.0}


def test_tfds_reads_the_data_set(made: Path):
    folder = made / "bridge_dataset" / "1.0.0"
    shards = sorted(folder.glob("*.tfrecord-*"))
    info = json.loads((folder / "dataset_info.json").read_text())
    lengths = [len(list(records(path))) for path in shards]
    assert [int(n) for n in info["splits"][0]["shardLengths"]] == lengths
    features = tfds.FeaturesDict.from_config(str(folder))
    steps = list(features.deserialize_example_np(next(records(shards[0])))["steps"])
    assert [step["is_first"] for step in steps] == [True] + [False] * (len(steps) - 1)
    assert steps[0]["observation"]["image_0"].shape == (64, 64, 3)
    assert steps[0]["language_embedding"].shape == (512,)


def test_drawn_episodes_take_the_place_of_real_ones(tmp_path: Path):
    source = find_base(tmp_path / "nowhere", tmp_path / "base")
    assert {len(base.lit) for base in base_episodes(source)} == {4}
    made = make_dataset(tmp_path / "made", source, gb=0.0005, shards=1, size=64) / "bridge_dataset" / "1.0.0"
    features = tfds.FeaturesDict.from_config(str(made))
    (shard,) = made.glob("*.tfrecord-*")
    steps = list(features.deserialize_example_np(next(records(shard)))["steps"])
    assert steps[0]["observation"]["image_0"].max() > 100


def test_an_episode_depends_only_on_its_number(source: Path):
    one = make_episode(source, 64, 0, 3, 1)
    assert make_episode(source, 64, 0, 3, 1) == one
    assert make_episode(source, 64, 0, 3, 2) != one
    assert make_episode(source, 64, 1, 3, 1) != one


def test_all_images_differ(source: Path):
    example = make_episode(source, 64, 0, 0, 0)
    images = example.split(b"\xff\xd8\xff\xe0")[1:]
    lit = [p for p in images if len(p) > 1000]  # those of image_3 are black
    assert len(lit) > 90
    assert len({p[700:1000] for p in lit}) == len(lit)  # after the header


def test_a_second_run_makes_only_what_is_missing(made: Path, source: Path):
    folder = made / "bridge_dataset" / "1.0.0"
    first, second = sorted(folder.glob("*.tfrecord-*"))
    before, written = first.read_bytes(), second.stat().st_mtime_ns
    first.unlink()
    (folder / "dataset_info.json").unlink()
    make_dataset(made, source, gb=0.003, shards=2, size=64)
    assert first.read_bytes() == before
    assert second.stat().st_mtime_ns == written


def test_another_data_set_is_not_overwritten(made: Path, source: Path):
    with pytest.raises(SystemExit, match="another data set"):
        make_dataset(made, source, gb=0.003, shards=2, size=256)


def test_a_part_is_the_first_shards(made: Path, source: Path, tmp_path: Path):
    part = link_part(made, tmp_path / "part", source, 1) / "bridge_dataset" / "1.0.0"
    (shard,) = part.glob("*.tfrecord-*")
    assert shard.name == "bridge_dataset-train.tfrecord-00000-of-00001"
    assert shard.samefile(made / "bridge_dataset" / "1.0.0" / "bridge_dataset-train.tfrecord-00000-of-00002")
    assert len(json.loads((part / "dataset_info.json").read_text())["splits"][0]["shardLengths"]) == 1
