"""The tasks of a filter run: one per source shard, planned from one listing of each data set's folder."""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from oxe_curate import registry
from oxe_curate.errors import ConfigError, DataError, StorageError
from oxe_curate.filter import scan
from oxe_curate.filter.criteria import Criteria
from oxe_curate.filter.keep_ranges import FIELDS, check_keys, identifies_episodes
from oxe_curate.filter.scan import EXACT_BELOW, FilterTask
from oxe_curate.index.index_json import FrameDetail
from oxe_curate.registry.card import DatasetCard
from oxe_curate.rlds.dataset import RldsDataset, Shard, find
from oxe_curate.rlds.leaf import leaves
from oxe_curate.storage import Folder


@dataclass(frozen=True)
class FilterOptions:
    """Options of `filter`.

    Attributes:
        datasets: `name` or `name:version`; empty for all below the source.
        splits: tfds split expressions; empty for all splits.
        recipes: which of the cards' recipes standardise the actions: `NAME` for all data sets, `DATASET=NAME` for one,
            by any of its names (default: openvla).
        cards: a folder of the user's own cards (default: the folder that an earlier run was given).
        frames: "exact", "span", or None to choose by size and location (see `scan.EXACT_BELOW`).
        look: frames to decode of each episode and camera; 0 for none.
    """

    datasets: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    criteria: Criteria = field(default_factory=Criteria)
    recipes: tuple[str, ...] = ()
    cards: Path | None = None
    frames: FrameDetail | None = None
    look: int = 0
    verify: bool = False
    skip_corrupt: bool = False
    workers: int | None = None
    beam_args: tuple[str, ...] = ()
    progress: bool = True


def existing_source(source: str | Path) -> Folder:
    """The root of the data sets. Raises StorageError if it does not exist."""
    root = Folder.of(source)
    if not root.exists():
        raise StorageError(f"{root}: folder not found; give the folder that contains the TFDS data sets")
    return root


def plan_filter(source: str | Path, out: str | Path, options: FilterOptions) -> list[FilterTask]:
    """All tasks of a run without an earlier one; nothing is read but the lists of shards. Raises as `plan_tasks`."""
    return plan_tasks(find(existing_source(source), options.datasets), Folder.of(out), options)


def plan_tasks(datasets: Sequence[RldsDataset], out: Folder, options: FilterOptions) -> list[FilterTask]:
    """One task per source shard. Raises ConfigError, DataError or StorageError before any work is done."""
    tasks: list[FilterTask] = []
    criteria = options.criteria
    if criteria.keep_ranges is not None and "://" not in criteria.keep_ranges:
        criteria = replace(criteria, keep_ranges=str(Path(criteria.keep_ranges).expanduser().absolute()))
    for dataset in datasets:
        try:
            card = registry.load(dataset.name, options.cards)
        except ConfigError as error:
            raise ConfigError(
                f"{dataset.source}/{dataset.path}: {error} To filter other data sets only, select them with --dataset."
            ) from None
        _check_answered(card, options.cards)
        recipe = recipe_for((dataset.name, card.name, *card.aliases), options.recipes)
        if card.recipes:
            card.recipe(recipe)
        frames = options.frames or ("exact" if dataset.num_bytes < EXACT_BELOW else "span")
        sizes = _sizes(dataset)
        shards = dataset.shards(options.splits)
        _check_complete(dataset, shards, sizes)
        tasks += [
            FilterTask(
                dataset=dataset, shard=shard, card=card, recipe=recipe, criteria=criteria, out=out,
                size=sizes[shard.path], frames=frames, verify=options.verify, skip_corrupt=options.skip_corrupt,
                look=options.look,
            )
            for shard in shards
        ]  # fmt: skip
        scan.Scanner(dataset, card, recipe)  # reports a card that does not fit before any work
    if criteria.keep_ranges is not None:
        _check_keep_ranges(criteria.keep_ranges, datasets, tasks)
    return tasks


