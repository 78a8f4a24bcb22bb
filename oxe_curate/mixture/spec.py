"""The mixture YAML: which data sets, how often each step is seen, and the form of a sample. See docs/formats.md."""

from __future__ import annotations

from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from oxe_curate import config, registry
from oxe_curate.errors import ConfigError, did_you_mean
from oxe_curate.index.store import Index
from oxe_curate.registry.card import IndexedRole


@dataclass(frozen=True, config=config.STRICT)
class MixtureEntry:
    """One data set of a mixture.

    Attributes:
        name: a card's name or alias, or the data set's name in the index. Statistics and rows carry this name.
        weight: expected copies of each step; OpenVLA's weights mean exactly this.
        recipe: the recipe that the index must have been filtered with; None: whichever it was.
        splits: source splits that rows are drawn from. Statistics are taken over all that the index holds.
        swap_channels: whether frames are stored as BGR and must be swapped; None: as the card says.
    """

    name: str
    weight: float = Field(gt=0, allow_inf_nan=False)
    recipe: str | None = None
    splits: tuple[str, ...] = ("train",)
    swap_channels: bool | None = None


@dataclass(frozen=True, config=config.STRICT)
class TextColumns:
    """Names of the columns of an image-text source.

    Attributes:
        image: struct<bytes, path> (Hugging Face's `Image`) or binary.
        question, answer: of a question; None: "question" and "answer", where the source has both.
        caption: of an image that nothing is asked about; None: "caption", where the source has it and no answers.
    """

    image: str = "image"
    question: str | None = None
    answer: str | None = None
    caption: str | None = None

    def __post_init__(self) -> None:
        if self.caption is not None and (self.question is not None or self.answer is not None):
            raise ValueError("name a caption, or a question and an answer, not both")


@dataclass(frozen=True, config=config.STRICT)
class TextEntry:
    """Image-text rows to train on beside the robot's.

    Attributes:
        name: rows carry it.
        path: a Parquet file, or a folder of them: local (relative to the mixture file), gs:// or s3://.
        weight: expected copies of each row.
    """

    name: str = Field(min_length=1)
    path: str = Field(min_length=1)
    weight: float = Field(gt=0, allow_inf_nan=False)
    columns: TextColumns = TextColumns()


@dataclass(frozen=True, config=config.STRICT)
class ImageSpec:
    """Which frames a sample holds and how they are stored.

    Attributes:
        cameras: roles, a column image_<role> each.
        size: None passes the source's bytes through; a number resizes to size x size pixels.
        quality: of the JPEG that a resize (or a channel swap) writes.
    """

    cameras: tuple[IndexedRole, ...] = ("primary",)
    size: int | None = Field(default=None, ge=16, le=2048)
    quality: int = Field(default=95, ge=1, le=100)


@dataclass(frozen=True, config=config.STRICT)
class BoundsSpec:
    """How actions are normalised.

    Attributes:
        low, high: quantiles that become -1 and +1.
        over: "kept" episodes, "all" episodes with finite actions, or the path of a dataset_statistics.json.
    """

    low: float = Field(default=0.01, ge=0, lt=1)
    high: float = Field(default=0.99, gt=0, le=1)
    over: str = "kept"


@dataclass(frozen=True, config=config.STRICT)
class Mixture:
    """A mixture as its file says it.

    Attributes:
        texts: image-text sources to train on beside the robot data.
        seed: decides fractional copies and the order of rows.
        window: observations a sample, the last of them the current one.
        stride: a sample is drawn at every so many steps, see `samples.window_ends`.
        chunk: actions from each of the window's steps on.
        bins: "openvla" (256 edges, as the released checkpoints) or "uniform" (256 true intervals).
        validation: share of episodes held out, by hash of the episode id.
    """

    name: str
    datasets: tuple[MixtureEntry, ...]
    texts: tuple[TextEntry, ...] = ()
    seed: int = Field(default=0, ge=0, lt=2**63)
    window: int = Field(default=1, ge=1, le=1024)
    stride: int = Field(default=1, ge=1, le=1024)
    chunk: int = Field(default=1, ge=1, le=1024)
    image: ImageSpec = ImageSpec()
    bounds: BoundsSpec = BoundsSpec()
    bins: Literal["openvla", "uniform"] = "openvla"
    validation: float = Field(default=0.05, ge=0, lt=1)

    def __post_init__(self) -> None:
        if not self.datasets:
            raise ValueError("datasets is empty: name at least one data set with its weight")
        if self.bounds.low >= self.bounds.high:
            raise ValueError(f"bounds: low {self.bounds.low} must be below high {self.bounds.high}")
        if self.stride > self.window:
            raise ValueError(
                f"stride {self.stride} is larger than window {self.window}: steps between two windows would be in "
                "none. Use a stride of at most the window; weights below 1 thin samples out"
            )
        names = [entry.name for entry in self.datasets]
        double = {name for name in names if names.count(name) > 1}
        if double:
            raise ValueError(f"datasets: {sorted(double)[0]!r} stands twice; add its weights up in one entry")
        texts = [entry.name for entry in self.texts]
        if double := {name for name in texts if [*names, *texts].count(name) > 1}:
            raise ValueError(f"texts: {sorted(double)[0]!r} stands twice; give each source a name of its own")
        if len(set(self.image.cameras)) != len(self.image.cameras) or not self.image.cameras:
            raise ValueError("image.cameras: name each camera once, and at least one")


