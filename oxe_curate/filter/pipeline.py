"""filter: RLDS shards -> episode index. One Beam element per source shard; index.json is written last."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from oxe_curate import __version__, registry
from oxe_curate.beam import runner
from oxe_curate.errors import ConfigError, DataError, StorageError
from oxe_curate.filter import across, scan
from oxe_curate.filter.scan import EXACT_BELOW, FilterTask, FrameDetail
from oxe_curate.filter.screen import Criteria
from oxe_curate.index.store import INDEX_JSON, Summary, read_index_meta, shard_files, write_index_json
from oxe_curate.rlds.dataset import RldsDataset, find
from oxe_curate.storage import Folder

UNFINISHED = "unfinished.json"
"""What index.json said of data sets that a run is about to change although it was not asked to scan them."""
BYTES_PER_WORKER = 2 << 30
"""Scanning passes over images, so another process is worth its start only above this much data."""


@dataclass(frozen=True)
class FilterOptions:
    """What `filter` is asked to do.

    Attributes:
        datasets: `name` or `name:version`; empty means all below the source.
        splits: tfds split expressions; empty means all splits.
        recipes: which of the cards' recipes standardise the actions: `NAME` for all, `DATASET=NAME` for one, under
            any of its names. Without any: openvla.
        cards: a folder of the user's own cards.
        frames: "exact", "span", or None to choose by size and place (see `scan.EXACT_BELOW`).
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
    """What `filter` did: a Summary per data set of the index, and how many shards were done now or before."""

    summaries: dict[str, Summary]
    shards_done: int
    shards_kept: int
    seconds: float
    bytes_scanned: int


def run_filter(source: str | Path, out: str | Path, options: FilterOptions | None = None) -> FilterResult:
    """Scan the source's shards into an episode index at `out`.

    Shards whose index file is there and was made by the same card, criteria and options are left as they are.

    Raises:
        ConfigError: a name, split, card or criteria file is wrong, or `out` holds an index of something else.
        DataError, CorruptError: a shard is not what its description says; other shards' work is kept.
        StorageError: something cannot be read or written.
    """
    start = time.monotonic()
    options = options or FilterOptions()
    folder, root = Folder.of(out), Folder.of(source)
    if not root.exists():
        raise StorageError(f"{root}: no such folder. Give the folder that holds the TFDS data sets.")
    datasets = find(root, options.datasets)
    if sum(dataset.num_bytes for dataset in datasets) > 2 * BYTES_PER_WORKER:
        runner.start_workers_early("oxe_curate.filter.pipeline")
    tasks = plan_tasks(datasets, folder, options)
    root = datasets[0].source
    previous = _previous(folder, root, options, {d.name for d in datasets})
    folder.check_writable()
    folder.sweep()
    todo = [task for task in tasks if not _is_done(task)]
    if todo:
        _retract(folder, previous, {task.dataset.name for task in todo})
    runner.run_tasks(
        todo, scan.write_scanned_shard, title="filter", workers=options.workers, bytes_per_worker=BYTES_PER_WORKER,
        beam_args=options.beam_args, progress=options.progress,
    )  # fmt: skip
    previous = _compare(folder, datasets, todo, options.criteria, previous)
    seconds = time.monotonic() - start
    summaries = _write_json(folder, root, datasets, tasks, todo, options, previous, seconds)
    return FilterResult(summaries, len(todo), len(tasks) - len(todo), seconds, sum(t.size for t in todo))


def plan_tasks(datasets: Sequence[RldsDataset], out: Folder, options: FilterOptions) -> list[FilterTask]:
    """One task per source shard. Raises ConfigError, DataError or StorageError before any work is done."""
    tasks = []
    for dataset in datasets:
        try:
            card = registry.load(dataset.name, options.cards)
        except ConfigError as error:
            raise ConfigError(
                f"{dataset.source}/{dataset.path}: {error} Write a card for it (--cards FOLDER; see CONTRIBUTING.md), "
                "or name the data sets that you want with --dataset."
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
                    f"{dataset.source}/{shard.path}: the shard is missing, although dataset_info.json lists it. "
                    "Download it, or choose other shards with --split."
                )
            tasks.append(
                FilterTask(
                    dataset=dataset, shard=shard, card=card, recipe=recipe, criteria=options.criteria, out=out,
                    size=sizes[name], frames=frames, verify=options.verify, skip_corrupt=options.skip_corrupt,
                )
            )  # fmt: skip
        scan.Scanner(dataset, card, recipe)  # a card that does not fit is reported before any work
    return tasks


