"""The data sets of a mixture, each with its card and its size, from the index or as published."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from oxe_curate import registry
from oxe_curate.index.index_json import DatasetEntry
from oxe_curate.index.query import count_kept
from oxe_curate.index.store import Index
from oxe_curate.mixture.spec import Mixture, MixtureEntry
from oxe_curate.registry.card import DatasetCard

Origin = Literal["index", "published", "unknown"]


@dataclass(frozen=True)
class Member:
    """A data set of a mixture.

    Attributes:
        dataset: its name in the index; None if the index does not have it.
        version: the version in the index.
        steps: of the kept episodes of the entry's splits (index) or of the whole data set (published); None: unknown.
        episodes: the same for episodes.
        origin: where `steps` comes from.
    """

    entry: MixtureEntry
    card: DatasetCard
    dataset: str | None
    version: str | None
    steps: int | None
    episodes: int | None
    origin: Origin

    @property
    def identity(self) -> str:
        """Equal for two entries of the same data set: its name in the index, else the card's name."""
        return self.dataset or self.card.name

    @property
    def hours(self) -> float | None:
        """Steps at the card's control rate, in hours; None if either is unknown."""
        hz = self.card.control_hz
        return None if self.steps is None or not hz else self.steps / hz / 3600


class MemberLookup:
    """Finds members by any of their names. Loads the cards of the index once."""

    def __init__(self, index: Index | None = None, cards: Path | None = None) -> None:
        self._index, self._cards = index, cards
        self._by_name: dict[str, str] = {}
        self._held: dict[str, DatasetCard] = {}
        if index is None:
            return
        self._cards = index.find_cards(cards)
        for dataset, held in index.datasets.items():
            card = self._held[dataset] = registry.load(held.card or dataset, self._cards)
            for name in (card.name, *card.aliases):
                self._by_name.setdefault(name, dataset)
        self._by_name.update({dataset: dataset for dataset in index.datasets})

    def member(self, entry: MixtureEntry) -> Member:
        """The member of an entry. Raises ConfigError if neither the index nor a card has its name."""
        dataset = self._by_name.get(entry.name)
        if dataset is None:
            card = registry.load(entry.name, self._cards)
            origin: Origin = "unknown" if card.num_transitions is None else "published"
            return Member(entry, card, None, None, card.num_transitions, _published_episodes(card), origin)
        assert self._index is not None
        held = self._index.datasets[dataset]
        episodes, steps = _kept(self._index, dataset, held, entry.splits)
        return Member(entry, self._held[dataset], dataset, held.version, steps, episodes, "index")


def members(mixture: Mixture, index: Index | None = None, cards: Path | None = None) -> tuple[Member, ...]:
    """The member of each entry, in the mixture's order. Raises ConfigError for an unknown name."""
    lookup = MemberLookup(index, cards)
    return tuple(lookup.member(entry) for entry in mixture.datasets)


def _published_episodes(card: DatasetCard) -> int | None:
    """Episodes of all splits, as counted by num_transitions; None if one of them is not published."""
    counts = [split.episodes for split in card.splits.values()]
    return sum(c for c in counts if c is not None) if counts and None not in counts else None


def _kept(index: Index, dataset: str, entry: DatasetEntry, splits: tuple[str, ...]) -> tuple[int, int]:
    """Kept episodes and steps of some splits; the index files are scanned only if the index has other splits too."""
    if set(entry.split_names) <= set(splits):
        return entry.summary.kept, entry.summary.steps_kept
    return count_kept(index, dataset, splits)
