"""What only the data show about a mixture: missing cameras, copies, bounds, implausible actions, nothing held out.

`mixture check` and `tokenize` both call `data_faults`, so that one reports what the other refuses.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from oxe_curate import registry
from oxe_curate.actions.bounds import Bounds, lookup, read_statistics
from oxe_curate.errors import ConfigError, CurateError, did_you_mean
from oxe_curate.filter.plausible import facts_of_index
from oxe_curate.index.duplicates import check_leaks
from oxe_curate.index.query import count_kept
from oxe_curate.index.store import Index, IndexFiles, split_of
from oxe_curate.mixture import sampling
from oxe_curate.mixture.spec import Fault, IndexedDataset, Mixture
from oxe_curate.quality.action_facts import LEVELS, ActionFacts
from oxe_curate.quality.findings import CardFacts, DataFinding
from oxe_curate.quality.kin import UsedBounds, judge_bounds
from oxe_curate.quality.plausibility import judge_actions


def data_faults(
    mixture: Mixture, index: Index, found: Sequence[IndexedDataset], base: Path | None, cards: Path | None = None
) -> Iterator[Fault]:
    """Everything that the index shows about the entries that it has.

    Args:
        mixture: the mixture.
        index: the opened index.
        found: the entries, as `resolve` finds them.
        base: folder of the mixture file; None: a relative path of the bounds is relative to the working folder.
        cards: the user's own cards; None: those that filter was given.

    Raises:
        DataError: an index file is damaged.
    """
    usable = []
    for source in found:
        mine = [*_no_episode(index, source), *_no_frames(index, source, mixture)]
        yield from mine
        yield from _leaks(index, source)
        usable += [] if any(fault.code == "empty" for fault in mine) else [source]
    yield from _counted_twice(index, usable)
    yield from _implausible(mixture, index, usable, base, index.find_cards(cards))
    yield from _not_held_out(mixture, index, usable)


def _paths(index: Index, source: IndexedDataset) -> list[str]:
    """The index files of the splits that are drawn from."""
    return [path for path in index.files(source.dataset) if split_of(path) in source.entry.splits]


def _no_episode(index: Index, source: IndexedDataset) -> Iterator[Fault]:
    entry = index.datasets[source.dataset]
    if count_kept(index, source.dataset, source.entry.splits)[0]:
        return
    name, splits = source.entry.name, ", ".join(source.entry.splits)
    message = f"{name!r} has no kept episode in {splits} ({entry.drop_reasons or 'others have'})"
    yield Fault("empty", name, "datasets", message, "Remove it, draw other splits, or filter with other criteria.")


def _no_frames(index: Index, source: IndexedDataset, mixture: Mixture) -> Iterator[Fault]:
    """Cameras that the card has and the data have not, by the first index file with a kept episode."""
    for path in _paths(index, source):
        table = index.table(path, ["kept", "camera_spans"])
        spans = table.filter(table["kept"])["camera_spans"].combine_chunks()
        if not len(spans):
            continue
        column = spans.chunk(0) if isinstance(spans, pa.ChunkedArray) else spans
        roles = set(pc.unique(column.keys).to_pylist())
        for role in mixture.image.cameras:
            if role not in roles:
                message = f"{source.entry.name!r} has no frames of a {role} camera in the index"
                advice = f"{did_you_mean(role, sorted(roles))} Remove the camera from the mixture, or the data set."
                yield Fault("no_camera", source.entry.name, "image.cameras", message, advice)
        return


def _leaks(index: Index, source: IndexedDataset) -> Iterator[Fault]:
    try:
        allowed = bool(index.criteria.get("allow_leak"))
        check_leaks(index.datasets, {source.dataset: source.entry.splits}, allowed)
    except ConfigError as error:
        message, _, advice = str(error).partition(" Leave ")
        yield Fault("leak", source.entry.name, "datasets", message.removesuffix("."), f"Leave {advice}")


# ── copies ───────────────────────────────────────────────────────────────────────────────────────────────────


def _counted_twice(index: Index, found: Sequence[IndexedDataset]) -> Iterator[Fault]:
    """Pairs of entries that share shards or episodes, by the copies that filter found."""
    shards: dict[str, dict[str, int]] = {}
    copies: dict[str, set[str]] = {}
    for source in found:
        entries = {path: index.entry(path) for path in _paths(index, source)}
        shards[source.dataset] = {e.shard.digest: e.summary.kept for e in entries.values() if e.summary.kept}
        copies[source.dataset] = set()
        for path, entry in entries.items():
            if entry.summary.copies:
                table = index.table(path, ["kept", "duplicate_of"])
                copies[source.dataset] |= set(table.filter(table["kept"])["duplicate_of"].drop_null().to_pylist())
    for i, one in enumerate(found):
        for two in found[:i]:
            shared = shards[one.dataset].keys() & shards[two.dataset].keys()
            same = max(
                sum(shards[one.dataset][digest] for digest in shared),
                _copied(copies, one.dataset, two.dataset),
            )
            if not same:
                continue
            kept = min(index.datasets[s.dataset].summary.kept for s in (one, two))
            message = f"{one.entry.name!r} has {same:,} of the episodes of {two.entry.name!r} ({same / kept:.0%})"
            advice = "Remove one of them: its episodes would count twice."
            often = same >= 0.1 * kept
            yield Fault("counted_twice", one.entry.name, "datasets", message, advice, "error" if often else "warning")


def _copied(copies: dict[str, set[str]], one: str, two: str) -> int:
    """Episodes of each that are copies of the other's, or of the same third ones."""
    direct = sum(id_.rsplit("/", 4)[0] == two for id_ in copies[one])
    direct += sum(id_.rsplit("/", 4)[0] == one for id_ in copies[two])
    return direct + len(copies[one] & copies[two])


