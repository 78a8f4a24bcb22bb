"""The groups of benchmarks that `make bench` runs, and their order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from benchmarks.rows import Row
from benchmarks.settings import Settings


@dataclass(frozen=True)
class Group:
    """Benchmarks that run in one process.

    Attributes:
        about: what it measures, for the screen.
        minutes: it takes on two cores, making its data included.
        measure: yields the rows as they are measured; imports what it needs when it is called.
        default: whether `make bench` runs it without being asked.
    """

    about: str
    minutes: float
    measure: Callable[[Settings], Iterator[Row]]
    default: bool = True


def with_command(row: Row, group: str) -> Row:
    """The row with the command that measures its group."""
    return row if row.command else replace(row, command=f"make bench ONLY={group}")


def _scan_256(settings: Settings) -> Iterator[Row]:
    from benchmarks.scan import measure_size

    yield from measure_size(settings, 256)


def _scan_64(settings: Settings) -> Iterator[Row]:
    from benchmarks.scan import measure_size

    yield from measure_size(replace(settings, gb=settings.gb / 2, skipped=settings.skipped), 64)


def _resize(settings: Settings) -> Iterator[Row]:
    from benchmarks.resizing import rows

    yield from rows(settings)


def _judging(settings: Settings) -> Iterator[Row]:
    from benchmarks.defects_cost import rows

    yield from rows(settings)


def _reference(settings: Settings) -> Iterator[Row]:
    from benchmarks.reference import rows

    yield from rows(settings)


def _far(settings: Settings) -> Iterator[Row]:
    from benchmarks.far import rows

    yield from rows(settings)


def _loader(settings: Settings) -> Iterator[Row]:
    from benchmarks.loader import rows

    yield from rows(settings)


def _long(settings: Settings) -> Iterator[Row]:
    from benchmarks.long_episode import rows

    yield from rows(settings)


def _editor(settings: Settings) -> Iterator[Row]:
    from benchmarks.editor import rows

    yield from rows(settings)


GROUPS = {
    "scan-256": Group("filter, statistics, tokenize and their peers at 256 px", 6, _scan_256),
    "scan-64": Group("the same at 64 px", 3, _scan_64),
    "resize": Group("tokenize with images resized on the CPU", 1.5, _resize),
    "judging": Group("what the criteria add to filter", 1.5, _judging),
    "reference": Group("a mixture of 25 million steps by reference", 5, _reference),
    "far": Group("filter and tokenize from a simulated far object store", 5, _far),
    "loader": Group("the data path of training and other readers, on one core", 3.5, _loader),
    "long": Group("one episode of 20,000 steps, and frames of 8 MB", 2, _long),
    "editor": Group("the mixture editor in a browser", 1, _editor),
}
