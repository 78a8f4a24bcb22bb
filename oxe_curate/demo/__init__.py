"""Small synthetic data sets with the structure of four Open X-Embodiment ones, to try everything without a download."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import NoReturn

import numpy as np
from tqdm import tqdm

from oxe_curate.demo import episodes
from oxe_curate.demo.structure import features_json
from oxe_curate.rlds.encode import EpisodeValues
from oxe_curate.rlds.synthetic import DatasetFolder, write_dataset

__all__ = ["DATASETS", "DemoDataset", "mixture_text", "write_demo"]


@dataclass(frozen=True)
class DemoDataset:
    """One of the demo's data sets.

    Attributes:
        name, version: of the release with the same structure.
        make: (index, rng, **options) -> episode.
        splits: split -> number of episodes.
        shards: of each split.
        spoiled: episode of the train split -> options of `make` that make filter drop it.
    """

    name: str
    version: str
    make: Callable[..., EpisodeValues]
    splits: Mapping[str, int]
    shards: int
    spoiled: Mapping[int, Mapping[str, object]] = field(default_factory=dict)


DATASETS = (
    DemoDataset(
        "bridge_dataset",
        "1.0.0",
        episodes.bridge,
        {"train": 24, "val": 4},
        shards=3,
        spoiled={9: {"language": False}, 16: {"num_steps": 2}},
    ),
    DemoDataset(
        "fractal20220817_data", "0.1.0", episodes.fractal, {"train": 16}, shards=2, spoiled={6: {"broken": True}}
    ),
    DemoDataset("jaco_play", "0.1.0", episodes.jaco, {"train": 12}, shards=2),
    DemoDataset("nyu_door_opening_surprising_effectiveness", "0.1.0", episodes.door, {"train": 6}, shards=2),
)
"""filter drops the last one: its only camera is on the hand."""


def write_demo(root: Path, seed: int = 0, progress: bool = True) -> list[DatasetFolder]:
    """Write the demo's data sets to `root`, as TFDS would.

    Folders that an earlier call wrote are replaced; others are never changed.

    Args:
        root: created if missing.
        seed: equal seeds give equal bytes.
        progress: whether to show a progress bar on a terminal.

    Raises:
        StorageError: a folder contains other data, or cannot be written.
    """
    total = sum(sum(dataset.splits.values()) for dataset in DATASETS)
    with tqdm(total=total, desc="rendering", unit=" episodes", leave=False, disable=None if progress else True) as bar:
        return [
            write_dataset(
                root,
                dataset.name,
                dataset.version,
                features_json(dataset.name),
                {split: _draw(dataset, split, seed, bar) for split in dataset.splits},
                shards=dataset.shards,
                replace=True,
            )
            for dataset in DATASETS
        ]


def _draw(dataset: DemoDataset, split: str, seed: int, bar: tqdm[NoReturn]) -> Iterator[EpisodeValues]:
    stream = [seed, DATASETS.index(dataset), list(dataset.splits).index(split)]
    for index in range(dataset.splits[split]):
        options = dataset.spoiled.get(index, {}) if split == "train" else {}
        yield dataset.make(index, np.random.default_rng([*stream, index]), **options)
        bar.update()


def mixture_text() -> str:
    """The demo's mixture as YAML, the same as mixtures/demo.yaml in the repository."""
    return (files("oxe_curate.demo") / "demo.yaml").read_text()
