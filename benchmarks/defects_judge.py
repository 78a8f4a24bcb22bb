"""What filter says about each episode of a small data set."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from oxe_curate.beam import runner
from oxe_curate.beam.task import Task, Work
from oxe_curate.episode import EpisodeId
from oxe_curate.filter import scanner
from oxe_curate.filter.criteria import Criteria, read_criteria
from oxe_curate.filter.frames import FrameLook
from oxe_curate.filter.looking import look_at_camera, spread
from oxe_curate.filter.pipeline import FilterOptions, run_filter
from oxe_curate.quality.looks import LookedFrames

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


def configurations(changes: Sequence[str] = ()) -> dict[str, Criteria]:
    """The criteria that are compared, the presets `default` and `strict`, with the same changes (`key=value`)."""
    return {name: read_criteria(None, changes, name) for name in ("default", "strict")}


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
    with mock.patch.object(runner, "run_tasks", _in_turn), mock.patch.object(scanner, "look_at_camera", _look_once):
        run_filter(root, index, options)
    return judged(index)


def _in_turn(tasks: Sequence[Task], work: Work, **_: Any) -> None:
    """Do what Beam does for many shards; for one, starting it takes longer than the work."""
    for task in tasks:
        work(task)


def _look_once(look: FrameLook, frames: NDArray[np.int64], count: int) -> LookedFrames:
    """Look at the same frames once: the clean episodes are in every set."""
    digest = hashlib.blake2b(b"%d" % count + frames[:, 1].tobytes(), digest_size=16)
    for offset, length in frames[spread(len(frames), count)].tolist():
        digest.update(look.read(offset, length))
    key = digest.digest()
    if key not in _looked:
        _looked[key] = look_at_camera(look, frames, count)
    return _looked[key]


_looked: dict[bytes, LookedFrames] = {}


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
