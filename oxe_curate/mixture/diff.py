"""The difference of two mixtures: data sets that were added, removed or changed, and other keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from oxe_curate.mixture.members import Member
from oxe_curate.mixture.shares import Row, breakdown
from oxe_curate.mixture.spec import Mixture

Status = Literal["added", "removed", "changed", "same"]


@dataclass(frozen=True)
class MixtureChange:
    """A data set in two mixtures.

    Attributes:
        name: in the second mixture, or in the first if it was removed.
        status: "changed" refers to the weight; a share also depends on the other data sets.
        weight, share: (before, after); None if it is not in that mixture, or its size is unknown.
    """

    name: str
    status: Status
    weight: tuple[float | None, float | None]
    share: tuple[float | None, float | None]

    @property
    def factor(self) -> float | None:
        """New weight over old weight; None if the data set was added or removed."""
        before, after = self.weight
        return None if before is None or after is None else after / before


@dataclass(frozen=True)
class Difference:
    """The difference of two mixtures.

    Attributes:
        before, after: names of the mixtures.
        changes: one per data set, those of the second mixture first, in its order.
        settings: (key, before, after) of other keys that differ, "bounds.low".
    """

    before: str
    after: str
    changes: tuple[MixtureChange, ...]
    settings: tuple[tuple[str, Any, Any], ...]

    def counted(self, status: Status) -> int:
        """Number of data sets with a status."""
        return sum(change.status == status for change in self.changes)


def diff(before: tuple[Mixture, Sequence[Member]], after: tuple[Mixture, Sequence[Member]]) -> Difference:
    """Compare two mixtures, each with its `members`. A data set is the same one under any of its names."""
    old, new = _rows(*before), _rows(*after)
    changes = [_change(old.get(identity), row) for identity, row in new.items()]
    changes += [_change(row, None) for identity, row in old.items() if identity not in new]
    return Difference(before[0].name, after[0].name, tuple(changes), tuple(_settings(before[0], after[0])))


def _rows(mixture: Mixture, members: Sequence[Member]) -> dict[str, Row]:
    rows = breakdown(mixture, members).rows
    return {member.identity: row for member, row in zip(members, rows, strict=True)}


def _change(old: Row | None, new: Row | None) -> MixtureChange:
    row = new or old
    assert row is not None
    weights = (old.weight if old else None, new.weight if new else None)
    if old is None or new is None:
        status: Status = "added" if old is None else "removed"
    else:
        status = "same" if old.weight == new.weight else "changed"
    return MixtureChange(row.name, status, weights, (old.share if old else None, new.share if new else None))


def _settings(before: Mixture, after: Mixture) -> list[tuple[str, Any, Any]]:
    old, new = (_flat({k: v for k, v in asdict(m).items() if k not in ("datasets", "name")}) for m in (before, after))
    keys = [*old, *(key for key in new if key not in old)]  # an image-text source may be in only one of them
    return [(key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)]


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if key == "texts":
            item = {text["name"]: {k: v for k, v in text.items() if k != "name"} for text in item}
        if key == "accept":
            item = {".".join(filter(None, (a["finding"], a["dataset"]))): a["reason"] for a in item}
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {f"{prefix}{key}": item}
    return flat
