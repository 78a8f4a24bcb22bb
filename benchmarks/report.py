"""Targets, tables on the screen (rich) and in Markdown, and the facts of a machine."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

MB = 1e6
PACKAGES = ("apache-beam", "pyarrow", "numpy", "tensorflow-datasets", "crc32c", "simplejpeg")


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
    """Date (UTC), processor, memory, kernel, file system of the data, versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    kind = subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True, check=False).stdout
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M}",
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
