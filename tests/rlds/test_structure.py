"""features.json with features that cannot be read: the others are read, and these are refused by name if asked for."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorflow_datasets.core import features as tfds

from oxe_curate.errors import DataError
from oxe_curate.filter.pipeline import FilterOptions, run_filter
from oxe_curate.inspection.draft import draft_card
from oxe_curate.inspection.report import inspect_dataset
from oxe_curate.rlds.encode import encode_example, flatten_episode
from oxe_curate.rlds.leaf import camera_problem, leaves
from oxe_curate.rlds.reader import RecordReader
from oxe_curate.rlds.structure import parse_features
from tests import bridge

TFDS = "tensorflow_datasets.core.features"
UNKNOWN = {"pythonClassName": "lab.features.PointCloud", "tensor": {"shape": {"dimensions": ["3"]}, "dtype": "float32"}}
NEWER = {"pythonClassName": f"{TFDS}.hologram_feature.Hologram", "jsonFeature": {"json": "{}"}}
LEGACY = {"type": "lab.features.PointCloud", "content": {"points": 3}}
AUDIO = {"pythonClassName": f"{TFDS}.audio_feature.Audio", "audio": {"dtype": "int64", "shape": {"dimensions": ["-1"]}}}
VIDEO = {"pythonClassName": f"{TFDS}.video_feature.Video", "video": {"shape": {"dimensions": ["-1", "4", "4", "3"]}}}
ODD = {"unknown": UNKNOWN, "newer": NEWER, "legacy": LEGACY, "audio": AUDIO, "video": VIDEO}
DTYPES = {"bf16": "bfloat16", "f8": "float8_e4m3fn", "quantised": "qint8", "complex": "complex64"}


def tensor(dtype: str, encoding: str = "none", shape: tuple[int, ...] = (2,)) -> dict[str, Any]:
    content = {"shape": {"dimensions": [str(d) for d in shape]}, "dtype": dtype, "encoding": encoding}
    return {"pythonClassName": f"{TFDS}.tensor_feature.Tensor", "tensor": content}


KNOWN: dict[str, Any] = {
    "boxes": tfds.Sequence({"box": tfds.BBoxFeature(), "label": tfds.ClassLabel(num_classes=2)}),
    "frames": tfds.Sequence(tfds.Image(shape=(4, 4, 3))),
    "inner": tfds.Dataset({"x": np.int32}),
    "open": tfds.Tensor(shape=(None,), dtype=np.float32),
    "float_image": tfds.Image(shape=(4, 4, 1), dtype=np.float32),
    "mask": tfds.LabeledImage(labels=3, shape=(4, 4, 1)),
    "box": tfds.BBoxFeature(),
    "said": tfds.Translation(languages=["en", "de"]),
    "optional": tfds.Tensor(shape=(2,), dtype=np.float32, optional=True),
    "fixed": tfds.Sequence(np.float32, length=3),
    "several": tfds.Tensor(shape=(2,), dtype=np.str_),
}


def features_json() -> dict[str, Any]:
    """A features.json as tfds writes it, with more below the steps."""
    known = tfds.FeaturesDict(
        {"steps": tfds.Dataset({"action": tfds.Tensor(shape=(2,), dtype=np.float32), **KNOWN}), "success": np.bool_}
    )
    node: dict[str, Any] = json.loads(json.dumps(known.to_json()))
    below = node["content"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]
    below |= ODD | {k: tensor(d, "bytes") for k, d in DTYPES.items()}
    node["content"]["features"]["unknown_metadata"] = UNKNOWN
    return node


def test_a_feature_that_cannot_be_read_hides_no_other() -> None:
    features = parse_features(features_json())
    steps, other = leaves(features)
    assert set(steps) == {"action", *ODD, *DTYPES, *KNOWN, "said/en", "said/de"} - {"said"}
    assert set(other) == {"success", "unknown_metadata"}
    data = encode_example(
        {"steps/action": np.float32([1, 2, 3, 4]), "steps/unknown": [b"?", b"?"], "success": np.array([1])}
    )
    episode = RecordReader(features, ["action"], metadata=["success"]).read(memoryview(data), 0, len(data))
    assert episode.steps["action"].tolist() == [[1, 2], [3, 4]]
    assert episode.metadata == {"success": True}


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("unknown", "has the class lab.features.PointCloud, which tensorflow_datasets does not have"),
        ("legacy", "has the class lab.features.PointCloud"),
        ("newer", "is a Hologram, expected numbers, texts or an Image per step"),
        ("f8", "has the dtype float8_e4m3fn, expected numbers, booleans or texts of a type that numpy has"),
        ("quantised", "has the dtype qint8"),
        ("complex", "has the dtype complex64"),
        ("audio", "is an Audio, expected numbers, texts or an Image per step"),
        ("video", "is a Video"),
        ("boxes", "is a Sequence of features"),
        ("frames", "is a Sequence of images"),
        ("inner", "is a Dataset"),
        ("open", r"has the shape \(None,\) in features.json, for which tensorflow_datasets stores no lengths"),
    ],
)
def test_a_feature_that_cannot_be_read_is_refused_by_name(key: str, why: str) -> None:
    features = parse_features(features_json())
    with pytest.raises(DataError, match=f"^x: the feature '{key}' {why}"):
        RecordReader(features, [key], where="x")
    with pytest.raises(DataError, match=f"^x: the feature '{key}' {why}"):
        RecordReader(features, [], [key], where="x")


def test_a_camera_is_an_image_of_8_or_16_bits() -> None:
    steps, _ = leaves(parse_features(features_json()))
    assert "has the dtype float32 in features.json, expected uint8 or uint16" in camera_problem(steps["float_image"])
    assert "is not an image: features.json has float32 of shape (2,)" in camera_problem(steps["action"])
    assert camera_problem(steps["mask"]) == ""


def test_bfloat16_is_read_as_the_float32_of_the_same_value() -> None:
    for encoding in ("bytes", "none"):
        node = features_json()
        below = node["content"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]
        below["bf16"] = tensor("bfloat16", encoding)
        values = np.float32([1.5, -3.0, 0.1, 1e30])
        bits = (values.view(np.uint32) >> 16).astype(np.uint16)
        rounded = (bits.astype(np.uint32) << 16).view(np.float32)
        stored: Any = rounded if encoding == "none" else [bits[:2].tobytes(), bits[2:].tobytes()]
        data = encode_example({"steps/bf16": stored})
        read = RecordReader(parse_features(node), ["bf16"]).read(memoryview(data), 0, len(data)).steps["bf16"]
        assert read.dtype == np.float32
        assert read.tolist() == rounded.reshape(2, 2).tolist()


def test_several_values_per_step() -> None:
    step = {"several": tfds.Tensor(shape=(2,), dtype=np.str_), "fixed": tfds.Sequence(np.float32, length=3)}
    features = tfds.FeaturesDict({"steps": tfds.Dataset({**step, "other": tfds.Sequence(np.int32)})})
    steps = {"several": [["a", "b"], ["c", ""]], "fixed": [[1, 2, 3], [4, 5, 6]], "other": [[1], []]}
    data = encode_example(flatten_episode(features, {"steps": steps}))
    read = RecordReader(features, list(step)).read(memoryview(data), 0, len(data)).steps
    assert read["several"].tolist() == [[b"a", b"b"], [b"c", b""]]
    assert read["fixed"].dtype == np.float32
    assert read["fixed"].tolist() == steps["fixed"]


def test_a_data_set_with_such_features_is_inspected_and_filtered(tmp_path: Path) -> None:
    bridge.write(tmp_path / "in", episodes={"train": [bridge.episode(i) for i in range(2)]})
    file = next((tmp_path / "in").glob("*/*/features.json"))
    node = json.loads(file.read_text())
    content = node["content"] if "content" in node else node["featuresDict"]
    below = content["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]
    below |= ODD | {"language_embedding": tensor("qint8")}
    file.write_text(json.dumps(node))
    report = inspect_dataset(file.parent)
    assert {*ODD, "language_embedding"} <= set(report.not_read)
    assert report.not_read["unknown"].startswith("has the class lab.features.PointCloud")
    draft_card(report)
    result = run_filter(tmp_path / "in", tmp_path / "out", FilterOptions(progress=False, workers=1))
    assert result.summaries["bridge_dataset"].seen == 2


def test_steps_of_an_unknown_class_are_an_error() -> None:
    node = features_json()
    node["content"]["features"]["steps"] = UNKNOWN
    with pytest.raises(DataError, match=r"the feature 'steps' has the class lab\.features\.PointCloud"):
        leaves(parse_features(node))


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ([], "expected a JSON object, got list"),
        ({}, "KeyError: 'pythonClassName'"),
        (tensor("float32"), "expected a FeaturesDict at the top level, which is a Tensor"),
        (UNKNOWN, "expected a FeaturesDict at the top level, which has the class lab.features.PointCloud"),
    ],
)
def test_another_json_is_an_error(node: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_features(node)
