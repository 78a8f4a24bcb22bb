"""Which tasks (instructions) an index holds, and which of them the filter removed altogether."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from oxe_curate.index.store import Index


@dataclass
class Tasks:
    """Episodes by instruction; an episode with several texts counts under each of them."""

    seen: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)

    def add(self, instructions: Iterable[Sequence[str]], kept: Iterable[bool]) -> None:
        """Count some episodes."""
        for texts, keep in zip(instructions, kept, strict=True):
            self.seen.update(texts)
            if keep:
                self.kept.update(texts)

    @property
    def lost(self) -> list[str]:
        """Instructions of which no episode is kept: the most frequent first, then by name."""
        gone = [text for text in self.seen if text not in self.kept]
        return sorted(gone, key=lambda text: (-self.seen[text], text))


def count_tasks(index: Index, dataset: str) -> Tasks:
    """Count a data set's instructions."""
    tasks = Tasks()
    for _, table in index.tables(dataset, ["instructions", "kept"]):
        tasks.add(table["instructions"].to_pylist(), table["kept"].to_pylist())
    return tasks


def lost_tasks(index: Index) -> dict[str, list[str]]:
    """Data set -> instructions of which every episode was dropped; data sets that lost none are left out.

    Where nothing at all is kept every task is lost, and the table of counts says so; such data sets are left out too.
    """
    lost = {}
    for name, entry in index.datasets.items():
        if 0 < entry["kept"] < entry["seen"] and (texts := count_tasks(index, name).lost):
            lost[name] = texts
    return lost
