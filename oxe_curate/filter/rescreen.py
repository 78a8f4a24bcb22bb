"""Apply criteria to an existing index, without reading the source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from oxe_curate.errors import ConfigError, quoted
from oxe_curate.filter import across
from oxe_curate.filter.criteria import SCANNED, Criteria
from oxe_curate.filter.plausible import with_findings
from oxe_curate.index.files import write_files
from oxe_curate.index.index_json import IndexJson, Judged, Summary
from oxe_curate.index.store import Index, IndexFiles, dataset_of
from oxe_curate.outputs import hold_output


@dataclass(frozen=True)
class ScreenResult:
    """What criteria make of an index.

    Attributes:
        before, after: data set -> counts.
        judged: data set -> criterion -> what it found.
        changed: index files that say something else.
    """

    before: Mapping[str, Summary]
    after: Mapping[str, Summary]
    judged: Mapping[str, Mapping[str, Judged]]
    changed: int


def screen_index(out: str | Path, criteria: Criteria, dry_run: bool = False, progress: bool = False) -> ScreenResult:
    """Decide again what becomes of each episode of an index; the result is that of `filter` with these criteria.

    Args:
        out: folder that `filter` wrote.
        criteria: the new ones.
        dry_run: only count, and write nothing.
        progress: whether to show a progress bar.

    Raises:
        ConfigError: it is not an index, or a criterion needs the source.
        DataError: the index is damaged or incomplete.
    """
    index = Index.open(out)
    check_scanned(index, criteria)
    for name in index.datasets:
        index.files(name)  # all are there
    before = {name: entry.summary for name, entry in index.datasets.items()}
    if dry_run:
        return _result(before, across.decide(index.contents, criteria, progress), index)
    with hold_output(str(out), "index"):
        data = IndexJson.read(index.folder)
        contents = IndexFiles.to_read_again(index.folder, index.contents.entries)
        made = across.decide(contents, criteria, progress)
        result = _result(before, made, index)
        files = dict(index.contents.entries)
        if result.changed:
            data.retract(index.folder)
            files |= across.apply_decisions(contents, made)
        screened = replace(
            data,
            criteria=asdict(criteria),
            files_sha256=write_files(index.folder, files),
            datasets={
                name: replace(entry, summary=result.after[name], judged=dict(result.judged.get(name, {})))
                for name, entry in data.datasets.items()
            },
        )
        found = with_findings(contents.with_entries(files), index.contents.entries, data, screened)
        replace(screened, datasets=found).finish(index.folder)
    return result


def check_scanned(index: Index, criteria: Criteria) -> None:
    """Raise ConfigError if the criteria differ from the index's in a setting for which the source must be read."""
    now, then = asdict(criteria), index.criteria
    for name in SCANNED:
        if now[name] != then.get(name) and not (name == "bad_image" and not now[name]):
            raise ConfigError(
                f"{index.folder}: was filtered with {name}: {quoted(then.get(name))}; {quoted(now[name])} needs the "
                f"source; run `oxe-curate filter SOURCE --out {index.folder}` with these criteria"
            )


def _result(before: Mapping[str, Summary], made: across.Decisions, index: Index) -> ScreenResult:
    after = {name: Summary() for name in index.datasets}
    for path, decision in made.files.items():
        name, version = dataset_of(path)
        if index.datasets[name].version == version:
            after[name].add(decision.summary)
    return ScreenResult(before, after, made.judged, sum(decision.changed for decision in made.files.values()))
