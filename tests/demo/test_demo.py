import json
from dataclasses import replace
from pathlib import Path

import pytest
from tensorflow_datasets.core import features as tfds

from oxe_curate import demo
from oxe_curate.config import parse_yaml
from oxe_curate.demo.structure import _expand, features_json
from oxe_curate.errors import StorageError
from tests import ROOT

NAMES = [dataset.name for dataset in demo.DATASETS]


@pytest.fixture
def small(monkeypatch):
    """The demo with one or two episodes per split."""
    datasets = [replace(d, splits={s: 1 + (s == "train") for s in d.splits}) for d in demo.DATASETS[:2]]
    monkeypatch.setattr(demo, "DATASETS", tuple(datasets))


def test_the_demo_is_reproducible_and_silent(small, tmp_path, capfd):
    first, second = (demo.write_demo(tmp_path / name) for name in ("a", "b"))
    assert [(d.name, d.version, d.splits) for d in first] == [
        ("bridge_dataset", "1.0.0", {"train": (1, 1), "val": (1,)}),
        ("fractal20220817_data", "0.1.0", {"train": (1, 1)}),
    ]
    for one, other in zip(first, second, strict=True):
        names = sorted(path.name for path in one.path.iterdir())
        assert names == sorted(path.name for path in other.path.iterdir())
        assert all((one.path / n).read_bytes() == (other.path / n).read_bytes() for n in names)
    assert capfd.readouterr().err == ""


def test_the_demo_replaces_only_its_own_folders(small, tmp_path):
    folder = demo.write_demo(tmp_path)[0].path
    before = (folder / "bridge_dataset-train.tfrecord-00000-of-00002").read_bytes()
    demo.write_demo(tmp_path, seed=1)
    assert (folder / "bridge_dataset-train.tfrecord-00000-of-00002").read_bytes() != before
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps(info | {"moduleName": "bridge_dataset"}))
    with pytest.raises(StorageError, match="that oxe-curate did not generate"):
        demo.write_demo(tmp_path)


def test_spoiled_episodes_are_in_the_train_split():
    for dataset in demo.DATASETS:
        assert all(index < dataset.splits["train"] for index in dataset.spoiled)
    assert sum(len(dataset.spoiled) for dataset in demo.DATASETS) == 3


def test_the_mixture_is_the_same_in_the_repository_and_in_the_package():
    published = ROOT / "mixtures/demo.yaml"
    assert demo.mixture_text() == published.read_text()
    mixture = parse_yaml(demo.mixture_text(), "demo.yaml")
    assert [d["name"] for d in mixture["datasets"]] == NAMES[:3]
    assert [d["weight"] for d in mixture["datasets"]] == [1.0, 0.54087122203, 2.0]


@pytest.mark.parametrize("name", NAMES)
def test_structures_equal_those_of_the_releases(name, shared: Path):
    known = tfds.FeatureConnector.from_json(json.loads((shared / f"oxe/features/{name}.json").read_text()))
    ours = tfds.FeatureConnector.from_json(features_json(name))
    assert leaves(ours) == leaves(known)


def leaves(feature, path: str = "") -> dict:
    """Path -> class, type, shape; Bridge's frames are 64 px wide in the public debugging copy, 256 in the release."""
    if isinstance(feature, tfds.FeaturesDict):
        return {k: v for key, child in feature.items() for k, v in leaves(child, f"{path}/{key}").items()}
    if isinstance(feature, tfds.Dataset):
        return leaves(feature.feature, f"{path}/*")
    shape = (256, 256, 3) if feature.shape == (64, 64, 3) else feature.shape
    return {path: (type(feature), str(feature.np_dtype), shape, getattr(feature, "encoding_format", None))}


def test_an_invalid_notation_is_an_error():
    with pytest.raises(ValueError, match="invalid feature notation"):
        _expand({"action": "float32<7>"})
