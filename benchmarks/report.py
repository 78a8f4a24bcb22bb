"""Medians, ratios and targets of a benchmark as tables: on the screen (rich) and in Markdown."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from benchmarks.measure import Measurement

MB = 1e6
PACKAGES = ("apache-beam", "pyarrow", "numpy", "tensorflow-datasets", "crc32c", "simplejpeg")


@dataclass(frozen=True)
class Row:
    """The runs of one contender on one data set, warm and cold.

    Attributes:
        name: of the contender.
        note: description of its work.
        share: the part of the data set that a run covers; slow contenders stop early, and their seconds are
            divided by it.
        warm: runs with the data in the page cache.
        cold: runs that started without it; empty without cold rounds.
    """

    name: str
    note: str
    share: float
    warm: Sequence[Measurement]
    cold: Sequence[Measurement] = ()

    @property
    def seconds(self) -> float:
        """Median of the warm runs, for the whole data set."""
        return median(m.seconds for m in self.warm) / self.share

    @property
    def cold_seconds(self) -> float | None:
        return median(m.seconds for m in self.cold) / self.share if self.cold else None

    @property
    def process_seconds(self) -> float:
        return median(m.process_seconds for m in self.warm)

    @property
    def touched(self) -> float | None:
        return median(m.touched or 0.0 for m in self.cold) if self.cold else None

    @property
    def rss(self) -> int:
        return max(m.rss for m in (*self.warm, *self.cold))

    @property
    def anonymous(self) -> int:
        return max(m.anonymous for m in (*self.warm, *self.cold))


@dataclass(frozen=True)
class Aim:
    """One target: a measured number and its bound."""

    text: str
    value: float
    bound: float
    at_least: bool
    unit: str = ""

    @property
    def met(self) -> bool:
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def cells(self) -> list[str]:
        sign = "≥" if self.at_least else "≤"
        return [
            self.text,
            f"{sign} {self.bound:g}{self.unit}",
            f"{self.value:.3g}{self.unit}",
            "yes" if self.met else "no",
        ]


AIMS = ["aim", "bound", "measured", "met"]
HEADER = [
    "contender",
    "s",
    "ratio",
    "MB/s",
    "steps/s",
    "cold s",
    "ratio",
    "touched",
    "peak RSS",
    "anonymous",
    "process s",
]


def cells(rows: Sequence[Row], num_bytes: int, steps: int) -> list[list[str]]:
    """One line of text per contender; ratios refer to the first row."""
    lines = []
    warm, cold = rows[0].seconds, rows[0].cold_seconds
    for row in rows:
        approximately = "" if row.share == 1 else "~"
        lines.append(
            [
                row.name,
                f"{approximately}{row.seconds:.3g}",
                f"{warm / row.seconds:.3g}",
                f"{num_bytes / row.seconds / MB:,.0f}",
                f"{steps / row.seconds:,.0f}",
                f"{row.cold_seconds:.3g}" if row.cold_seconds else "",
                f"{cold / row.cold_seconds:.3g}" if row.cold_seconds and cold else "",
                f"{row.touched:.1%}" if row.touched is not None else "",
                f"{row.rss / MB:,.0f} MB",
                f"{row.anonymous / MB:,.0f} MB",
                f"{row.process_seconds:.3g}",
            ]
        )
    return lines


def growth_header(part: int, whole: int) -> list[str]:
    """Headings of `growth`, with the bytes of the two sets."""
    kinds = ("s", "peak RSS", "anonymous")
    return [f"{kind}, {size / 1e9:.2g} GB" for kind in kinds for size in (part, whole)]


def growth(part: Row, whole: Row) -> list[str]:
    """A contender's measurements on a part of the data and on all of it."""
    seconds = [f"{row.seconds:.3g}" for row in (part, whole)]
    memory = [f"{size / MB:,.0f} MB" for size in (part.rss, whole.rss, part.anonymous, whole.anonymous)]
    return seconds + memory


LEGEND = """\
Seconds are medians of {rounds} warm and {cold} cold rounds in which the contenders take turns; they cover only
the work, `process s` also the interpreter's start and the imports. `ratio` is the time of `raw read` divided by the
contender's: above 1 is faster than reading every byte once. Warm: the shards are in the page cache. Cold: after `sync`
and `posix_fadvise(DONTNEED)` on every shard, checked with mincore; `touched` is the share of the shards' pages that
mincore finds in the page cache afterwards, readahead included. `peak RSS` is the largest sum over all processes of a
run, sampled every 20 ms: pages that processes share, and pages of mapped shards, count in each of them; `anonymous`
excludes pages of files, which the kernel can reclaim. `~`: the contender stopped early, and its
time is scaled to the whole data set."""


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, numbers right-aligned."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *lines))


def show(title: str, header: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Print the same table on the screen."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number else "left")
    for line in lines:
        table.add_row(*line)
    Console(width=None if Console().is_terminal else 160).print(table)


def machine(folder: Path) -> dict[str, str]:
    """Processor, memory, kernel, file system of the data, versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    kind = subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True, check=False).stdout
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "processor": f"{(models or [platform.machine()])[0]}, {len(os.sched_getaffinity(0))} cores",
        "memory": f"{memory / 2**30:.0f} GiB",
        "load at the start": f"{os.getloadavg()[0]:.1f}",
        "kernel": platform.release(),
        "file system": kind.strip(),
        "commit": commit.stdout.strip(),
        "Python": platform.python_version(),
    } | {name: importlib.metadata.version(name) for name in PACKAGES}


def versions(python: str, packages: Sequence[str]) -> dict[str, str]:
    """Versions of packages in another environment; without those that are not installed."""
    code = (
        "import importlib.metadata as m, sys\n"
        "for n in sys.argv[1:]:\n"
        "    try: print(n, m.version(n))\n"
        "    except m.PackageNotFoundError: pass"
    )
    done = subprocess.run([python, "-c", code, *packages], capture_output=True, text=True, check=True)
    return dict(line.split() for line in done.stdout.splitlines())
