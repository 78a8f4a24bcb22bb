"""The data sets that a mixture can name: facts from the cards, sizes from the index or as published."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from oxe_curate import registry
from oxe_curate.errors import ConfigError, quoted
from oxe_curate.filter.scanner import ROLES
from oxe_curate.index.store import Index
from oxe_curate.mixture import published
from oxe_curate.mixture.members import Member, MemberLookup
from oxe_curate.mixture.spec import Mixture, MixtureEntry
from oxe_curate.registry.card import DatasetCard

_SIZE_FILES = 4
"""Index files from which the size of a frame is estimated."""


@dataclass(frozen=True)
class Reference:
    """A mixture to compare with: its weights by identity (see `Member.identity`)."""

    name: str
    title: str
    source: str
    weights: Mapping[str, float]


class Catalogue:
    """Everything the page may ask about. Nothing else is ever opened.

    Args:
        index: the opened index; None: sizes are the published ones, and there are no frames.
        cards: a folder of the user's own cards; default: the folder that filter was given.
    """

    def __init__(self, index: Index | None, cards: Path | None = None) -> None:
        self.index = index
        self.cards = index.find_cards(cards) if index else cards
        self._lookup = MemberLookup(index, self.cards)

    def member(self, name: str, splits: tuple[str, ...] = ("train",)) -> Member:
        """The data set of a name. Raises ConfigError, with the closest match, if it is unknown."""
        found = self._find(name, splits)
        if isinstance(found, str):
            raise ConfigError(found)
        return found

    @functools.lru_cache(maxsize=4096)  # noqa: B019 (one catalogue per process)
    def _find(self, name: str, splits: tuple[str, ...]) -> Member | str:
        """A member, or why there is none. Cached too: a name is looked up after every letter that is typed."""
        try:
            return self._lookup.member(MixtureEntry(name=name, weight=1.0, splits=splits))
        except ConfigError as error:
            return str(error)
        except ValueError:  # by the schema
            return f"expected the name and the splits of a data set, got {quoted(name)} and {quoted(list(splits))}"

    @functools.cached_property
    def facts(self) -> dict[str, dict[str, Any]]:
        """Identity -> facts for the page, of every card and every data set of the index."""
        names = list(self.index.datasets) if self.index else []
        names += registry.names(self.cards)
        found: dict[str, dict[str, Any]] = {}
        for name in names:
            member = self.member(name)
            found.setdefault(member.identity, _fact(member))
        return found

    def bytes_per_step(self, member: Member, cameras: tuple[str, ...]) -> float | None:
        """Bytes of encoded images per step of some cameras; None if unknown.

        Estimated from the first files of the index; without an index, the published size of the whole data set divided
        by its steps, which covers every camera.
        """
        if member.dataset is not None:
            means = self._image_bytes(member.dataset)
            return sum(means[role] for role in cameras if role in means) if means else None
        sizes = [split.bytes for split in member.card.splits.values()]
        known = [size for size in sizes if size is not None]
        return sum(known) / member.steps if member.steps and known and len(known) == len(sizes) else None

    @functools.lru_cache(maxsize=256)  # noqa: B019 (one catalogue per process)
    def _image_bytes(self, dataset: str) -> dict[str, float]:
        assert self.index is not None
        totals: dict[str, int] = {}
        steps = 0
        for path in self.index.files(dataset)[:_SIZE_FILES]:
            table = self.index.table(path, ["kept", "source_steps", "camera_spans"])
            for i in np.flatnonzero(np.asarray(table["kept"])).tolist():
                steps += table["source_steps"][i].as_py()
                for role, span in table["camera_spans"][i].as_py():
                    totals[role] = totals.get(role, 0) + span["length"]
        return {role: total / steps for role, total in totals.items()} if steps else {}

    @functools.cached_property
    def references(self) -> dict[str, Reference]:
        """The published mixtures, by name."""
        found = {}
        for name, entry in published.published_mixtures().items():
            title = f"{entry.project}: {entry.upstream}"
            found[name] = Reference(name, title, entry.source, self.weights(published.load_published(name)))
        return found

    def weights(self, mixture: Mixture) -> dict[str, float]:
        """Identity -> weight of a mixture's data sets; of two entries of the same data set, the first counts."""
        weights: dict[str, float] = {}
        for entry in mixture.datasets:
            weights.setdefault(self.identity(entry.name), entry.weight)
        return weights

    def identity(self, name: str) -> str:
        """The identity of a name, or the name itself if it is unknown."""
        try:
            return self.member(name).identity
        except ConfigError:
            return name

    def card(self, dataset: str) -> DatasetCard:
        """The card of a data set of the index. Raises ConfigError if the index does not have it."""
        if self.index is None or dataset not in self.index.datasets:
            raise ConfigError(f"{quoted(dataset)} is not in the index")
        return self.member(dataset).card


def _fact(member: Member) -> dict[str, Any]:
    card = member.card
    roles = {camera.role for camera in card.cameras.values()}
    return {
        "name": member.dataset or card.name,
        "aliases": sorted({card.name, *card.aliases} - {member.dataset or card.name}),
        "robot": card.robot,
        "arms": card.arms,
        "cameras": [role for role in ROLES if role in roles],
        "hz": card.control_hz,
        "action": card.action_encoding,
        "licence": card.licence,
        "language": card.language.style or ("yes" if card.language.keys else None),
        "verdict": card.verdict,
        "reason": card.reason,
        "notes": list(card.notes),
        "frames": member.dataset is not None and bool(member.episodes),
    }


def starting_text(name: str, index: Index | None) -> str:
    """The text of a new mixture: the data sets that the index keeps, at weight 1."""
    kept = [dataset for dataset, entry in index.datasets.items() if entry.summary.kept] if index else []
    rows = "".join(f"  - name: {dataset}\n    weight: 1.0\n" for dataset in kept)
    return f"name: {name}\nseed: 0\ndatasets:{chr(10) + rows if rows else ' []' + chr(10)}"
