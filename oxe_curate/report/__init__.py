"""One self-contained HTML page that shows what the filter kept, marked and dropped, and why: the place to decide."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from oxe_curate import __version__, registry
from oxe_curate.atomic import atomic_file
from oxe_curate.errors import ConfigError, StorageError
from oxe_curate.filter.criteria import Criteria
from oxe_curate.index.index_json import Summary
from oxe_curate.index.store import Index
from oxe_curate.registry.card import DatasetCard
from oxe_curate.report import page, words
from oxe_curate.report.actions import STEPS
from oxe_curate.report.entries import read_entries
from oxe_curate.report.flags import Flagged, choose
from oxe_curate.report.gather import gather_dataset
from oxe_curate.report.reasons import by_criterion
from oxe_curate.storage import explain, stderr_is_terminal
from oxe_curate.ui.tables import counted

_FEW = 8
"""Up to this many data sets, more of each is shown."""
_FLAGGED, _KEPT, _ORIGINALS = 160, 30, 30
"""Dropped and marked episodes, kept ones, and originals of copies on the page; it stays below 10 MB."""
_OF_EACH = 24
"""Episodes of a criterion and data set on the page, at most."""
_LEAST_STEPS = 1 << 16
"""Steps of each data set whose actions are counted, however many data sets there are."""

__all__ = ["write_report"]


def write_report(index: str | Path, out: str | Path, progress: bool = True, cards: Path | None = None) -> Path:
    """Write the report of an index as one HTML file that makes no network requests.

    It appears under its name when it is complete. Its size does not grow with the number of episodes.

    Args:
        index: folder that filter wrote.
        out: the file to write.
        progress: whether to show a bar, if standard error is a terminal.
        cards: a folder of the user's own cards, which say which cameras are BGR (default: the one given to filter).

    Returns:
        `out`.

    Raises:
        ConfigError: `index` is not an index, or its folder of cards no longer exists.
        DataError: an index file is damaged.
        StorageError: `out` cannot be written.
    """
    opened = Index.open(index)
    cards = opened.find_cards(cards)
    out = Path(out)
    total = sum(len(opened.files(name)) for name in opened.datasets)
    try:
        with (
            atomic_file(out) as draft,
            draft.open("w", encoding="utf-8") as file,
            tqdm(total=total, desc="report", unit=" files", disable=not (progress and stderr_is_terminal())) as bar,
        ):
            file.writelines(_pieces(opened, cards, bar))
    except OSError as error:
        raise StorageError(f"{out}: {explain(error)}") from error
    return out


def _pieces(index: Index, cards: Path | None, bar: Any) -> Iterable[str]:
    """The page in order. Of a data set, only its part of the page and its worst episodes stay in memory."""
    card = functools.cache(lambda name: _card(index.datasets[name].card or name, cards))
    few = len(index.datasets) <= _FEW
    steps = max(_LEAST_STEPS, STEPS // max(1, len(index.datasets)))
    title = f"Filter report: {index.folder.uri.rstrip('/').rsplit('/', 1)[-1]}"
    flagged: dict[str, Flagged] = {}
    kept: list[tuple[str, int]] = []
    rows, total = [], Summary()
    for name, entry in index.datasets.items():
        found = gather_dataset(index, name, 6 if few else 1, _OF_EACH, bar.update, steps)
        about = card(name)
        nothing = words.nothing_kept(name, entry, about.reason if about else "")
        rows.append(page.dataset(name, entry, found, nothing))
        flagged[name] = found.flagged
        kept += found.kept
        total.add(entry.summary)
    criteria = by_criterion(index.folder.uri, index.criteria, index.datasets, flagged)
    worst = {
        one.name: [flag for found in flagged.values() for flag in found.worst.get(one.name, ())] for one in criteria
    }
    chosen = choose(worst, _FLAGGED)
    shown = read_entries(
        index, [*((f.path, f.row) for f in chosen), *kept[:_KEPT]], 5, functools.cache(lambda name: _bgr(card(name))),
        _ORIGINALS,
    )  # fmt: skip
    marked = sum(found.marked for found in flagged.values())
    strict = words.command(index.folder.uri, index.criteria, preset="strict")
    yield page.head(title)
    yield page.overview(title, index.source.uri, total, marked, len(index.datasets), strict)
    yield page.datasets(rows)
    yield page.criteria(criteria)
    yield page.episodes(shown, _sampled(len(chosen), total.seen - total.kept + marked, len(kept[:_KEPT])))
    yield page.foot(index.criteria, asdict(Criteria()), f"oxe-curate {__version__}")


def _sampled(chosen: int, every: int, kept: int) -> str:
    """Which episodes are on the page, in words."""
    if not every:
        first = "No episode is dropped or marked"
    elif chosen == every:
        first = f"On this page: all {every:,} dropped and marked episodes"
    else:
        first = (
            f"On this page: {chosen:,} of the {every:,} dropped and marked episodes, those furthest above the limit of "
            "each criterion and data set (drawn by the hash of their id where there is no value)"
        )
    return f"{first}; {counted(kept, 'kept episode')} without a mark, drawn by the hash of the id."


def _card(name: str, cards: Path | None) -> DatasetCard | None:
    try:
        return registry.load(name, cards)
    except ConfigError:
        return None


def _bgr(card: DatasetCard | None) -> frozenset[str]:
    """Roles whose frames are stored as BGR; none if the card is not found."""
    if card is None:
        return frozenset()
    return frozenset(role for role, key in card.cameras_by_role().items() if card.cameras[key].channels == "bgr")