def read_mixture(path: Path) -> Mixture:
    """Read a mixture file strictly. Raises ConfigError, which names the file, the key and the closest match."""
    return config.load(Mixture, path)


def mixture_yaml(mixture: Mixture) -> str:
    """The mixture as resolved, with every default written out."""
    return config.to_yaml(mixture)


@plain_dataclass(frozen=True)
class IndexedDataset:
    """An entry of the mixture, found in the index.

    Attributes:
        dataset: the name in the index.
        bgr: roles whose frames must be swapped to RGB.
    """

    entry: MixtureEntry
    dataset: str
    aliases: tuple[str, ...]
    bgr: frozenset[str]


def resolve(mixture: Mixture, index: Index, where: str, cards: Path | None = None) -> list[IndexedDataset]:
    """Find each entry's data set in the index, by name or by its card's names.

    Raises:
        ConfigError: an entry that the index lacks, two entries that mean the same data set, a data set without a kept
            episode or without one of the splits.
    """
    names: dict[str, str] = {}  # every name that counts -> data set in the index
    held, cards = {}, index.find_cards(cards)
    for dataset, known in index.datasets.items():
        held[dataset] = registry.load(known.card or dataset, cards)
        for name in (held[dataset].name, *held[dataset].aliases):
            names.setdefault(name, dataset)
    names.update({dataset: dataset for dataset in index.datasets})
    found: list[IndexedDataset] = []
    taken: dict[str, str] = {}
    for entry in mixture.datasets:
        if entry.name not in names:
            raise ConfigError(
                f"{where}: datasets: {entry.name!r} is not in the index {index.folder}. "
                f"{did_you_mean(entry.name, names)} Filter it first, or take it out of the mixture."
            )
        dataset = names[entry.name]
        if dataset in taken:
            raise ConfigError(
                f"{where}: datasets: {taken[dataset]!r} and {entry.name!r} are both the data set {dataset}; "
                "add their weights up in one entry"
            )
        taken[dataset] = entry.name
        known = index.datasets[dataset]
        if known.summary.kept == 0:
            reasons = known.drop_reasons or "it is empty"
            raise ConfigError(
                f"{where}: datasets: {entry.name!r} keeps no episode in the index ({reasons}). "
                "Take it out, or filter it by other criteria."
            )
        if entry.recipe not in (None, known.recipe):
            raise ConfigError(
                f"{where}: datasets: {entry.name!r} asks for the recipe {entry.recipe!r}, the index was filtered with "
                f"{known.recipe!r}. Run filter again with --recipe {entry.name}={entry.recipe}."
            )
        have = known.split_names
        for split in entry.splits:
            if split not in have:
                raise ConfigError(
                    f"{where}: datasets: {entry.name!r} has no split {split!r} in the index. "
                    f"{did_you_mean(split, have)} Set it with the entry's key 'splits'."
                )
        card = held[dataset]
        cameras = card.cameras_by_role()
        for role in mixture.image.cameras:
            if role not in cameras:
                raise ConfigError(
                    f"{where}: image.cameras: {entry.name!r} has no {role} camera. {did_you_mean(role, cameras)}"
                )
        bgr = {role for role in mixture.image.cameras if card.cameras[cameras[role]].channels == "bgr"}
        if entry.swap_channels is not None:
            bgr = set(mixture.image.cameras) if entry.swap_channels else set()
        found.append(IndexedDataset(entry, dataset, (card.name, *card.aliases), frozenset(bgr)))
    return found


def with_statistics(mixture: Mixture, path: Path | None) -> Mixture:
    """The mixture with its bounds taken from a published file instead."""
    return replace(mixture, bounds=replace(mixture.bounds, over=str(path))) if path else mixture
