"""Records are compared with protobuf's parser, TFDS's own serialiser and deserialiser, and a real shard."""

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_datasets.core import features as tfds
from tensorflow_datasets.proto import tf_example_pb2

from oxe_curate.errors import DataError
from oxe_curate.rlds.encode import encode_example, encode_image, flatten_episode
from oxe_curate.rlds.tfrecord import frame_record


def parse(record: bytes) -> dict:
    """Flat features as protobuf reads them: key -> (kind, values)."""
    found = {}
    for key, feature in tf_example_pb2.Example.FromString(record).features.feature.items():
        kind = feature.WhichOneof("kind")
        found[key] = (kind, list(getattr(feature, kind).value))
    return found


def test_example_follows_the_wire_format():
    assert encode_example({"a": np.array([1, 300])}) == bytes.fromhex(
        "0a0e"  # Features
        "0a0c"  # map entry
        "0a0161"  # key "a"
        "1207"  # Feature
        "1a05"  # Int64List
        "0a0301ac02"  # packed: 1, 300
    )


def test_keys_keep_the_order_of_the_mapping():
    a, b = np.zeros(1), np.ones(1)
    assert encode_example({"a": a, "b": b}) != encode_example({"b": b, "a": a})


numbers = st.one_of(
    st.lists(st.integers(-(2**63), 2**63 - 1)).map(lambda v: np.array(v, np.int64)),
    st.lists(st.floats(width=32, allow_nan=False)).map(lambda v: np.array(v, np.float32)),
    st.lists(st.binary(max_size=300)),
)


@settings(deadline=None)
@given(
    features=st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1, max_size=4), numbers, max_size=4),
    packed=st.booleans(),
    value_first=st.booleans(),
    runs=st.integers(1, 3),
)
def test_protobuf_reads_every_form(features, packed, value_first, runs):
    found = parse(encode_example(features, packed=packed, value_first=value_first, runs=runs))
    assert {key: values for key, (_, values) in found.items()} == {k: list(v) for k, v in features.items()}


def test_numbers_become_the_three_kinds_that_an_example_knows():
    found = parse(
        encode_example(
            {
                "double": np.array([0.1], np.float64),
                "flag": np.array([True, False]),
                "big": np.array([2**64 - 1], np.uint64),
                "none": [],
            }
        )
    )
    assert found == {
        "double": ("float_list", [np.float32(0.1)]),
        "flag": ("int64_list", [1, 0]),
        "big": ("int64_list", [-1]),
        "none": ("bytes_list", []),
    }


@pytest.mark.parametrize("value", [["text"], np.array(["text"]), np.array([1j])])
def test_other_values_are_refused(value):
    with pytest.raises(TypeError, match="key"):
        encode_example({"key": value})


def test_a_frame_is_length_data_and_their_masked_checksums():
    def masked(crc: int) -> int:
        return ((crc >> 15 | (crc & 0x7FFF) << 17) + 0xA282EAD8) % 2**32

    length = struct.pack("<Q", 9)
    check = 0xE3069283  # the CRC-32C that RFC 3720 and others give for "123456789"
    assert frame_record(b"123456789") == b"".join(
        [length, struct.pack("<I", masked(crc32c(length))), b"123456789", struct.pack("<I", masked(check))]
    )


def test_frames_equal_those_of_a_real_shard(shared: Path):
    folder = shared / "data/rlds/bridge_dataset/1.0.0"
    data = (folder / "bridge_dataset-train.tfrecord-00000-of-00001").read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    assert frame_record(data[12 : 12 + length]) == data[: 16 + length]


# --- episodes ---


def features(**steps):
    return tfds.FeaturesDict({"steps": tfds.Dataset(steps), "episode_metadata": {"file_path": tfds.Text()}})


def episode(**steps):
    return {"steps": steps, "episode_metadata": {"file_path": "a.hdf5"}}


def test_steps_are_flattened_with_time_first():
    flat = flatten_episode(
        features(action=tfds.Tensor(shape=(2,), dtype=np.float64), is_first=np.bool_, text=tfds.Text()),
        episode(action=[[1.0, 2.0], [3.0, 4.0]], is_first=[True, False], text=["é", b"x"]),
    )
    assert flat["steps/action"].tolist() == [1, 2, 3, 4]
    assert flat["steps/is_first"].tolist() == [True, False]
    assert flat["steps/text"] == ["é".encode(), b"x"]
    assert flat["episode_metadata/file_path"] == [b"a.hdf5"]


def test_equals_the_serializer_of_tfds():
    structure = features(
        double=tfds.Tensor(shape=(2,), dtype=np.float64),
        matrix=tfds.Tensor(shape=(2, 2), dtype=np.float32, encoding="zlib"),
        raw=tfds.Tensor(shape=(3,), dtype=np.uint8, encoding="bytes"),
        byte=tfds.Scalar(dtype=np.uint8),
        label=tfds.ClassLabel(num_classes=3),
        image=tfds.Image(shape=(4, 4, 3), encoding_format="jpeg"),
        nested={"key/with/slash": tfds.Tensor(shape=(1,), dtype=np.int32)},
    )
    rng = np.random.default_rng(0)
    image = encode_image(rng.integers(0, 256, (4, 4, 3), np.uint8), "jpeg")
    columns = {
        "double": rng.normal(size=(3, 2)),
        "matrix": rng.normal(size=(3, 2, 2)).astype(np.float32),
        "raw": rng.integers(0, 256, (3, 3), np.uint8),
        "byte": np.array([0, 127, 255], np.uint8),
        "label": np.array([0, 1, 2]),
        "image": [image] * 3,
        "nested": {"key/with/slash": np.array([[-1], [0], [2**31 - 1]], np.int32)},
    }
    record = encode_example(flatten_episode(structure, episode(**columns)))
    assert parse(record) == parse(structure.serialize_example(episode(**columns)))
    step = structure.deserialize_example_np(record)["steps"][2]
    np.testing.assert_array_equal(step["matrix"], columns["matrix"][2])
    np.testing.assert_array_equal(step["raw"], columns["raw"][2])