# ── actions ──────────────────────────────────────────────────────────────────────────────────────────────────


def _implausible(
    mixture: Mixture, index: Index, found: Sequence[IndexedDataset], base: Path | None, cards: Path | None
) -> Iterator[Fault]:
    statistics, faults = given_bounds(mixture, [(s.entry.name, s.aliases) for s in found], base)
    yield from faults
    for source in found:
        measured = _measured(index, source, cards)
        if measured is None:
            continue
        facts, card, findings = measured
        bounds = _used(mixture, facts, statistics.get(source.entry.name))
        if bounds is not None:
            findings = (*(f for f in findings if f.name != "bounds_collapse"), *judge_bounds(facts, card, bounds))
        for f in findings:
            name = source.entry.name
            yield Fault(f.name, name, "datasets", f"{name}: {f.text}", f.advice, f.severity)


def _measured(
    index: Index, source: IndexedDataset, cards: Path | None
) -> tuple[ActionFacts, CardFacts, tuple[DataFinding, ...]] | None:
    """Facts and findings of a data set; measured here if an older version wrote the index."""
    entry = index.datasets[source.dataset]
    if entry.recipe is None or not entry.summary.kept:
        return None
    try:
        card = CardFacts.of(registry.load(entry.card or source.dataset, cards), entry.recipe)
    except ConfigError:  # the card has no longer the recipe that filter used
        return None
    if entry.facts is not None:
        return entry.facts, card, entry.findings
    facts = _facts(_Opened(index.contents, index.files_sha256 or ""), source.dataset, entry.version)
    return None if facts is None else (facts, card, tuple(judge_actions(facts, card)))


@dataclass(frozen=True)
class _Opened:
    """Index files that are equal if files.json is."""

    files: IndexFiles
    sha256: str

    def __hash__(self) -> int:
        return hash((self.files.folder.uri, self.sha256))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Opened) and hash(self) == hash(other)


@functools.lru_cache(maxsize=256)
def _facts(opened: _Opened, dataset: str, version: str) -> ActionFacts | None:
    return facts_of_index(opened.files, dataset, version)


