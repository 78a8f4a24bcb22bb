"""What every group of `make bench` is given."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import make_shards


@dataclass
class Settings:
    """Where data and peers are, and how long to measure.

    Attributes:
        data: folder for data and output.
        shared: folder with data/rlds, if there is one.
        peers: Python interpreter with TensorFlow and tensorflow-datasets; None without one.
        openvla: checkout of openvla; None without one.
        dlimp: checkout of dlimp_openvla; None without one.
        rounds: at most, of each contender.
        budget: seconds after which a contender takes part in no further round.
        gb: size of a source data set, 10^9 bytes.
        quick: less of everything.
        skipped: rows of this group that were left out.
    """

    data: Path
    shared: Path
    peers: Path | None = None
    openvla: Path | None = None
    dlimp: Path | None = None
    rounds: int = 5
    budget: float = 20
    gb: float = 1.6
    quick: bool = False
    skipped: list[str] = field(default_factory=list)

    @property
    def base(self) -> Path:
        """The episodes that source data is varied from."""
        return make_shards.find_base(self.shared, self.data / "base")

    def skip(self, rows: str, reason: str) -> None:
        """Note, and print, that rows are left out; those of earlier runs stay."""
        self.skipped.append(rows)
        say(f"skipped: {rows}: {reason}")


def say(text: str) -> None:
    """Print progress."""
    print(f"  {text}", file=sys.stderr, flush=True)