def test_sequences_inside_a_step_become_ragged_fields():
    structure = features(boxes=tfds.Sequence(np.int64), words=tfds.Sequence({"word": tfds.Text()}))
    flat = flatten_episode(
        structure,
        episode(boxes=[[1, 2], [], [3]], words={"word": [["a"], ["b", "c"], []]}),
    )
    assert flat["steps/boxes/ragged_flat_values"].tolist() == [1, 2, 3]
    assert flat["steps/boxes/ragged_row_lengths_0"].tolist() == [2, 0, 1]
    assert flat["steps/words/word/ragged_flat_values"] == [b"a", b"b", b"c"]
    assert flat["steps/words/word/ragged_row_lengths_0"].tolist() == [1, 2, 0]
    steps = structure.deserialize_example_np(encode_example(flat))["steps"]
    assert [list(step["boxes"]) for step in steps] == [[1, 2], [], [3]]


def test_tensors_of_unknown_shape_carry_it():
    structure = features(image=tfds.Tensor(shape=(None, None), dtype=np.uint8, encoding="zlib"))
    images = [np.zeros((2, 3), np.uint8), np.ones((1, 4), np.uint8)]
    flat = flatten_episode(structure, episode(image=images))
    assert flat["steps/image/shape"].tolist() == [2, 3, 1, 4]
    assert [zlib.decompress(v) for v in flat["steps/image/value"]] == [p.tobytes() for p in images]
    assert parse(encode_example(flat)) == parse(structure.serialize_example(episode(image=images)))


@pytest.mark.parametrize(
    ("shape", "dtype", "encoding"),
    [
        ((5, 4, 3), np.uint8, "png"),
        ((5, 4, 1), np.uint8, None),
        ((5, 4, 4), np.uint8, "png"),
        ((5, 4, 1), np.float32, "png"),
    ],
)
def test_tfds_decodes_lossless_images(shape, dtype, encoding):
    structure = features(image=tfds.Image(shape=shape, dtype=dtype, encoding_format=encoding))
    pixels = np.random.default_rng(0).uniform(0, 200, (2, *shape)).astype(dtype)
    record = encode_example(flatten_episode(structure, episode(image=pixels)))
    steps = structure.deserialize_example_np(record)["steps"]
    np.testing.assert_array_equal(np.stack([np.asarray(s["image"]).reshape(shape) for s in steps]), pixels)


def test_jpeg_keeps_its_channels():
    for channels in (1, 3):
        structure = features(image=tfds.Image(shape=(8, 8, channels), encoding_format="jpeg"))
        pixels = np.full((1, 8, 8, channels), 90, np.uint8)
        flat = flatten_episode(structure, episode(image=pixels))
        assert flat["steps/image"][0].startswith(b"\xff\xd8\xff")
        decoded = structure.deserialize_example_np(encode_example(flat))["steps"][0]["image"]
        np.testing.assert_allclose(decoded, pixels[0], atol=2)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ({}, "steps/action: the key is in features.json but not in the episode"),
        ({"action": np.zeros((2, 7)), "actoin": []}, "steps/actoin: .* Did you mean 'action'"),
        ({"action": np.zeros((2, 6))}, r"steps/action: .* shape \(\?, 7\) as in features.json, got \(2, 6\)"),
        ({"action": [["a"] * 7]}, "steps/action: .*expected float32"),
    ],
)
def test_an_episode_that_does_not_match_names_the_key(steps, message):
    with pytest.raises(DataError, match=message):
        flatten_episode(features(action=tfds.Tensor(shape=(7,), dtype=np.float32)), episode(**steps))


def test_integers_must_fit():
    structure = features(byte=tfds.Scalar(dtype=np.uint8))
    assert flatten_episode(structure, episode(byte=[0, 255]))["steps/byte"].tolist() == [0, 255]
    for wrong in ([256], [-1], [0.5]):
        with pytest.raises(DataError, match=r"steps/byte: .*expected uint8"):
            flatten_episode(structure, episode(byte=wrong))


def test_a_real_episode_survives_the_round_trip(shared: Path):
    folder = shared / "data/rlds/bridge_dataset/1.0.0"
    structure = tfds.FeatureConnector.from_json(json.loads((folder / "features.json").read_text()))
    data = (folder / "bridge_dataset-train.tfrecord-00000-of-00001").read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    record = data[12 : 12 + length]
    known = structure.get_serialized_info()
    nested: dict = {}
    for key, (kind, values) in parse(record).items():
        *parents, leaf = key.split("/")
        node, info = nested, known
        for parent in parents:
            node, info = node.setdefault(parent, {}), info[parent]
        info = info[leaf]
        if kind == "bytes_list":
            node[leaf] = values if info.shape else values[0]
        else:
            shape = [-1 if d is None else d for d in info.shape]
            node[leaf] = np.array(values).astype(info.np_dtype).reshape(shape)
    assert parse(encode_example(flatten_episode(structure, nested))) == parse(record)
