"""filter: RLDS shards -> episode index. One Beam element per source shard; index.json is written last."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from oxe_curate import registry
from oxe_curate.beam import local, runner
from oxe_curate.errors import ConfigError, DataError, StorageError
from oxe_curate.filter import across, scan
from oxe_curate.filter.scan import EXACT_BELOW, FilterTask
from oxe_curate.filter.screen import Criteria
from oxe_curate.index.index_json import (
    INDEX_JSON,
    UNFINISHED,
    DatasetEntry,
    FrameDetail,
    IndexJson,
    Summary,
    existing_cards,
)
from oxe_curate.index.store import read_index_meta, shard_files
from oxe_curate.outputs import claim_output, hold_output
from oxe_curate.rlds.dataset import RldsDataset, find
from oxe_curate.storage import Folder

BYTES_PER_WORKER = 2 << 30
"""Scanning skips images, so another process pays off only above this much data."""


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
    """

    datasets: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    criteria: Criteria = field(default_factory=Criteria)
    recipes: tuple[str, ...] = ()
    cards: Path | None = None
    frames: FrameDetail | None = None
    verify: bool = False
    skip_corrupt: bool = False
    workers: int | None = None
    beam_args: tuple[str, ...] = ()
    progress: bool = True


@dataclass(frozen=True)
class FilterResult:
    """The outcome of `filter`: a Summary per data set of the index, and the shards scanned now or before."""

    summaries: dict[str, Summary]
    shards_done: int
    shards_kept: int
    seconds: float
    bytes_scanned: int


def run_filter(source: str | Path, out: str | Path, options: FilterOptions | None = None) -> FilterResult:
    """Scan the source's shards into an episode index at `out`.

    Shards whose index file exists and was made with the same card, criteria and options are not scanned again.

    Raises:
        ConfigError: a name, split, card or criteria file is wrong; `out` is inside the source, or is not a folder for
            this index.
        DataError, CorruptError: a shard does not match its description; the other shards are still indexed.
        StorageError: a file cannot be read or written.
    """
    start = time.monotonic()
    options = options or FilterOptions()
    folder, root = Folder.of(out), Folder.of(source)
    if not root.exists():
        raise StorageError(f"{root}: folder not found; give the folder that contains the TFDS data sets")
    claim_output(out, "index", {"source": source})
    with hold_output(out, "index"):
        return _filter(root, folder, options, start)


def _filter(root: Folder, folder: Folder, options: FilterOptions, start: float) -> FilterResult:
    datasets = find(root, options.datasets)
    if sum(dataset.num_bytes for dataset in datasets) > 2 * BYTES_PER_WORKER:
        local.start_workers_early("oxe_curate.filter.pipeline")
    root = datasets[0].source
    previous, resumed = _previous(folder)
    cards = _cards(options, previous, folder)
    tasks = plan_tasks(datasets, folder, replace(options, cards=cards))
    names = {dataset.name for dataset in datasets}
    _check_same_index(folder, previous, root, options.criteria, names)
    folder.check_writable()
    folder.sweep()
    todo = [task for task in tasks if not _is_done(task)]
    scanned = {task.dataset.name for task in todo}
    versions = {name: entry.version for name, entry in previous.datasets.items()} | {
        d.name: d.version for d in datasets
    }
    if todo:
        previous.retract(folder)
    try:
        runner.run_tasks(
            todo, scan.write_scanned_shard, title="filter", workers=options.workers, bytes_per_worker=BYTES_PER_WORKER,
            beam_args=options.beam_args, progress=options.progress,
        )  # fmt: skip
        changes = across.decide(folder, versions, options.criteria)
    except BaseException:
        _restore(folder, previous, scanned)
        raise
    if changes and not todo:
        previous.retract(folder)
    across.apply_changes(folder, changes)
    seconds = time.monotonic() - start
    entries = {d.name: _entry(d, tasks, options, previous.datasets.get(d.name), scanned, seconds) for d in datasets}
    # counts of a killed run's other data sets may be out of date
    changed = names | {change.dataset for change in changes} | (set(versions) if resumed else set())
    index = IndexJson(
        source=root.uri,
        criteria=asdict(options.criteria),
        cards=str(cards) if cards else None,
        datasets={
            name: replace(entry, summary=_count(folder, name, entry.version)) if name in changed else entry
            for name, entry in (previous.datasets | entries).items()
        },
    )
    index.finish(folder)
    return FilterResult(
        {name: index.datasets[name].summary for name in sorted(index.datasets)},
        len(todo), len(tasks) - len(todo), seconds, sum(task.size for task in todo),
    )  # fmt: skip


def _previous(out: Folder) -> tuple[IndexJson, bool]:
    """The index that an earlier run left in `out`, empty if there is none; and whether that run was killed."""
    for name in (INDEX_JSON, UNFINISHED):
        if out.exists(name):
            try:
                return IndexJson.read(out, name), name == UNFINISHED
            except ConfigError:
                break  # every file is checked by its fingerprint anyway
    return IndexJson(source="", criteria={}, datasets={}), False


