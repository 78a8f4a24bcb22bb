"""The sizes of a mixture's image-text sources."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from oxe_curate.errors import CurateError
from oxe_curate.mixture.spec import Mixture, TextEntry
from oxe_curate.mixture.texts import open_text


@dataclass(frozen=True)
class TextSize:
    """The size of an image-text source.

    Attributes:
        rows: of the source; None if it cannot be read.
        drawn: expected rows in one pass of the mixture.
        problem: why it cannot be read.
    """

    name: str
    path: str
    weight: float
    rows: int | None
    drawn: float | None
    problem: str | None = None


def text_sizes(mixture: Mixture, base: Path) -> tuple[TextSize, ...]:
    """Sizes from the footers of the sources; relative paths are relative to `base`, the folder of the mixture file."""
    return tuple(_size(entry, base) for entry in mixture.texts)


def _size(entry: TextEntry, base: Path) -> TextSize:
    try:
        rows = open_text(entry, base, entry.name).rows
    except CurateError as error:
        return TextSize(entry.name, entry.path, entry.weight, None, None, str(error))
    return TextSize(entry.name, entry.path, entry.weight, rows, rows * entry.weight)
