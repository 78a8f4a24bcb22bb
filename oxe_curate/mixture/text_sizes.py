"""The image-text sources of a mixture in numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from oxe_curate.errors import CurateError
from oxe_curate.mixture.spec import Mixture, TextEntry
from oxe_curate.mixture.texts import open_text


@dataclass(frozen=True)
class TextSize:
    """An image-text source.

    Attributes:
        rows: of the source; None where it cannot be read, `problem` then says why.
        drawn: expected rows of one pass of the mixture.
    """

    name: str
    path: str
    weight: float
    rows: int | None
    drawn: float | None
    problem: str | None = None


def text_sizes(mixture: Mixture, base: Path) -> tuple[TextSize, ...]:
    """What the sources' footers tell; relative paths start from `base`, the mixture file's folder."""
    return tuple(_size(entry, base) for entry in mixture.texts)


def _size(entry: TextEntry, base: Path) -> TextSize:
    try:
        rows = open_text(entry, base, entry.name).rows
    except CurateError as error:
        return TextSize(entry.name, entry.path, entry.weight, None, None, str(error))
    return TextSize(entry.name, entry.path, entry.weight, rows, rows * entry.weight)
