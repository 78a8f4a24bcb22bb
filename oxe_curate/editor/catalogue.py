"""The data sets that a mixture can name: facts from the cards, sizes from the index or as published."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from oxe_curate import registry
from oxe_curate.errors import ConfigError
from oxe_curate.filter.scan import ROLES
from oxe_curate.index.store import Index
from oxe_curate.mixture import members, published
from oxe_curate.mixture.members import Member
from oxe_curate.mixture.spec import Mixture, MixtureEntry
from oxe_curate.registry.card import DatasetCard


@dataclass(frozen=True)
class Reference:
    """A mixture to compare with: its weights by identity (see Member.identity)."""

    name: str
    title: str
    source: str
    weights: Mapping[str, float]


class Catalogue:
    """All that the page may ask about; nothing that is not in here is ever opened.

    Args:
        index: the opened index; None: sizes are the published ones, and there are no frames.
        cards: a folder of the user's own cards; default: the folder that filter was given.
    """

    def __init__(self, index: Index | None, cards: Path | None = None) -> None:
        self.index = index
        self.cards = index.find_cards(cards) if index else cards
        self._members = members.Catalogue(index, self.cards)
        self._found: dict[tuple[str, tuple[str, ...]], Member | str] = {}  # a member, or why there is none

    def member(self, name: str, splits: tuple[str, ...] = ("train",)) -> Member:
        """What is known of a name. Raises ConfigError, with the closest match, if nothing carries it."""
        key = (name, splits)
        if key not in self._found:
            if len(self._found) > 5000:  # every spelling on the way of somebody who types a name
                self._found.clear()
            try:
                self._found[key] = self._members.member(MixtureEntry(name=name, weight=1.0, splits=splits))
            except ConfigError as error:
                self._found[key] = str(error)
        found = self._found[key]
        if isinstance(found, str):
            raise ConfigError(found)
        return found

    @functools.cached_property
    def facts(self) -> dict[str, dict[str, Any]]:
        """Identity -> facts for the page, of every card and every data set of the index."""
        names = list(self.index.datasets) if self.index else []
        names += registry.names(self.cards)
        found: dict[str, dict[str, Any]] = {}
        for name in names:
            member = self.member(name)
            found.setdefault(member.identity, self._fact(member))
        return found

    def _fact(self, member: Member) -> dict[str, Any]:
        card = member.card
        roles = {camera.role: key for key, camera in reversed(card.cameras.items()) if camera.role in ROLES}
        return {
            "name": member.dataset or card.name,
            "card": card.name,
            "aliases": sorted({card.name, *card.aliases} - {member.dataset or card.name}),
            "robot": card.robot,
            "arms": card.arms,
            "cameras": [role for role in ROLES if role in roles],
            "hz": card.control_hz,
            "simulated": card.simulated,
            "action": card.action_encoding,
            "licence": card.licence,
            "language": card.language.style or ("yes" if card.language.keys else None),
            "verdict": card.verdict,
            "reason": card.reason,
            "steps": member.steps,
            "episodes": member.episodes,
            "hours": member.hours,
            "origin": member.origin,
            "notes": list(card.notes),
            "frames": member.dataset is not None and bool(member.episodes),
        }

    def bytes_per_step(self, member: Member, cameras: tuple[str, ...]) -> float | None:
        """Bytes of encoded images that a step of some cameras has; None where nothing tells.

        From the first files of the index; else the published size of the whole data set over its steps, which counts
        every camera.
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
        for path in self.index.files(dataset)[:4]:
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
        """Identity -> weight of a mixture's data sets; of two that mean the same, the first counts."""
        weights: dict[str, float] = {}
        for entry in mixture.datasets:
            weights.setdefault(self.identity(entry.name), entry.weight)
        return weights

    def identity(self, name: str) -> str:
        """The identity of a name, or the name itself where nothing carries it."""
        try:
            return self.member(name).identity
        except ConfigError:
            return name

    def card(self, dataset: str) -> DatasetCard:
        """The card of a data set of the index. Raises ConfigError if the index does not hold it."""
        if self.index is None or dataset not in self.index.datasets:
            raise ConfigError(f"the index holds no {dataset!r}")
        return self.member(dataset).card


def starting_text(name: str, index: Index | None) -> str:
    """A mixture to begin with, where there is no file yet: what the index keeps, at weight 1."""
    kept = [dataset for dataset, entry in index.datasets.items() if entry.summary.kept] if index else []
    rows = "".join(f"  - name: {dataset}\n    weight: 1.0\n" for dataset in kept)
    return f"name: {name}\nseed: 0\ndatasets:{chr(10) + rows if rows else ' []' + chr(10)}"