def recipe_for(names: Sequence[str], recipes: Sequence[str]) -> str:
    """The recipe that `FilterOptions.recipes` gives a data set with these names; the last one that fits counts.

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


def _previous(out: Folder, root: Folder, options: FilterOptions, names: set[str]) -> dict[str, Any]:
    """What an earlier run left in `out`. Raises ConfigError if the two indexes cannot be one."""
    found = [name for name in (INDEX_JSON, UNFINISHED) if out.exists(name)]
    if not found:
        return {}
    try:
        data: dict[str, Any] = json.loads(out.read_bytes(found[0]))
        if found[1:]:
            data["datasets"] = json.loads(out.read_bytes(UNFINISHED))["datasets"] | data["datasets"]
        others = set(data["datasets"]) - names
        problem = None
        if data["source"] != root.uri:
            problem = f"it was made from {data['source']}"
        elif others and data["criteria"] != asdict(options.criteria):
            problem = f"its other data sets ({', '.join(sorted(others))}) were screened by other criteria"
    except (ValueError, KeyError, TypeError):
        return {}  # unreadable: everything below it is checked file by file anyway
    if problem:
        raise ConfigError(f"{out} holds another index: {problem}. Use another --out, or delete it.")
    return data


def _retract(out: Folder, previous: dict[str, Any], names: set[str]) -> None:
    """Take data sets out of index.json before their files change: it vouches for what lies beside it."""
    others = {name: entry for name, entry in previous.get("datasets", {}).items() if name not in names}
    if others:
        write_index_json(out, {**previous, "datasets": others})
    else:
        out.remove(INDEX_JSON)


def _compare(
    out: Folder,
    datasets: Sequence[RldsDataset],
    todo: Sequence[FilterTask],
    criteria: Criteria,
    previous: dict[str, Any],
) -> dict[str, Any]:
    """Decide what needs all episodes of the index; return `previous` with the counts of what changed besides."""
    mine = {d.name: d.version for d in datasets}
    entries: dict[str, Any] = dict(previous.get("datasets", {}))
    versions = {name: entry["version"] for name, entry in entries.items()} | mine
    changes = across.decide(out, versions, criteria)
    touched = {change.dataset for change in changes}
    others = {name: entry for name, entry in entries.items() if name in touched - mine.keys()}
    if others:
        out.publish_bytes(UNFINISHED, json.dumps({**previous, "datasets": others}).encode())
    if touched - {task.dataset.name for task in todo}:
        _retract(out, previous, touched | {task.dataset.name for task in todo})
    across.apply_changes(out, changes)
    for name, entry in others.items():
        entries[name] = {**entry, **asdict(_count(out, name, entry["version"]))}
    return {**previous, "datasets": entries} if previous else previous


def _count(out: Folder, name: str, version: str) -> Summary:
    summary = Summary()
    for path in shard_files(out, f"{name}/{version}"):
        summary.add(Summary(**read_index_meta(out, path)["summary"]))
    return summary


def _write_json(
    out: Folder,
    root: Folder,
    datasets: Sequence[RldsDataset],
    tasks: Sequence[FilterTask],
    todo: Sequence[FilterTask],
    options: FilterOptions,
    previous: dict[str, Any],
    seconds: float,
) -> dict[str, Summary]:
    entries: dict[str, Any] = dict(previous.get("datasets", {}))
    for dataset in datasets:
        mine = [task for task in tasks if task.dataset == dataset]
        summary = _count(out, dataset.name, dataset.version)
        before = entries.get(dataset.name, {})
        entries[dataset.name] = {
            "version": dataset.version,
            "card": mine[0].card.name if mine else None,
            "recipe": mine[0].recipe if mine else None,
            "verdict": mine[0].card.verdict if mine else None,
            "splits": sorted({*before.get("splits", []), *(options.splits or dataset.split_names)}),
            "frames": mine[0].frames if mine else None,
            # a run that finds everything done leaves the time of the run that did it
            "seconds": round(seconds, 3) if any(task in mine for task in todo) else before.get("seconds", 0.0),
            **asdict(summary),
        }
    write_index_json(
        out,
        {
            "software": f"oxe-curate {__version__}",
            "source": root.uri,
            "criteria": asdict(options.criteria),
            "datasets": {name: entries[name] for name in sorted(entries)},
        },
    )
    out.remove(UNFINISHED)
    return {name: _summary(entry) for name, entry in sorted(entries.items())}


def _summary(entry: dict[str, Any]) -> Summary:
    return Summary(**{key: entry[key] for key in Summary.__dataclass_fields__})
