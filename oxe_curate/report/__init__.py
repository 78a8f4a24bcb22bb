"""One self-contained HTML page that shows what the filter kept and dropped, and why."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from oxe_curate import __version__, registry
from oxe_curate.atomic import atomic_file
from oxe_curate.errors import ConfigError, StorageError
from oxe_curate.filter.criteria import Criteria
from oxe_curate.index.store import Index
from oxe_curate.report import page
from oxe_curate.report.actions import STEPS
from oxe_curate.report.gather import gather_dataset
from oxe_curate.report.thumbnails import read_thumbnails
from oxe_curate.storage import explain, stderr_is_terminal

_FEW = 8
"""Up to this many data sets, more episodes and three frames of each are shown; the page stays at a few MB."""

_LEAST_STEPS = 1 << 18
"""Steps of each data set whose actions are counted, however many data sets there are."""

__all__ = ["write_report"]


def write_report(index: str | Path, out: str | Path, progress: bool = True, cards: Path | None = None) -> Path:
    """Write the report of an index as one HTML file that makes no network requests.

    It is written one data set at a time, and appears under its name when it is complete.

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
    few = len(opened.datasets) <= _FEW
    frames, kept, dropped = (3, 9, 6) if few else (1, 4, 2)
    steps = max(_LEAST_STEPS, STEPS // max(1, len(opened.datasets)))
    title = f"Filter report: {opened.folder.uri.rstrip('/').rsplit('/', 1)[-1]}"
    total = sum(len(opened.files(name)) for name in opened.datasets)
    try:
        with (
            atomic_file(out) as draft,
            draft.open("w", encoding="utf-8") as file,
            tqdm(total=total, desc="report", unit=" files", disable=not (progress and stderr_is_terminal())) as bar,
        ):
            file.write(page.head(title))
            file.write(page.overview(title, opened.source.uri, opened.datasets))
            for name, entry in opened.datasets.items():
                found = gather_dataset(opened, name, kept, dropped, bar.update, steps)
                bgr = _bgr(entry.card or name, cards)
                shown = {
                    reason: [(e.row, read_thumbnails(opened.source_of(name), e.row, frames, bgr)) for e in examples]
                    for reason, examples in found.examples.items()
                }
                file.write(page.dataset(name, entry, found, shown))
            file.write(page.foot(opened.criteria, asdict(Criteria()), f"oxe-curate {__version__}"))
    except OSError as error:
        raise StorageError(f"{out}: {explain(error)}") from error
    return out


def _bgr(card: str, cards: Path | None) -> frozenset[str]:
    """Roles whose frames are stored as BGR; none if the card is not found."""
    try:
        found = registry.load(card, cards)
    except ConfigError:
        return frozenset()
    return frozenset(role for role, key in found.cameras_by_role().items() if found.cameras[key].channels == "bgr")
