from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from oxe_curate.errors import ConfigError
from oxe_curate.index.index_json import DatasetEntry, Summary
from oxe_curate.index.store import Index
from oxe_curate.mixture.spec import Mixture, MixtureEntry, mixture_yaml, read_mixture, resolve
from oxe_curate.storage import Folder
from oxe_curate.tokenize.pipeline import TokenizeOptions

WHOLE = """\
name: bridge_rt_1
seed: 3
datasets:
  - name: bridge_dataset      # comments survive the editor
    weight: 1.0
  - {name: fractal20220817_data, weight: 0.54087122203, splits: [train, test]}
window: 2
stride: 2
chunk: 8
image: {cameras: [primary, wrist], size: 224, quality: 90}
bounds: {low: 0.01, high: 0.99, over: all}
bins: uniform
validation: 1e-2
"""


def read(tmp_path: Path, text: str) -> Mixture:
    (tmp_path / "m.yaml").write_text(text)
    return read_mixture(tmp_path / "m.yaml")


def test_every_key_is_read_and_written_back(tmp_path: Path) -> None:
    mixture = read(tmp_path, WHOLE)
    assert [(e.name, e.weight) for e in mixture.datasets] == [
        ("bridge_dataset", 1.0),
        ("fractal20220817_data", 0.54087122203),
    ]
    assert (mixture.window, mixture.chunk, mixture.image.size, mixture.bounds.over, mixture.validation) == (
        2,
        8,
        224,
        "all",
        0.01,
    )
    assert read(tmp_path, mixture_yaml(mixture)) == mixture


def test_defaults(tmp_path: Path) -> None:
    mixture = read(tmp_path, "name: m\ndatasets: [{name: kuka, weight: 1}]")
    assert (mixture.window, mixture.stride, mixture.chunk, mixture.bins, mixture.image.cameras) == (
        1,
        1,
        1,
        "openvla",
        ("primary",),
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seed: 3", "sede: 3", "m.yaml: unknown key 'sede'. Did you mean 'seed'?"),
        ("weight: 1.0", "wieght: 1.0", "unknown key 'datasets.0.wieght'. Did you mean 'weight'?"),
        ("weight: 1.0", "weight: 0", "datasets.0.weight: input should be greater than 0, got 0"),
        ("weight: 1.0", "weight: -2", "datasets.0.weight: input should be greater than 0, got -2"),
        ("weight: 1.0", "weight: .inf", "m.yaml:5: expected a finite number, got '.inf'"),
        ("weight: 1.0", "weight: one", "datasets.0.weight: input should be a valid number"),
        ("fractal20220817_data", "bridge_dataset", "duplicate data set 'bridge_dataset'; merge its entries"),
        ("bins: uniform", "bins: uniformly", "bins: unknown value 'uniformly'. Did you mean 'uniform'?"),
        ("[primary, wrist]", "[primary, wrsit]", "image.cameras.1: unknown value 'wrsit'. Did you mean 'wrist'?"),
        ("[primary, wrist]", "[]", "image.cameras: expected at least one camera"),
        ("low: 0.01", "low: 0.999", "bounds: low 0.999 must be below high 0.99"),
        ("seed: 3", "seed: 3\nseed: 4", "m.yaml:3: duplicate key 'seed'"),
        ("stride: 2", "stride: 3", "stride 3 is larger than window 2"),
        ("window: 2", "window: 0", "window: input should be greater than or equal to 1"),
        ("name: bridge_rt_1", "", "missing key 'name'"),
        ("chunk: 8", "chunk: [8", "m.yaml:"),
        ("validation: 1e-2", "validation: 1.5", "validation: input should be less than 1"),
    ],
)
def test_an_error_names_the_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in WHOLE
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, WHOLE.replace(old, new, 1))
    assert message in str(caught.value)


def test_an_empty_mixture_and_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="datasets is empty"):
        read(tmp_path, "name: m\ndatasets: []")
    with pytest.raises(ConfigError, match=r"n\.yaml: file not found. Did you mean 'm\.yaml'"):
        read_mixture(tmp_path / "n.yaml")


