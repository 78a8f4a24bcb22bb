"""The groups of benchmarks that `make bench` runs, and their order."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from benchmarks.rows import Row
from benchmarks.settings import Settings


@dataclass(frozen=True)
class Lazy:
    """A function of a module of benchmarks, which is imported when it is called."""

    module: str
    function: str = "rows"

    def load(self) -> Callable[[Settings], Iterator[Row]]:
        found: Callable[[Settings], Iterator[Row]] = getattr(
            importlib.import_module(f"benchmarks.{self.module}"), self.function
        )
        return found

    def __call__(self, settings: Settings) -> Iterator[Row]:
        return self.load()(settings)


@dataclass(frozen=True)
class Group:
    """Benchmarks that run in one process.

    Attributes:
        about: what it measures, for the screen.
        minutes: it takes on two cores, making its data included.
        measure: yields the rows as they are measured.
    """

    about: str
    minutes: float
    measure: Callable[[Settings], Iterator[Row]]


def with_command(row: Row, group: str) -> Row:
    """The row with the command that measures its group."""
    return row if row.command else replace(row, command=f"make bench ONLY={group}")


GROUPS = {
    "scan-256": Group("filter, statistics, tokenize and their peers at 256 px", 6, Lazy("scan", "rows_256")),
    "scan-64": Group("the same at 64 px", 3, Lazy("scan", "rows_64")),
    "resize": Group("tokenize with images resized on the CPU", 1.5, Lazy("resizing")),
    "judging": Group("what the criteria add to filter", 1, Lazy("defects_cost")),
    "reference": Group("a mixture of 25 million steps by reference", 4.5, Lazy("reference")),
    "far": Group("filter and tokenize from a simulated far object store", 4, Lazy("far")),
    "loader": Group("the data path of training and other readers, on one core", 4, Lazy("loader")),
    "long": Group("one episode of 20,000 steps, and frames of 8 MB", 1.5, Lazy("long_episode")),
    "editor": Group("the mixture editor in a browser", 1, Lazy("editor")),
}
