"""filter: RLDS shards -> episode index. One Beam element per source shard; index.json is written last."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from oxe_curate.atomic import TEMPORARY
from oxe_curate.beam import local, runner
from oxe_curate.errors import ConfigError, DataError
from oxe_curate.filter import across, plausible, scan
from oxe_curate.filter.criteria import Criteria
from oxe_curate.filter.finished import finished, is_same_shard, look_at
from oxe_curate.filter.plan import FilterOptions, existing_source, plan_tasks
from oxe_curate.filter.scanner import FilterTask
from oxe_curate.index.files import IndexFile, read_files, write_files
from oxe_curate.index.index_json import INDEX_JSON, UNFINISHED, DatasetEntry, IndexJson, Judged, Summary, existing_cards
from oxe_curate.index.rows_file import Written
from oxe_curate.index.source_shards import read_looks, write_looks
from oxe_curate.index.store import (
    KEPT,
    IndexFiles,
    count_episodes,
    dataset_of,
    describe_file,
    describe_files,
    split_of,
)  # fmt: skip
from oxe_curate.lru import LruCache
from oxe_curate.outputs import claim_output, hold_output
from oxe_curate.rlds.dataset import RldsDataset, find
from oxe_curate.storage import Folder

BYTES_PER_WORKER = 2 << 30
"""Scanning skips images, so another process pays off only above this much data."""


@dataclass(frozen=True)
class FilterResult:
    """The outcome of `filter`: a Summary per data set of the index, and the shards scanned now or before.

    Attributes:
        judged: data set -> criterion -> what it found, of those that compare an episode with its data set.
        ignored: folders that look like versions of the data sets but are not (see `RldsDataset.ignored`).
    """

    summaries: dict[str, Summary]
    judged: dict[str, dict[str, Judged]]
    shards_done: int
    shards_kept: int
    seconds: float
    bytes_scanned: int
    ignored: tuple[str, ...] = ()


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
    folder, root = Folder.of(out), existing_source(source)
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
    _check_same_index(folder, previous, options.criteria, names)
    folder.check_writable()
    folder.sweep()
    # a killed run may have rewritten files that files.json lists
    known = {} if resumed else _known_files(folder, previous)
    before, now = read_looks(folder), look_at(tasks)
    sizes = {file.name: file.size for file in folder.list_files()}
    done = finished(tasks, known, before, now, sizes, options.verify, options.progress)
    _check_moved(folder, previous, tasks, known, done)
    todo = [task for task in tasks if task.output not in done]
    scanned = {task.dataset.name for task in todo}
    files = done | _carried(folder, previous, known, sizes, tasks)
    if todo:
        previous.retract(folder)
    own = Written(LruCache(KEPT))
    try:
        with own:
            runner.run_tasks(
                todo, scan.write_scanned_shard, title="filter", workers=options.workers,
                bytes_per_worker=BYTES_PER_WORKER, beam_args=options.beam_args, progress=options.progress,
            )  # fmt: skip
        others = [task.output for task in todo if task.output not in own.entries]
        written = files | own.entries | describe_files(folder, others)
        # decisions are a function of the files and the criteria: the same as before if neither changed
        same = not resumed and written == known and previous.criteria == asdict(options.criteria)
        index_files = IndexFiles.to_read_again(folder, written, own.tables)
        made = None if same else across.decide(index_files, options.criteria, options.progress)
    except BaseException:
        _restore(folder, previous, scanned, files)
        raise
    if made and not todo and any(decision.changed for decision in made.files.values()):
        previous.retract(folder)
    judged = made.judged if made else {name: entry.judged for name, entry in previous.datasets.items()}
    changed = across.apply_decisions(index_files, made) if made else {}
    folder.sync_files(own.entries.keys() - changed.keys())
    written |= changed
    seconds = time.monotonic() - start
    entries = {d.name: _entry(d, tasks, options, previous.datasets.get(d.name), scanned, seconds) for d in datasets}
    roots = {name: entry.source or previous.source for name, entry in previous.datasets.items()}
    roots |= {dataset.name: dataset.source.uri for dataset in datasets}
    root_uri = previous.source if previous.source in roots.values() else root.uri
    index = IndexJson(
        source=root_uri,
        criteria=asdict(options.criteria),
        cards=str(cards) if cards else None,
        files_sha256=write_files(folder, written),
        datasets={
            name: replace(
                entry,
                summary=count_episodes(written, name, entry.version),
                source=roots[name] if roots[name] != root_uri else None,
                judged=dict(judged.get(name, {})),
            )
            for name, entry in (previous.datasets | entries).items()
        },
    )
    found = plausible.with_findings(index_files.with_entries(written), known, previous, index)
    index = replace(index, datasets=found)
    write_looks(folder, before | now)
    index.finish(folder)
    return FilterResult(
        {name: index.datasets[name].summary for name in sorted(index.datasets)},
        {name: index.datasets[name].judged for name in sorted(index.datasets)},
        len(todo), len(tasks) - len(todo), seconds, sum(task.size for task in todo),
        tuple(f"{dataset.name}/{folder}" for dataset in datasets for folder in dataset.ignored),
    )  # fmt: skip


def _previous(out: Folder) -> tuple[IndexJson, bool]:
    """The index that an earlier run left in `out`, empty if there is none; and whether that run was killed."""
    for name in (INDEX_JSON, UNFINISHED):
        if out.exists(name):
            try:
                return IndexJson.read(out, name), name == UNFINISHED
            except (ConfigError, DataError):
                break  # every file is checked by its fingerprint anyway
    return IndexJson(source="", criteria={}, datasets={}), False


def _cards(options: FilterOptions, previous: IndexJson, out: Folder) -> Path | None:
    if options.cards is not None:
        return options.cards.expanduser().absolute()
    return existing_cards(Path(previous.cards), f"{out}/{INDEX_JSON}") if previous.cards else None


def _known_files(out: Folder, previous: IndexJson) -> dict[str, IndexFile]:
    """files.json of an earlier run; empty if it cannot be used, so that every file is read and checked."""
    try:
        return read_files(out, previous.files_sha256 or None)
    except DataError:
        return {}


def _check_same_index(out: Folder, previous: IndexJson, criteria: Criteria, names: set[str]) -> None:
    """Raise ConfigError if the data sets in `out` and those to be filtered cannot share an index."""
    others = previous.datasets.keys() - names
    if others and previous.criteria != asdict(criteria):
        raise ConfigError(
            f"{out} has a different index: its other data sets ({', '.join(sorted(others))}) were filtered with other "
            "criteria; use another --out, or delete it"
        )


def _check_moved(
    out: Folder,
    previous: IndexJson,
    tasks: Sequence[FilterTask],
    known: Mapping[str, IndexFile],
    done: Mapping[str, IndexFile],
) -> None:
    """Raise ConfigError if a data set is now read from another folder, whose shards are not those of the index."""
    for task in tasks:
        entry = previous.datasets.get(task.dataset.name)
        if entry is None or entry.version != task.dataset.version or task.output in done or task.output not in known:
            continue
        indexed = entry.source or previous.source
        if indexed != task.dataset.source.uri and not is_same_shard(task, known[task.output]):
            raise ConfigError(
                f"{out} has a different index: {task.dataset.name} was filtered from {indexed}, and {task.name} "
                "differs from the shard there; use another --out, or delete it"
            )


def _carried(
    out: Folder,
    previous: IndexJson,
    known: Mapping[str, IndexFile],
    sizes: Mapping[str, int],
    tasks: Sequence[FilterTask],
) -> dict[str, IndexFile]:
    """Entries of the index files that this run keeps without looking at their shards: other data sets and splits.

    Raises:
        DataError: one of them is missing or damaged.
    """
    planned = {task.output for task in tasks}
    versions = {task.dataset.name: task.dataset.version for task in tasks}
    carried = {}
    for name, entry in previous.datasets.items():
        if versions.get(name, entry.version) != entry.version:
            continue
        listed = [path for path in known if dataset_of(path) == (name, entry.version)]
        present = [
            path
            for path in sizes
            if path.startswith(f"{name}/{entry.version}/")
            and path.endswith(".parquet")
            and TEMPORARY not in path
            and split_of(path) in entry.split_names
        ]
        for path in sorted({*(listed or present)} - planned):
            if path not in sizes:
                raise DataError(
                    f"{out}/{path}: index file of {name} not found; filter {name} (split {split_of(path)}) in the same "
                    "run"
                )
            found = known.get(path)
            carried[path] = found if found and found.bytes == sizes[path] else describe_file(out, path, whole=True)
    return carried


def _restore(out: Folder, previous: IndexJson, scanned: set[str], files: Mapping[str, IndexFile]) -> None:
    """After a failure, write index.json again for the data sets whose files have not changed."""
    others = {name: entry for name, entry in previous.datasets.items() if name not in scanned}
    if scanned and others:
        replace(previous, datasets=others, files_sha256=write_files(out, files)).finish(out)


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


__all__ = ["FilterOptions", "FilterResult", "run_filter"]