def _check_keep_ranges(path: str, datasets: Sequence[RldsDataset], tasks: Sequence[FilterTask]) -> None:
    keyed = [dataset for dataset in datasets if identifies_episodes(leaves(dataset.features)[1])]
    if not keyed:
        raise ConfigError(
            f"{path}: keep_ranges: {', '.join(dataset.label for dataset in datasets)}: no data set has the metadata "
            f"{' and '.join(FIELDS)}, by which the file names episodes; remove the criterion"
        )
    for dataset in keyed:
        check_keys(path, dataset, next(task.shard for task in tasks if task.dataset == dataset))


def _check_answered(card: DatasetCard, cards: Path | None) -> None:
    """Raise ConfigError for a draft that nobody has completed."""
    if card.open_questions:
        path = (cards or registry.CARDS_DIR) / f"{card.name}.yaml"
        count = len(card.open_questions)
        raise ConfigError(
            f"{path}: open_questions: {'1 question is' if count == 1 else f'{count} questions are'} open: "
            f"{' '.join(card.open_questions)} Correct the card, then remove each answered question from open_questions "
            "(or write `open_questions: []`)."
        )


def recipe_for(names: Sequence[str], recipes: Sequence[str]) -> str:
    """Return the recipe that `FilterOptions.recipes` selects for a data set with these names; the last match wins.

    >>> recipe_for(["bc_z"], ["documented", "kuka=openvla"])
    'documented'
    """
    for_all = [recipe for recipe in recipes if "=" not in recipe]
    for_one = [recipe.split("=", 1)[1] for recipe in recipes if recipe.split("=", 1)[0] in names and "=" in recipe]
    return ["openvla", *for_all, *for_one][-1]


def _sizes(dataset: RldsDataset) -> dict[str, int]:
    """Path relative to the source root -> size, of the data set's files."""
    return {name: size for name, is_folder, size in dataset.source.list(dataset.path) if not is_folder}


def _check_complete(dataset: RldsDataset, shards: Sequence[Shard], sizes: Container[str]) -> None:
    """Raise DataError if shards are missing, with the split expressions that select those that are there."""
    missing = [shard for shard in shards if shard.path not in sizes]
    if not missing:
        return
    kept = present_splits(dataset, [shard for shard in shards if shard.path in sizes])
    take = (
        "to use what is there, pass " + " ".join(f"--split {split!r}" for split in kept)
        if kept
        else "none of them is there"
    )
    of_split = f" of its split {missing[0].split!r}" if len({shard.split for shard in shards}) == 1 else ""
    raise DataError(
        f"{dataset.source}/{missing[0].path}: the shard is missing, although dataset_info.json lists it. "
        f"{len(shards) - len(missing)} of {len(shards)} shards{of_split} of {dataset.label} are there. Finish the "
        f"download, or {take}."
    )


def present_splits(dataset: RldsDataset, shards: Iterable[Shard]) -> list[str]:
    """The tfds split expressions that select exactly the given records, such as `train[:300]`.

    Args:
        dataset: the data set.
        shards: (parts of) its shards, sorted by split and number.
    """
    starts = {}
    for split in dataset.split_names:
        whole = dataset.shards([split])
        for shard, start in zip(whole, itertools.accumulate((s.records for s in whole), initial=0), strict=False):
            starts[shard.path] = start
        starts[split] = sum(shard.records for shard in whole)
    runs: list[list[Any]] = []
    for shard in shards:
        first = starts[shard.path] + shard.skip
        if runs and runs[-1][0] == shard.split and runs[-1][2] == first:
            runs[-1][2] += shard.take
        elif shard.take:
            runs.append([shard.split, first, first + shard.take])
    return [
        split if (first, last) == (0, starts[split])
        else f"{split}[{first or ''}:{last if last < starts[split] else ''}]"
        for split, first, last in runs
    ]  # fmt: skip
