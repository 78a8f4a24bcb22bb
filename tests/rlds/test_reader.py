"""Every dtype and encoding that TFDS writes, compared with TFDS's own numpy deserialiser."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorflow_datasets.core import features as tfds

from oxe_curate.errors import DataError
from oxe_curate.rlds.encode import encode_example, flatten_episode
from oxe_curate.rlds.leaf import leaves
from oxe_curate.rlds.reader import RecordReader

T = 3
STEP = {
    "f32": (tfds.Tensor(shape=(2,), dtype=np.float32), np.arange(6, dtype=np.float32).reshape(T, 2)),
    "f64": (tfds.Tensor(shape=(2,), dtype=np.float64), np.arange(6).reshape(T, 2) / 4),
    "scalar": (tfds.Scalar(np.float32), np.float32([1, 2, 3])),
    "flag": (tfds.Scalar(np.bool_), np.array([True, False, True])),
    "i32": (tfds.Tensor(shape=(2,), dtype=np.int32), np.int32([[1, -2], [3, 4], [2**31 - 1, -(2**31)]])),
    "u8": (tfds.Tensor(shape=(2, 2), dtype=np.uint8), np.arange(12, dtype=np.uint8).reshape(T, 2, 2)),
    "u64": (tfds.Tensor(shape=(1,), dtype=np.uint64), np.array([[1], [2], [2**63 - 1]], np.uint64)),
    "zlib": (tfds.Tensor(shape=(7,), dtype=np.float32, encoding="zlib"), np.float32(np.arange(21)).reshape(T, 7)),
    "bytes": (tfds.Tensor(shape=(2, 3), dtype=np.float64, encoding="bytes"), np.arange(18.0).reshape(T, 2, 3)),
    "zlib_flag": (tfds.Tensor(shape=(2,), dtype=np.bool_, encoding="zlib"), np.array([[1, 0], [0, 1], [1, 1]], bool)),
    "text": (tfds.Text(), ["pick", "", "Käse 🧀"]),
    "label": (tfds.ClassLabel(num_classes=5), [0, 4, 2]),
    "nested": (tfds.FeaturesDict({"deep": tfds.Scalar(np.int64)}), {"deep": np.int64([5, 6, 7])}),
}
RAGGED = {
    "ragged": (tfds.Sequence(tfds.Scalar(np.int32)), [[1, 2], [], [3]]),
    "words": (tfds.Sequence(tfds.Text()), [["a"], ["b", "c"], []]),
}


def make(step: dict[str, Any], **metadata: Any) -> tuple[Any, bytes]:
    features = tfds.FeaturesDict(
        {
            "steps": tfds.Dataset({"is_first": np.bool_, **{k: f for k, (f, _) in step.items()}}),
            "success": np.bool_,
            "episode_metadata": {"file_path": tfds.Text()},
        }
    )
    steps = {"is_first": np.arange(T) == 0, **{k: v for k, (_, v) in step.items()}}
    episode = {"steps": steps, "success": True, "episode_metadata": {"file_path": "a/b"}, **metadata}
    return features, encode_example(flatten_episode(features, episode))


def flat(key: str, value: Any) -> Any:
    for part in key.split("/"):
        value = value[part]
    return value


@pytest.mark.parametrize("key", ["nested/deep" if k == "nested" else k for k in STEP])
def test_each_encoding_reads_as_tfds_reads_it(key: str) -> None:
    features, data = make(STEP)
    read = RecordReader(features, [key]).read(memoryview(data), 0, len(data))
    theirs = list(features.deserialize_example_np(data)["steps"])
    array = read.steps[key]
    assert read.num_steps == T == len(array)
    for ours, step in zip(array, theirs, strict=True):
        expected = flat(key, step)
        assert np.array_equal(np.asarray(ours), np.asarray(expected))
    if array.dtype != object:
        assert array.dtype == np.asarray(flat(key, theirs[0])).dtype


def test_uint64_comes_back_from_the_bits_that_tfds_stores() -> None:
    features, data = make({"u64": (STEP["u64"][0], np.array([[1], [2**63], [2**64 - 1]], np.uint64))})
    read = RecordReader(features, ["u64"]).read(memoryview(data), 0, len(data))
    assert read.steps["u64"].ravel().tolist() == [1, 2**63, 2**64 - 1]


@pytest.mark.parametrize("key", RAGGED)
def test_ragged_features_go_through_tfds(key: str) -> None:
    features, data = make({**STEP, **RAGGED})
    rows = RecordReader(features, [key, "f32"]).read(memoryview(data), 0, len(data)).steps[key]
    expected = RAGGED[key][1]
    assert [[v.decode() if isinstance(v, bytes) else int(v) for v in row] for row in rows] == expected


def test_metadata_and_cameras() -> None:
    image = tfds.Image(shape=(8, 8, 3), encoding_format="png")
    pixels = np.random.default_rng(0).integers(0, 255, (T, 8, 8, 3), np.uint8)
    features, data = make({"observation": (tfds.FeaturesDict({"cam": image}), {"cam": pixels})})
    for name in ("cam", "observation/cam"):  # a card may leave `observation/` out
        reader = RecordReader(features, [], [name], ["success", "episode_metadata/file_path"])
        episode = reader.read(memoryview(data), 0, len(data))
        assert episode.num_steps == T
        assert episode.metadata == {"success": True, "episode_metadata/file_path": b"a/b"}
        span = episode.cameras[name]
        assert b"PNG" in data[span.offset : span.offset + span.length]


def test_a_key_missing_from_features_json_suggests_the_closest() -> None:
    features, _ = make(STEP)
    with pytest.raises(DataError, match=r"no feature 'f3'. Did you mean 'f32'"):
        RecordReader(features, ["f3"])
    with pytest.raises(DataError, match="is not an image"):
        RecordReader(features, [], ["f32"])
    with pytest.raises(DataError, match="does not describe an RLDS data set"):
        leaves(tfds.FeaturesDict({"x": np.int32}))


@pytest.mark.parametrize(
    ("wire", "message"),
    [
        ({"steps/f32": np.float32([1, 2, 3])}, "'steps/f32' has 3 numbers, not a multiple of 2"),
        ({"steps/f32": np.int64([1, 2])}, "'steps/f32' has int64 where features.json lists float32"),
        ({"steps/f32": [b"x"]}, "'steps/f32' has bytes"),
        ({"steps/text": np.float32([1])}, "'steps/text' has numbers where features.json lists text"),
        ({"steps/zlib": [b"not zlib"]}, "'steps/zlib': "),
        ({"steps/bytes": [b"abc"]}, "'steps/bytes': 3 bytes are not 1 tensors"),
        ({"steps/f32": np.float32([1, 2]), "steps/scalar": np.float32([1, 2])}, r"different numbers of steps \(f32: 1"),
    ],
)
def test_records_that_do_not_match_features_json_are_named(wire: dict[str, Any], message: str) -> None:
    features, _ = make(STEP)
    data = encode_example(wire)
    keys = [key.removeprefix("steps/") for key in wire]
    with pytest.raises(DataError, match=message):
        RecordReader(features, keys).read(memoryview(data), 0, len(data))


def test_an_empty_episode_has_no_steps() -> None:
    features, _ = make(STEP)
    data = encode_example({"steps/f32": np.float32([]), "steps/is_first": np.int64([])})
    episode = RecordReader(features, ["f32", "text"]).read(memoryview(data), 0, len(data))
    assert episode.num_steps == 0
    assert episode.steps["f32"].shape == (0, 2)


def test_the_real_bridge_shard_reads_as_tfds_reads_it(shared: Path) -> None:
    from oxe_curate.rlds import tfrecord
    from oxe_curate.rlds.dataset import find
    from oxe_curate.storage import Folder

    (dataset,) = find(Folder.of(shared / "data/rlds"), ["bridge_dataset"])
    keys = ["action", "observation/state", "language_instruction", "is_last", "language_embedding"]
    reader = RecordReader(dataset.features, keys, ["image_0"])
    shard = memoryview(dataset.source.read_bytes(dataset.shards(["train"])[0].path))
    for offset, length in list(tfrecord.records(shard))[::8]:
        tfrecord.check_data(shard, offset, length)
        ours = reader.read(shard, offset, length)
        theirs = list(dataset.features.deserialize_example_np(bytes(shard[offset : offset + length]))["steps"])
        assert ours.num_steps == len(theirs) == 10
        for key in keys:
            expected = np.array([flat(key, step) for step in theirs], ours.steps[key].dtype)
            assert np.array_equal(ours.steps[key], expected)