def index(**datasets: Any) -> Index:
    facts = {"version": "1.0.0", "card": None, "recipe": "openvla", "verdict": "pass", "frames": "span", "seconds": 0.0}
    entries = {}
    for name, changes in datasets.items():
        summary = Summary(**{"kept": 3, **{key: changes[key] for key in ("kept", "dropped") if key in changes}})
        own = {key: value for key, value in changes.items() if key not in ("kept", "dropped")}
        entries[name] = DatasetEntry(**{**facts, "splits": ("train", "val"), **own}, summary=summary)
    return Index(Folder("/i"), Folder("/s"), entries, {})


BRIDGE = {"card": "bridge_orig"}


def mixture(*entries: Any, **more: Any) -> Mixture:
    from oxe_curate import config

    listed = [e if isinstance(e, dict) else {"name": e, "weight": 1} for e in entries]
    return config.build(Mixture, {"name": "m", "datasets": listed, **more}, "m.yaml")


@pytest.mark.parametrize("name", ["bridge_dataset", "bridge_orig", "bridge_v2"])
def test_a_data_set_is_found_by_any_of_its_names(name: str) -> None:
    (source,) = resolve(mixture(name), index(bridge_dataset=BRIDGE), "m.yaml")
    assert (source.entry.name, source.dataset, source.bgr) == (name, "bridge_dataset", frozenset())


def test_bgr_comes_from_the_card_or_the_entry() -> None:
    ur5 = {"card": "berkeley_autolab_ur5"}
    entry = {"name": "berkeley_autolab_ur5", "weight": 1}
    image = {"cameras": ["primary", "wrist"]}
    for swap, expected in ((None, {"wrist"}), (True, {"primary", "wrist"}), (False, set())):
        (source,) = resolve(
            mixture({**entry, "swap_channels": swap}, image=image), index(berkeley_autolab_ur5=ur5), "m"
        )
        assert source.bgr == expected


@pytest.mark.parametrize(
    ("chosen", "have", "message"),
    [
        (mixture("bridge_orgi"), {"bridge_dataset": BRIDGE},
         "is not in the index /i. Did you mean 'bridge_orig'? If it is a data set of your own, pass the folder of "
         "your own cards with --cards, or draft one with `oxe-curate inspect FOLDER --out CARD.yaml`."),
        (mixture("kuka"), {"bridge_dataset": BRIDGE}, "'kuka' is not in the index /i. Run filter on it first"),
        (mixture("bridge_orig", "bridge_dataset"), {"bridge_dataset": BRIDGE},
         "are the same data set, bridge_dataset; merge their entries"),
        (mixture("bridge_orig"), {"bridge_dataset": {**BRIDGE, "kept": 0, "dropped": {"no_language": [7, 9]}}},
         "has no kept episode in the index (no_language: 7)"),
        (mixture({"name": "bridge_orig", "weight": 1, "splits": ["tets"]}), {"bridge_dataset": BRIDGE},
         "has no split 'tets'"),
        (mixture({"name": "bridge_orig", "weight": 1, "recipe": "documented"}), {"bridge_dataset": BRIDGE},
         "expected the recipe 'documented', but the index was filtered with 'openvla'"),
        (mixture("bridge_orig", image={"cameras": ["wrist"]}), {"bridge_dataset": BRIDGE},
         "'bridge_orig' has no wrist camera"),
    ],
)  # fmt: skip
def test_an_entry_that_cannot_be_used_is_an_error(chosen: Mixture, have: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(chosen, index(**have), "m.yaml")
    assert message in str(caught.value)
    assert str(caught.value).startswith("m.yaml: ")


def test_defaults_of_a_mixture_are_the_same_in_every_release() -> None:
    assert asdict(Mixture("m", (MixtureEntry("a", 1),))) == {
        "name": "m", "texts": (), "seed": 0, "window": 1, "stride": 1, "chunk": 1, "bins": "openvla",
        "validation": 0.05, "accept": (), "bounds": {"over": "kept", "low": 0.01, "high": 0.99},
        "image": {"cameras": ("primary",), "size": None, "quality": 95, "random_view": True, "copy": True},
        "datasets": (
            {"name": "a", "weight": 1, "recipe": None, "splits": ("train",), "swap_channels": None},
        ),
    }  # fmt: skip
    assert TokenizeOptions().shard_bytes == 268_435_456  # decides how many shards there are, and so each row's place
