"""Merge indexes of parts of the same data, as an array of jobs writes them, into the index that one run would write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from oxe_curate.errors import ConfigError, CurateError, DataError
from oxe_curate.filter import across
from oxe_curate.filter.criteria import Criteria
from oxe_curate.filter.plan import present_splits
from oxe_curate.filter.plausible import with_findings
from oxe_curate.index.files import IndexFile, write_files
from oxe_curate.index.index_json import DatasetEntry, IndexJson, Summary
from oxe_curate.index.source_shards import read_looks, write_looks
from oxe_curate.index.store import Index, IndexFiles, count_episodes, describe_file
from oxe_curate.outputs import claim_output, hold_output
from oxe_curate.progress import Bar
from oxe_curate.rlds.dataset import RldsDataset, Shard, find
from oxe_curate.storage import Folder


@dataclass(frozen=True)
class MergeResult:
    """The outcome of a merge: a Summary per data set, the number of index files, and shards that no part has.

    Attributes:
        missing: data set -> split expressions of the shards of its filtered splits that no part has.
    """

    summaries: dict[str, Summary]
    files: int
    missing: dict[str, list[str]]


def merge_indexes(parts: Sequence[str | Path], out: str | Path, progress: bool = True) -> MergeResult:
    """Merge indexes into a new one at `out`; copies of episodes are found again, across all parts.

    The result has the bytes of the index that one `filter` run over all parts would write, except for the seconds.

    Args:
        parts: folders that `filter` wrote, with the same software, criteria, recipes and cards.
        out: folder for the merged index; what an interrupted merge of the same parts left there is used.
        progress: whether to show a progress bar.

    Raises:
        ConfigError: the parts do not fit together, such as two that have the same shard; `out` holds something else.
        DataError: a part is damaged or incomplete.
    """
    opened = [Index.open(part) for part in parts]
    claim_output(out, "index", {f"part {index.folder}": index.folder.uri for index in opened})
    _check_alike(opened)
    origin = _origins(opened)
    selected = {name: _selected(name, opened) for name in sorted({name for index in opened for name in index.datasets})}
    folder = Folder.of(out)
    with hold_output(out, "index"):
        folder.check_writable()
        folder.sweep()
        _check_empty(folder, origin)
        merged = _merged_json(opened, selected)
        merged.retract(folder)
        files = _copy(folder, origin, progress)
        contents = IndexFiles.to_read_again(folder, files)
        made = across.decide(contents, Criteria(**merged.criteria), progress)
        files |= across.apply_decisions(contents, made)
        write_looks(folder, {path: look for index in opened for path, look in read_looks(index.folder).items()})
        summaries = {name: count_episodes(files, name, entry.version) for name, entry in merged.datasets.items()}
        done = replace(
            merged,
            files_sha256=write_files(folder, files),
            datasets={
                name: replace(entry, summary=summaries[name], judged=dict(made.judged.get(name, {})))
                for name, entry in merged.datasets.items()
            },
        )
        replace(done, datasets=with_findings(contents.with_entries(files), {}, merged, done)).finish(folder)
    missing = {name: _missing(dataset, shards) for name, (dataset, shards) in selected.items()}
    return MergeResult(summaries, len(files), {name: splits for name, splits in missing.items() if splits})


def _check_alike(parts: Sequence[Index]) -> None:
    """Raise ConfigError if parts were made in different ways."""
    if not parts:
        raise ConfigError("no index to merge; give the folders that filter wrote")
    first = parts[0]
    for part in parts[1:]:
        for what in ("software", "criteria", "cards"):
            one, other = (_setting(index, what) for index in (first, part))
            if one != other:
                raise ConfigError(
                    f"{part.folder} does not fit {first.folder}: {_difference(what, one, other)}. Filter one of them "
                    "again with the options of the other."
                )
    entries: dict[str, tuple[Index, DatasetEntry]] = {}
    for part in parts:
        for name, entry in part.datasets.items():
            before, known = entries.setdefault(name, (part, entry))
            for what in ("version", "card", "recipe", "frames"):
                one, other = getattr(known, what), getattr(entry, what)
                if one != other:
                    problem = _difference(f"the {what} of {name}", one, other)
                    raise ConfigError(f"{part.folder} does not fit {before.folder}: {problem}")
            if before.source_of(name) != part.source_of(name):
                raise ConfigError(
                    f"{part.folder} does not fit {before.folder}: {name} was read from {before.source_of(name)} and "
                    f"{part.source_of(name)}"
                )


def _setting(index: Index, what: str) -> object:
    return getattr(IndexJson.read(index.folder), what)


def _difference(what: str, one: object, other: object) -> str:
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
        return f"{what} differ in {keys[0]}: {one.get(keys[0])!r} and {other.get(keys[0])!r}"
    return f"{what} {'differs' if what.startswith('the ') else 'differ'}: {one!r} and {other!r}"


def _origins(parts: Sequence[Index]) -> dict[str, Index]:
    """Index file -> the part that has it. Raises ConfigError if two parts have the same one."""
    found: dict[str, Index] = {}
    for part in parts:
        for name in part.datasets:
            for path in part.files(name):
                if path in found:
                    raise ConfigError(
                        f"{found[path].folder} and {part.folder} both have {path}: a shard may be in one part only. "
                        "Divide the data at shard boundaries: `oxe-curate slices SOURCE --parts N` prints the options."
                    )
                found[path] = part
    return found


def _selected(name: str, parts: Sequence[Index]) -> tuple[RldsDataset, list[Shard]]:
    """A data set and the shards that its parts were filtered from, which must be those that they have."""
    mine = [part for part in parts if name in part.datasets]
    version = mine[0].datasets[name].version
    try:
        (dataset,) = find(mine[0].source_of(name), [f"{name}:{version}"])
        shards = dataset.shards(split for part in mine for split in part.datasets[name].splits)
    except CurateError as error:
        raise type(error)(f"cannot compare the parts with the data set {name}: {error}") from None
    present = {path for part in mine for path in part.files(name)}
    absent = [shard.index_path for shard in shards if shard.index_path not in present]
    if absent:
        raise DataError(
            f"{len(absent)} of {len(shards)} index files of {name} are missing, such as {absent[0]}; "
            "filter the part again"
        )
    return dataset, shards


def _missing(dataset: RldsDataset, shards: Iterable[Shard]) -> list[str]:
    """Split expressions of what a data set's filtered splits have and the parts do not."""
    taken = {shard.path for shard in shards}
    whole = dataset.shards(sorted({shard.split for shard in shards}))
    return present_splits(dataset, [shard for shard in whole if shard.path not in taken])


