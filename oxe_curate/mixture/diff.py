"""How two mixtures differ: data sets that came, went or changed, and other keys."""

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
    """A data set in two mixtures; None where it is not in one, or its size is not known.

    Attributes:
        name: as the second mixture writes it (the first, where it was removed).
        status: "changed" means another weight; a share moves with the other data sets' weights too.
        weight, share: (before, after).
    """

    name: str
    status: Status
    weight: tuple[float | None, float | None]
    share: tuple[float | None, float | None]

    @property
    def factor(self) -> float | None:
        """By how much the weight was multiplied; None where it came or went."""
        before, after = self.weight
        return None if before is None or after is None else after / before


@dataclass(frozen=True)
class Difference:
    """Two mixtures side by side.

    Attributes:
        changes: one a data set, those of the second mixture first, in its order.
        settings: (key, before, after) of other keys that differ, "bounds.low".
    """

    before: str
    after: str
    changes: tuple[MixtureChange, ...]
    settings: tuple[tuple[str, Any, Any], ...]

    def counted(self, status: Status) -> int:
        """How many data sets have a status."""
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
    keys = [*old, *(key for key in new if key not in old)]  # a source of texts may be in one of them alone
    return [(key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)]


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if key == "texts":
            item = {text["name"]: {k: v for k, v in text.items() if k != "name"} for text in item}
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {f"{prefix}{key}": item}
    return flat
