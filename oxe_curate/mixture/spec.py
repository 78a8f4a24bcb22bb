"""The mixture YAML: data sets, weights, and what a sample holds. See docs/formats.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator
from dataclasses import asdict, replace
from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from oxe_curate import config, registry
from oxe_curate.episode import pick
from oxe_curate.errors import ConfigError, did_you_mean
from oxe_curate.index.index_json import DatasetEntry
from oxe_curate.index.store import Index
from oxe_curate.mixture.kinds import AcceptedFinding, check_accepted
from oxe_curate.registry.card import DatasetCard, IndexedRole

MAX_ENTRIES = 500
"""Data sets of a mixture, and image-text sources: five times as many as are published."""
MAX_NAME = 200
_Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
"""Neither a text ("1.0") nor true."""
_Whole = Annotated[int, Field(strict=True)]
MAX_WEIGHT = 1e6
"""Copies of a step; a million of each is a mistake."""
_Weight = Annotated[_Number, Field(gt=0, le=MAX_WEIGHT)]


@dataclass(frozen=True, config=config.STRICT)
class MixtureEntry:
    """One data set of a mixture.

    Attributes:
        name: a card's name or alias, or the data set's name in the index. Statistics and rows use this name.
        weight: expected copies of each step; OpenVLA's weights mean exactly this.
        recipe: the recipe that the index must have been filtered with; None: any.
        splits: source splits that rows are drawn from. Statistics cover every split in the index.
        swap_channels: whether frames are stored as BGR and must be swapped; None: as the card says.
    """

    name: _Name
    weight: _Weight
    recipe: str | None = None
    splits: tuple[_Name, ...] = Field(default=("train",), max_length=1000)
    swap_channels: Annotated[bool, Field(strict=True)] | None = None


@dataclass(frozen=True, config=config.STRICT)
class TextColumns:
    """Names of the columns of an image-text source.

    Attributes:
        image: struct<bytes, path> (Hugging Face's `Image`) or binary.
        question, answer: None: "question" and "answer", if the source has both.
        caption: of an image without a question; None: "caption", if the source has it and no question and answer.
    """

    image: str = "image"
    question: str | None = None
    answer: str | None = None
    caption: str | None = None

    def __post_init__(self) -> None:
        if self.caption is not None and (self.question is not None or self.answer is not None):
            raise ValueError("give either a caption, or a question and an answer")


@dataclass(frozen=True, config=config.STRICT)
class TextEntry:
    """Image-text rows to train on in addition to the robot data.

    Attributes:
        name: of the source; its rows use it.
        path: a Parquet file, or a folder of them: local (relative to the mixture file), gs:// or s3://.
        weight: expected copies of each row.
    """

    name: _Name
    path: Annotated[str, Field(min_length=1, max_length=4096)]
    weight: _Weight
    columns: TextColumns = TextColumns()


@dataclass(frozen=True, config=config.STRICT)
class ImageSpec:
    """The frames of a sample and how they are stored.

    Attributes:
        cameras: roles; each becomes a column image_<role>.
        size: pixels per side to resize to; None copies the source's bytes.
        quality: JPEG quality of frames that are resized or whose channels are swapped.
        random_view: whether the cameras that a card names as `random_view` change places at random, per episode (droid:
            its two exterior cameras, as in OpenVLA and openpi).
        copy: whether the shards hold the frames. If not, they hold the place of each frame in the source, and `size`
            and `quality` are those that `materialize` writes.
    """

    cameras: tuple[IndexedRole, ...] = ("primary",)
    size: _Whole | None = Field(default=None, ge=16, le=2048)
    quality: _Whole = Field(default=95, ge=1, le=100)
    random_view: bool = True
    copy: Annotated[bool, Field(strict=True)] = True


@dataclass(frozen=True, config=config.STRICT)
class BoundsSpec:
    """How actions are normalised.

    Attributes:
        low, high: quantiles that become -1 and +1.
        over: "kept" episodes, "all" episodes with finite actions, or the path of a dataset_statistics.json.
    """

    low: _Number = Field(default=0.01, ge=0, lt=1)
    high: _Number = Field(default=0.99, gt=0, le=1)
    over: str = Field(default="kept", max_length=4096)


@dataclass(frozen=True, config=config.STRICT)
class Mixture:
    """A mixture, as in its file.

    Attributes:
        texts: image-text sources to train on in addition to the robot data.
        seed: determines fractional copies and the order of rows.
        window: observations per sample, the last one being the current.
        stride: steps between samples, see `sampling.window_ends`.
        chunk: actions per observation, starting at its step.
        bins: "openvla" (256 edges, as in the released checkpoints) or "uniform" (256 intervals).
        validation: share of episodes held out, by hash of the episode id.
        accept: findings of `mixture check` that are accepted; an accepted error does not stop tokenize.
    """

    name: _Name
    datasets: Annotated[tuple[MixtureEntry, ...], Field(max_length=MAX_ENTRIES)]
    texts: tuple[TextEntry, ...] = Field(default=(), max_length=MAX_ENTRIES)
    seed: _Whole = Field(default=0, ge=0, lt=2**63)
    window: _Whole = Field(default=1, ge=1, le=1024)
    stride: _Whole = Field(default=1, ge=1, le=1024)
    chunk: _Whole = Field(default=1, ge=1, le=1024)
    image: ImageSpec = ImageSpec()
    bounds: BoundsSpec = BoundsSpec()
    bins: Literal["openvla", "uniform"] = "openvla"
    validation: _Number = Field(default=0.05, ge=0, lt=1)
    accept: tuple[AcceptedFinding, ...] = Field(default=(), max_length=1000)

    def __post_init__(self) -> None:
        if not self.datasets:
            raise ValueError("datasets is empty; add at least one data set with its weight")
        if self.bounds.low >= self.bounds.high:
            raise ValueError(f"bounds: low {self.bounds.low} must be below high {self.bounds.high}")
        if self.stride > self.window:
            raise ValueError(
                f"stride {self.stride} is larger than window {self.window}, so some steps would be in no window. "
                "Use a stride of at most the window; to draw fewer samples, use weights below 1"
            )
        names = Counter(entry.name for entry in self.datasets)
        if double := sorted(name for name, count in names.items() if count > 1):
            raise ValueError(f"datasets: duplicate data set {double[0]!r}; merge its entries")
        names.update(entry.name for entry in self.texts)
        if double := sorted(name for name, count in names.items() if count > 1):
            raise ValueError(f"texts: duplicate name {double[0]!r}; give each source its own name")
        if len(set(self.image.cameras)) != len(self.image.cameras) or not self.image.cameras:
            raise ValueError("image.cameras: expected at least one camera, and each only once")
        check_accepted(self.accept, names)


def read_mixture(path: Path) -> Mixture:
    """Read a mixture file strictly. Raises ConfigError with the file, the key and the closest match."""
    return config.read(Mixture, path)


def mixture_yaml(mixture: Mixture) -> str:
    """The mixture as YAML, with every default written out but `image.copy`, which earlier versions do not know."""
    data = asdict(mixture)
    if mixture.image.copy:
        del data["image"]["copy"]
    return config.to_yaml(data)


@plain_dataclass(frozen=True)
class IndexedDataset:
    """An entry of the mixture, found in the index.

    Attributes:
        dataset: the name in the index.
        aliases: the card's name and its other names.
        bgr: camera roles whose frames must be swapped to RGB.
        views: camera roles that change places at random, per episode; see `shown`.
    """

    entry: MixtureEntry
    dataset: str
    aliases: tuple[str, ...]
    bgr: frozenset[str]
    views: tuple[str, ...] = ()

    def shown(self, role: str, episode_id: str, available: Container[str], seed: int) -> str:
        """The role of the camera whose frames an episode has in the place of `role`.

        Args:
            role: of the mixture.
            episode_id: decides, with the seed.
            available: the roles whose frames the episode has.
            seed: of the mixture.
        """
        if role not in self.views:
            return role
        turn = pick(episode_id, len(self.views), f"view:{seed}")
        other = self.views[(self.views.index(role) + turn) % len(self.views)]
        return other if other in available else role


def roles_to_read(mixture: Mixture, sources: Iterable[IndexedDataset]) -> tuple[str, ...]:
    """The roles whose frames a mixture may show: its cameras, and those that change places with them."""
    return tuple(dict.fromkeys([*mixture.image.cameras, *(role for source in sources for role in source.views)]))


@plain_dataclass(frozen=True)
class Fault:
    """What is wrong with an entry of a mixture, or with all of it.

    Attributes:
        code: one of `kinds.KINDS`.
        name: of the entry; "" if it is about the mixture.
        key: place in the file: "datasets" for the entry itself, else "image.cameras" and so on.
        message, advice: what is wrong, beginning with the name, and what to do.
    """

    code: str
    name: str
    key: str
    message: str
    advice: str
    level: Literal["error", "warning"] = "error"


def resolve(mixture: Mixture, index: Index, where: str, cards: Path | None = None) -> list[IndexedDataset]:
    """Find each entry's data set in the index, by its name there or by the names of its card.

    Raises:
        ConfigError: an entry is not in the index, two entries name the same data set, or a data set lacks a kept
            episode, a split, a camera or the recipe.
    """
    found, faults = resolve_entries(mixture, index, cards)
    if faults:
        raise ConfigError(f"{where}: {faults[0].key}: {faults[0].message}. {faults[0].advice}")
    return found


def resolve_entries(
    mixture: Mixture, index: Index, cards: Path | None = None
) -> tuple[list[IndexedDataset], list[Fault]]:
    """Like `resolve`, with everything that is wrong instead of the first error."""
    names: dict[str, str] = {}  # every accepted name -> data set in the index
    held, cards = {}, index.find_cards(cards)
    for dataset, known in index.datasets.items():
        held[dataset] = registry.load(known.card or dataset, cards)
        for name in (held[dataset].name, *held[dataset].aliases):
            names.setdefault(name, dataset)
    names.update({dataset: dataset for dataset in index.datasets})
    found: list[IndexedDataset] = []
    faults: list[Fault] = []
    taken: dict[str, str] = {}
    for entry in mixture.datasets:
        if entry.name not in names:
            message = f"{entry.name!r} is not in the index {index.folder}"
            faults.append(Fault("not_in_index", entry.name, "datasets", message, _hint(entry.name, names, cards)))
            continue
        dataset = names[entry.name]
        if dataset in taken:
            message = f"{entry.name!r} and {taken[dataset]!r} are the same data set, {dataset}; merge their entries"
            advice = "Weights of the two add up."
            faults.append(Fault("duplicate", entry.name, "datasets", message, advice))
            continue
        taken[dataset] = entry.name
        mine = [*_unusable(entry, index.datasets[dataset]), *cameras_missing(entry, held[dataset], mixture)]
        faults += mine
        if not mine:
            found.append(_indexed(entry, dataset, held[dataset], mixture))
    return found, faults


def _unusable(entry: MixtureEntry, known: DatasetEntry) -> Iterator[Fault]:
    if known.summary.kept == 0:
        message = f"{entry.name!r} has no kept episode in the index ({known.drop_reasons or 'it is empty'})"
        advice = "Remove it, or run filter again with other criteria."
        yield Fault("empty", entry.name, "datasets", message, advice)
    if entry.recipe not in (None, known.recipe):
        message = (
            f"{entry.name!r}: expected the recipe {entry.recipe!r}, but the index was filtered with {known.recipe!r}"
        )
        advice = f"Run filter again with --recipe {entry.name}={entry.recipe}."
        yield Fault("no_recipe", entry.name, "datasets", message, advice)
    for split in entry.splits:
        if split not in known.split_names:
            advice = f"{did_you_mean(split, known.split_names)} Set it with the entry's key 'splits'."
            yield Fault(
                "no_split", entry.name, "datasets", f"{entry.name!r} has no split {split!r} in the index", advice
            )


def cameras_missing(entry: MixtureEntry, card: DatasetCard, mixture: Mixture) -> Iterator[Fault]:
    """The cameras of the mixture that a card lacks."""
    roles = card.cameras_by_role()
    for role in mixture.image.cameras:
        if role not in roles:
            message = f"{entry.name!r} has no {role} camera"
            yield Fault("no_camera", entry.name, "image.cameras", message, did_you_mean(role, roles))


def _indexed(entry: MixtureEntry, dataset: str, card: DatasetCard, mixture: Mixture) -> IndexedDataset:
    cameras = card.cameras_by_role()
    bgr = {role for role in mixture.image.cameras if card.cameras[cameras[role]].channels == "bgr"}
    if entry.swap_channels is not None:
        bgr = set(mixture.image.cameras) if entry.swap_channels else set()
    views: tuple[str, ...] = card.random_roles
    if not mixture.image.random_view or not set(views) & set(mixture.image.cameras):
        views = ()
    return IndexedDataset(entry, dataset, (card.name, *card.aliases), frozenset(bgr), views)


def _hint(name: str, names: Iterable[str], cards: Path | None) -> str:
    """What to do about a name that the index lacks."""
    try:
        registry.load(name, cards)
    except ConfigError:
        return unknown_dataset(name, names, cards)
    return "Run filter on it first, or remove it from the mixture."


def unknown_dataset(name: str, names: Iterable[str], cards: Path | None) -> str:
    """What to do about a name that no card has: the closest of `names`, or a card of the user's own."""
    own = "" if cards else "pass the folder of your own cards with --cards, or "
    advice = f"{own}draft one with `oxe-curate inspect FOLDER --out CARD.yaml`"
    return f"{did_you_mean(name, names)} If it is a data set of your own, {advice}."


def with_statistics(mixture: Mixture, path: Path | None) -> Mixture:
    """The mixture with its bounds taken from a published file, if one is given."""
    return replace(mixture, bounds=replace(mixture.bounds, over=str(path))) if path else mixture
