"""Tables on standard output: names and numbers are never cut off; text wraps, and less important columns go first."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

_PIPE_WIDTH = 1000
"""Columns of a pipe or file, where nobody's terminal limits a table; narrower where COLUMNS is set."""
_GAP = 2  # between columns
_LEAST = 16  # columns of a wrapped text

Cell = str | Text


def console() -> Console:
    """Standard output. A pipe or file is as wide as its tables need, unless COLUMNS is set."""
    out = Console(highlight=False)
    if out.is_terminal or os.environ.get("COLUMNS", "").isdigit():
        return out
    return Console(highlight=False, width=_PIPE_WIDTH)


def show_command(screen: Console, command: str) -> None:
    """Show a command that a reader can copy."""
    screen.print(f"\n$ {command}", style="bold cyan", markup=False, soft_wrap=True)


def counted(number: int, singular: str, plural: str | None = None) -> str:
    """A number and its noun.

    >>> counted(1, "shard"), counted(2000, "shard")
    ('1 shard', '2,000 shards')
    """
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def share_of(part: float, whole: float) -> str:
    """A percentage; a dash where there is nothing to divide by."""
    return f"{100 * part / whole:.1f} %" if whole else "–"


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: its head.
        left: aligned left; numbers are aligned right.
        wrap: whether its text may be broken over several lines.
        optional: where the table is too wide, columns with the highest number are dropped first; 0: never dropped.
    """

    title: str
    left: bool = False
    wrap: bool = False
    optional: int = 0


class ResultTable:
    """A titled table that fits the console it is printed on.

    Args:
        title: printed above it.
        columns: a string is a column of numbers that is always shown; the first one is a column of names.
    """

    def __init__(self, title: str, *columns: str | Column) -> None:
        first, *rest = (Column(c) if isinstance(c, str) else c for c in columns)
        self._title = title
        self._columns = [Column(first.title, True, first.wrap, first.optional), *rest]
        self._rows: list[list[Text] | None] = []

    def add_row(self, *cells: Cell) -> None:
        """Add a row, one cell for each column."""
        if len(cells) != len(self._columns):
            raise ValueError(f"{len(cells)} cells for {len(self._columns)} columns")
        self._rows.append([cell if isinstance(cell, Text) else Text(cell) for cell in cells])

    def add_section(self) -> None:
        """Draw a line below the last row."""
        self._rows.append(None)

    def __rich_console__(self, screen: Console, options: ConsoleOptions) -> RenderResult:
        """Print what fits the width, and name the columns that do not."""
        shown, widths = self._fitted(options.max_width)
        table = Table(
            title=self._title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False,
            pad_edge=False, padding=(0, 1, 0, 0),
        )  # fmt: skip
        for i in shown:
            column = self._columns[i]
            # where even the names do not fit they are broken, never cut off
            table.add_column(column.title, justify="left" if column.left else "right", width=widths[i], overflow="fold")
        for row in self._rows:
            if row is None:
                table.add_section()
            else:
                table.add_row(*(row[i] for i in shown))
        yield table
        hidden = [c.title for i, c in enumerate(self._columns) if i not in shown]
        if hidden:
            yield Text(f"Not shown at this width: {', '.join(hidden)}.", "dim")
        yield Text()

    def _fitted(self, width: int) -> tuple[list[int], dict[int, int]]:
        """The columns that are shown, and the width of each."""
        natural = {
            i: max([cell_len(column.title), *map(_longest_line, self._cells(i))])
            for i, column in enumerate(self._columns)
        }
        shown = list(natural)
        while self._excess(shown, natural, width) > 0:
            dropped = max(shown, key=lambda i: self._columns[i].optional)
            if not self._columns[dropped].optional:
                break
            shown.remove(dropped)
        excess = sum(natural[i] for i in shown) + _GAP * (len(shown) - 1) - width
        for i in sorted((i for i in shown if self._columns[i].wrap), key=lambda i: -natural[i]):
            given = min(max(excess, 0), max(natural[i] - self._least(i), 0))
            natural[i] -= given
            excess -= given
        if excess > 0 and shown:  # a very narrow terminal: the names are broken too
            natural[shown[0]] = max(natural[shown[0]] - excess, 8)
        return shown, natural

    def _excess(self, shown: list[int], natural: dict[int, int], width: int) -> int:
        """By how much the columns are too wide when text is wrapped as far as it may be."""
        least = (min(natural[i], self._least(i)) if self._columns[i].wrap else natural[i] for i in shown)
        return sum(least) + _GAP * (len(shown) - 1) - width

    def _least(self, i: int) -> int:
        words = (cell_len(word) for cell in self._cells(i) for word in cell.plain.split())
        return max(_LEAST, cell_len(self._columns[i].title), min(max(words, default=0), 2 * _LEAST))

    def _cells(self, i: int) -> Iterator[Text]:
        return (row[i] for row in self._rows if row is not None)


def _longest_line(text: Text) -> int:
    return max((cell_len(line) for line in text.plain.splitlines()), default=0)
