"""One criterion over all data sets: how many episodes it drops and marks, its limits, and what can be done about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oxe_curate.index.index_json import DatasetEntry, Judged
from oxe_curate.report import words
from oxe_curate.report.flags import DUPLICATE, Flagged, own_limit


@dataclass(frozen=True, eq=False)
class InDataset:
    """A criterion in one data set.

    Attributes:
        judged: what is known of its values, None for a criterion of one episode by itself.
    """

    dataset: str
    dropped: int
    marked: int
    judged: Judged | None


@dataclass(frozen=True, eq=False)
class Criterion:
    """A criterion, where it was found.

    Attributes:
        rows: data sets in which it drops or marks episodes, the most first.
        excess: values of episodes above the limit, in multiples of it.
        commands: rows (purpose, command line).
    """

    name: str
    meaning: str
    rows: Sequence[InDataset]
    excess: NDArray[np.float64]
    commands: Sequence[tuple[str, str]]

    @property
    def dropped(self) -> int:
        """Episodes that it drops."""
        return sum(row.dropped for row in self.rows)

    @property
    def marked(self) -> int:
        """Kept episodes that it marks."""
        return sum(row.marked for row in self.rows)


def by_criterion(
    index: str, criteria: Mapping[str, Any], datasets: Mapping[str, DatasetEntry], flagged: Mapping[str, Flagged]
) -> list[Criterion]:
    """The criteria that drop or mark episodes; those that concern the most come first.

    Args:
        index: its folder, for the commands.
        criteria: of the index.
        datasets: entries of index.json.
        flagged: data set -> what the criteria found.
    """
    names = dict.fromkeys(name for found in flagged.values() for name in found.worst)
    made = [_one(name, index, criteria, datasets, flagged) for name in names]
    return sorted(made, key=lambda one: (-one.dropped - one.marked, one.name))


def _one(
    name: str,
    index: str,
    criteria: Mapping[str, Any],
    datasets: Mapping[str, DatasetEntry],
    flagged: Mapping[str, Flagged],
) -> Criterion:
    rows = []
    for dataset, found in flagged.items():
        entry = datasets[dataset]
        dropped, marked = entry.summary.dropped.get(name, [0])[0], found.marks.get(name, 0)
        if dropped or marked:
            rows.append(InDataset(dataset, dropped, marked, entry.judged.get(name)))
    rows.sort(key=lambda row: (-row.dropped - row.marked, row.dataset))
    limits = [row.judged.limit for row in rows if row.judged and row.judged.limit is not None]
    drops = any(row.dropped for row in rows) if name != DUPLICATE else criteria.get(DUPLICATE) is True
    excess = [found.excess[name] for found in flagged.values() if name in found.excess]
    return Criterion(
        name,
        words.meaning(name)
        + (f" Here: {limit:g}." if (own := own_limit(name, criteria)) and (limit := own[1]) else ""),
        rows,
        np.concatenate(excess) if excess else np.empty(0),
        words.commands(index, criteria, name, drops, max(limits, default=None)),
    )
