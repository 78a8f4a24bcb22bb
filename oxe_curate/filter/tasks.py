"""Count the tasks (instructions) of an index, and find those of which the filter dropped every episode."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from oxe_curate.index import query
from oxe_curate.index.store import Index

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class Tasks:
    """Episodes by instruction; an episode with several instructions counts under each of them."""

    seen: Counter[str]
    kept: Counter[str]

    @functools.cached_property
    def lost(self) -> list[str]:
        """Instructions without a kept episode: the most frequent first, then by name."""
        gone = [text for text in self.seen if text not in self.kept]
        return sorted(gone, key=lambda text: (-self.seen[text], text))


def tasks_of(rows: pl.LazyFrame) -> Tasks:
    """Count the instructions of index rows: the columns `instructions` and `kept`."""
    import polars as pl

    texts = rows.select(pl.col("instructions").alias("text"), "kept").explode("text").drop_nulls("text")
    counts = texts.group_by("text").agg(pl.len().alias("seen"), pl.col("kept").sum())
    counted = query.collect(counts).rows()
    return Tasks(Counter({text: n for text, n, _ in counted}), Counter({text: n for text, _, n in counted if n}))


def count_tasks(index: Index, dataset: str) -> Tasks:
    """Count a data set's instructions. Raises DataError if an index file is damaged."""
    return tasks_of(query.scan_index(index, dataset))


def lost_tasks(index: Index) -> dict[str, list[str]]:
    """Map each data set to the instructions of which every episode was dropped.

    Data sets that lost none are left out, and so are those without any kept episode: they have lost every task, which
    the table of counts already shows.
    """
    lost = {}
    for name, entry in index.datasets.items():
        if 0 < entry.summary.kept < entry.summary.seen and (texts := count_tasks(index, name).lost):
            lost[name] = texts
    return lost