def _cards(options: FilterOptions, previous: IndexJson, out: Folder) -> Path | None:
    if options.cards is not None:
        return options.cards.expanduser().absolute()
    return existing_cards(Path(previous.cards), f"{out}/{INDEX_JSON}") if previous.cards else None


def _check_same_index(out: Folder, previous: IndexJson, root: Folder, criteria: Criteria, names: set[str]) -> None:
    """Raise ConfigError if the data sets in `out` and those to be filtered cannot share an index."""
    others = previous.datasets.keys() - names
    problem = None
    if previous.datasets and previous.source != root.uri:
        problem = f"it was made from {previous.source}"
    elif others and previous.criteria != asdict(criteria):
        problem = f"its other data sets ({', '.join(sorted(others))}) were filtered with other criteria"
    if problem:
        raise ConfigError(f"{out} has a different index: {problem}; use another --out, or delete it")


def _restore(out: Folder, previous: IndexJson, scanned: set[str]) -> None:
    """After a failure, write index.json again for the data sets whose files have not changed."""
    others = {name: entry for name, entry in previous.datasets.items() if name not in scanned}
    if scanned and others:
        replace(previous, datasets=others).finish(out)


def plan_tasks(datasets: Sequence[RldsDataset], out: Folder, options: FilterOptions) -> list[FilterTask]:
    """One task per source shard. Raises ConfigError, DataError or StorageError before any work is done."""
    tasks = []
    for dataset in datasets:
        try:
            card = registry.load(dataset.name, options.cards)
        except ConfigError as error:
            raise ConfigError(
                f"{dataset.source}/{dataset.path}: {error} To filter other data sets only, select them with --dataset."
            ) from None
        recipe = recipe_for((dataset.name, card.name, *card.aliases), options.recipes)
        if card.recipes:
            card.recipe(recipe)
        local = dataset.source.is_local
        frames = options.frames or ("exact" if local and dataset.num_bytes < EXACT_BELOW else "span")
        sizes = _sizes(dataset)
        for shard in dataset.shards(options.splits):
            name = shard.path.rsplit("/", 1)[-1]
            if name not in sizes:
                raise DataError(
                    f"{dataset.source}/{shard.path}: the shard is missing, although dataset_info.json lists it; "
                    "download it, or select other shards with --split"
                )
            tasks.append(
                FilterTask(
                    dataset=dataset, shard=shard, card=card, recipe=recipe, criteria=options.criteria, out=out,
                    size=sizes[name], frames=frames, verify=options.verify, skip_corrupt=options.skip_corrupt,
                )
            )  # fmt: skip
        scan.Scanner(dataset, card, recipe)  # reports a card that does not fit before any work
    return tasks


def recipe_for(names: Sequence[str], recipes: Sequence[str]) -> str:
    """Return the recipe that `FilterOptions.recipes` selects for a data set with these names; the last match wins.

    >>> recipe_for(["bc_z"], ["documented", "kuka=openvla"])
    'documented'
    """
    for_all = [recipe for recipe in recipes if "=" not in recipe]
    for_one = [recipe.split("=", 1)[1] for recipe in recipes if recipe.split("=", 1)[0] in names and "=" in recipe]
    return ["openvla", *for_all, *for_one][-1]


def _sizes(dataset: RldsDataset) -> dict[str, int]:
    return {name.rsplit("/", 1)[-1]: size for name, is_folder, size in dataset.source.list(dataset.path)}


def _is_done(task: FilterTask) -> bool:
    if not task.out.exists(task.output):
        return False
    try:
        return bool(read_index_meta(task.out, task.output).get("fingerprint") == task.fingerprint)
    except DataError:
        return False


def _entry(
    dataset: RldsDataset,
    tasks: Sequence[FilterTask],
    options: FilterOptions,
    before: DatasetEntry | None,
    scanned: set[str],
    seconds: float,
) -> DatasetEntry:
    """The data set's entry in index.json, without its counts."""
    task = next((task for task in tasks if task.dataset == dataset), None)
    return DatasetEntry(
        version=dataset.version,
        card=task.card.name if task else None,
        recipe=task.recipe if task else None,
        verdict=task.card.verdict if task else None,
        splits=tuple(sorted({*(before.splits if before else ()), *(options.splits or dataset.split_names)})),
        frames=task.frames if task else None,
        # a run that scans nothing keeps the duration of the run that did
        seconds=round(seconds, 3) if dataset.name in scanned else before.seconds if before else 0.0,
        summary=Summary(),
    )


def _count(out: Folder, name: str, version: str) -> Summary:
    summary = Summary()
    for path in shard_files(out, f"{name}/{version}"):
        summary.add(Summary(**read_index_meta(out, path)["summary"]))
    return summary
