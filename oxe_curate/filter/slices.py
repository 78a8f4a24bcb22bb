"""Divide data sets into parts at shard boundaries, for an array of jobs that each filter one part."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from oxe_curate.errors import ConfigError
from oxe_curate.filter.plan import present_splits
from oxe_curate.rlds.dataset import Shard, find
from oxe_curate.storage import Folder


@dataclass(frozen=True)
class Slice:
    """One part of one data set.

    Attributes:
        dataset: its name and version, as for `--dataset`.
        splits: tfds split expressions that select whole shards.
        shards: how many they are. bytes: their size.
    """

    dataset: str
    splits: tuple[str, ...]
    shards: int
    bytes: int

    @property
    def options(self) -> str:
        """The options of `filter` that select the part, quoted for a shell."""
        return shlex.join(["--dataset", self.dataset, *(word for split in self.splits for word in ("--split", split))])


def plan_slices(
    source: str | Path, parts: int, datasets: Sequence[str] = (), splits: Iterable[str] = ()
) -> list[Slice]:
    """Divide data sets into about `parts` parts of similar size; no shard is in two of them.

    Args:
        source: folder of TFDS data sets.
        parts: number of parts; there are fewer if there are fewer shards, and at least one per data set.
        datasets: `name` or `name:version`; empty for all below the source.
        splits: tfds split expressions; empty for all splits.

    Raises:
        ConfigError, DataError: as `filter`.
    """
    if parts < 1:
        raise ConfigError(f"--parts {parts}: expected at least 1")
    chosen = [(dataset, dataset.shards(splits)) for dataset in find(Folder.of(source), datasets)]
    sizes = {
        f"{dataset.source}/{file.name}": file.size
        for dataset, _ in chosen
        for file in dataset.source.list_files(dataset.path)
    }
    total = sum(sizes.get(f"{dataset.source}/{shard.path}", 0) for dataset, shards in chosen for shard in shards)
    found = []
    for dataset, shards in chosen:
        weights = [sizes.get(f"{dataset.source}/{shard.path}", 0) for shard in shards]
        count = max(1, min(len(shards), round(parts * sum(weights) / max(total, 1))))
        for group in _groups(shards, weights, count):
            bytes_ = sum(sizes.get(f"{dataset.source}/{shard.path}", 0) for shard in group)
            expressions = tuple(present_splits(dataset, group))
            found.append(Slice(f"{dataset.name}:{dataset.version}", expressions, len(group), bytes_))
    return found


def _groups(shards: Sequence[Shard], weights: Sequence[int], count: int) -> list[list[Shard]]:
    """Cut the shards, in order, into `count` runs of similar weight; none is empty."""
    groups: list[list[Shard]] = []
    left, start = sum(weights), 0
    for remaining in range(count, 0, -1):
        stop, weight = start, 0
        while stop < len(shards) - (remaining - 1) and (
            stop == start or weight + weights[stop] / 2 <= left / remaining
        ):
            weight += weights[stop]
            stop += 1
        stop = len(shards) if remaining == 1 else stop
        groups.append(list(shards[start:stop]))
        left, start = left - weight, stop
    return [group for group in groups if group]