def _check_empty(out: Folder, origin: Mapping[str, Index]) -> None:
    others = [f.name for f in out.list_files() if f.name.endswith(".parquet") and f.name not in origin]
    if others:
        raise ConfigError(f"--out {out}: holds another index, with {others[0]}. Choose another folder.")


def _merged_json(parts: Sequence[Index], selected: Mapping[str, tuple[RldsDataset, list[Shard]]]) -> IndexJson:
    """index.json of the merged index, without counts. The most common root is that of the whole index."""
    datasets = {}
    roots = [selected[name][0].source.uri for name in selected]
    root = max(sorted(set(roots)), key=roots.count)
    for name, (dataset, shards) in selected.items():
        entries = [part.datasets[name] for part in parts if name in part.datasets]
        datasets[name] = replace(
            entries[0],
            splits=tuple(sorted(present_splits(dataset, shards))),
            seconds=round(sum(entry.seconds for entry in entries), 3),
            summary=Summary(),
            source=dataset.source.uri if dataset.source.uri != root else None,
            facts=None,  # of all parts together, like the findings
        )
    first = IndexJson.read(parts[0].folder)
    return replace(first, source=root, datasets=datasets, files_sha256="")


def _copy(out: Folder, origin: Mapping[str, Index], progress: bool) -> dict[str, IndexFile]:
    """Copy the index files, and compare every byte with the checksums in them."""

    def copy(path: str) -> IndexFile:
        part = origin[path]
        entry = part.entry(path)
        data = part.folder.read_bytes(path)
        out.publish_bytes(path, data)
        copied = describe_file(out, path, whole=True)
        if copied.footer_sha256 != entry.footer_sha256:
            raise DataError(f"{part.folder}/{path}: changed after filter wrote it; filter this part again")
        return copied

    files = {}
    with ThreadPoolExecutor(8) as pool, Bar("merge", sum(o.entry(p).bytes for p, o in origin.items()), progress) as bar:
        for path, entry in zip(origin, pool.map(copy, origin), strict=True):
            files[path] = entry
            bar.add(entry.bytes)
    return files