def _used(mixture: Mixture, facts: ActionFacts, given: Bounds | None) -> UsedBounds | None:
    """The bounds of a data set; None for the default ones, which filter has judged."""
    spec = mixture.bounds
    if given is not None:
        return UsedBounds(given.q01, given.q99, given.mask, spec.over) if given.width == 7 else None
    if (spec.low, spec.high) == (0.01, 0.99):
        return None
    low, high = (np.array([np.interp(level, LEVELS, q) for q in facts.quantiles]) for level in (spec.low, spec.high))
    return UsedBounds(low, high, np.arange(7) < 6, "")


def bounds_path(over: str, base: Path | None) -> Path:
    """The file of the bounds: as given, or relative to the folder of the mixture file."""
    path = Path(over)
    return path if base is None or path.is_absolute() or path.exists() else base / path


def given_bounds(
    mixture: Mixture, names: Iterable[tuple[str, Sequence[str]]], base: Path | None
) -> tuple[dict[str, Bounds], list[Fault]]:
    """The bounds of each entry from the mixture's file, and what is wrong with it; empty if there is no file.

    Args:
        mixture: the mixture.
        names: of each entry, with its aliases.
        base: see `bounds_path`.
    """
    over = mixture.bounds.over
    if over in ("kept", "all"):
        return {}, []
    path = bounds_path(over, base)
    try:
        statistics = read_statistics(path)
    except (CurateError, OSError, ValueError) as error:
        advice = "Correct the path; a relative path is relative to the mixture file."
        if "/" not in over and "." not in over:
            advice = f"{did_you_mean(over, ('kept', 'all'))} Or give the path of a dataset_statistics.json."
        return {}, [Fault("no_bounds", "", "bounds.over", str(error).removesuffix("."), advice)]
    found: dict[str, Bounds] = {}
    faults = []
    for name, aliases in names:
        try:
            found[name] = lookup(statistics, name, aliases)
        except ConfigError as error:
            message, _, hint = str(error).partition(". ")
            advice = f"{hint} Or compute the bounds (bounds: {{over: kept}})."
            faults.append(Fault("no_bounds", name, "bounds.over", f"{path}: {message}", advice))
    return found, faults


# ── validation ───────────────────────────────────────────────────────────────────────────────────────────────


def _not_held_out(mixture: Mixture, index: Index, found: Sequence[IndexedDataset]) -> Iterator[Fault]:
    """Data sets of which no episode is drawn for validation, and which have no other split to evaluate on."""
    drawn = [_holds_out(index, source, mixture.validation) for source in found]
    spare = [_has_spare_split(index, source) for source in found]
    advice = "Raise `validation`, or keep a split of the data for evaluation."
    if found and not any(drawn) and not any(spare):
        message = f"no episode is held out: validation {mixture.validation:g} draws none of the kept episodes"
        yield Fault("no_held_out", "", "validation", message, advice, "warning")
        return
    for source, some, other in zip(found, drawn, spare, strict=True):
        if not some and not other and any(drawn):
            kept = index.datasets[source.dataset].summary.kept
            message = f"{source.entry.name}: none of its {kept:,} kept episodes is held out"
            yield Fault("no_held_out", source.entry.name, "datasets", message, advice, "warning")


def _holds_out(index: Index, source: IndexedDataset, share: float) -> bool:
    for path in _paths(index, source) if share else ():
        table = index.table(path, ["kept", "episode_id", "duplicate_of"])
        table = table.filter(table["kept"])
        # a copy is assigned like its original
        ids = pc.coalesce(table["duplicate_of"], table["episode_id"]).to_pylist()
        if ids and sampling.held_out(ids, share).any():
            return True
    return False


def _has_spare_split(index: Index, source: IndexedDataset) -> bool:
    others = [path for path in index.files(source.dataset) if split_of(path) not in source.entry.splits]
    return any(index.entry(path).summary.kept for path in others)
