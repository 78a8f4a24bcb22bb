"""What filter says about each episode of a small data set."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from oxe_curate.episode import EpisodeId
from oxe_curate.filter.criteria import Criteria, read_criteria
from oxe_curate.filter.pipeline import FilterOptions, run_filter

Position = tuple[str, int]
"""Split, and number of the episode in it."""

UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Judgement:
    """Why an episode is dropped, and the criteria that mark it, whether it is dropped or not."""

    dropped: str | None
    marks: frozenset[str]

    def new_since(self, before: Judgement) -> Judgement:
        """Without what was said of the episode before it was spoiled."""
        dropped = None if self.dropped == before.dropped else self.dropped
        return Judgement(dropped, self.marks - before.marks)

    @property
    def found_by(self) -> frozenset[str]:
        return self.marks | ({self.dropped} if self.dropped else frozenset())


NOTHING = Judgement(None, frozenset())


def configurations() -> dict[str, Criteria]:
    """The criteria that are compared: the defaults, and the strict preset."""
    return {"default": Criteria(), "strict": read_criteria(preset="strict")}


def judge(
    root: Path, index: Path, criteria: Criteria, cards: Path | None, look: int = 0, *, fresh: bool = True
) -> dict[Position, Judgement]:
    """Run filter on every data set below `root`, and return what it says of each episode.

    Args:
        index: folder for the index.
        look: frames per episode to look at; 0 for none.
        fresh: delete the index first; otherwise only what the criteria change is done again.
    """
    if fresh:
        shutil.rmtree(index, ignore_errors=True)
    options = FilterOptions(criteria=criteria, cards=cards, workers=1, progress=False, skip_corrupt=True, look=look)
    run_filter(root, index, options)
    return judged(index)


def judged(index: Path) -> dict[Position, Judgement]:
    """(split, position) -> what an index of one data set with one shard per split says of each episode."""
    found = {}
    for path in sorted(index.rglob("*.parquet")):
        columns = pq.read_schema(path).names
        wanted = [name for name in ("episode_id", "reason", "duplicate_of", "marks") if name in columns]
        for row in pq.read_table(path, columns=wanted).to_pylist():
            episode = EpisodeId.parse(row["episode_id"])
            marks = {str(mark["criterion"]) for mark in row.get("marks") or ()}
            if row["duplicate_of"] is not None:
                marks.add("duplicate")
            found[episode.split, episode.record] = Judgement(row["reason"], frozenset(marks))
    return found
