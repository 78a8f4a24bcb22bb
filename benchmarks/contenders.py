"""The contenders of filter, statistics and tokenize, and their commands."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import make_shards
from benchmarks.measure import Measurement
from benchmarks.settings import Settings

HERE = Path(__file__).parent
LIMIT = 2000
"""Steps after which peers that decode images stop."""


@dataclass
class Bench:
    """One data set, the folders that the contenders write to, and their runs so far: warm and cold, one a round."""

    source: Path
    work: Path
    settings: Settings
    warm: dict[str, list[Measurement]] = field(default_factory=dict)
    cold: dict[str, list[Measurement]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.source / make_shards.NAME / "1.0.0"

    @property
    def shards(self) -> list[Path]:
        return sorted(self.folder.glob("*.tfrecord-*"))

    @property
    def num_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.shards)

    @property
    def steps(self) -> int:
        """Of the source, before the recipe trims them."""
        return int(self.warm["statistics"][0].result["source_steps"])

    def share(self, name: str) -> float:
        """The part of the data set that a contender covered; those that decode stop early."""
        done = self.warm[name][0].result
        return min(1.0, done["steps"] / self.steps) if done.get("partial") else 1.0

    def seconds(self, name: str, *, cold: bool = False, cpu: bool = False) -> list[float]:
        """Of each round, wall or processor time of the work, scaled to the whole data set; [] if not measured."""
        runs = (self.cold if cold else self.warm).get(name, [])
        return [(m.work_cpu if cpu else m.seconds) / self.share(name) for m in runs]

    def output(self, name: str) -> Path:
        """A new folder to write to."""
        folder = self.work / name
        shutil.rmtree(folder, ignore_errors=True)
        return folder

    def clean(self) -> None:
        """Remove the output of the contenders, but keep the log."""
        for path in self.work.iterdir():
            if path.is_dir():
                shutil.rmtree(path)

    def product(self, command: str, *arguments: object) -> list[str]:
        return [sys.executable, "-m", "benchmarks.product", command, *map(str, arguments)]

    def tokenize(self, out: str, *arguments: object) -> list[str]:
        """From the index that `filter` wrote, with the Llama-2 tokenizer if available."""
        file = self.settings.shared / "data" / "tokenizers" / "llama2" / "tokenizer.model"
        tokenizer = ["--tokenizer", file] if file.exists() else []
        return self.product("tokenize", self.work / "index", self.output(out), *tokenizer, *arguments)

    def baseline(self, command: str, *arguments: object) -> list[str]:
        python = self.settings.peers or sys.executable
        return [str(python), str(HERE / "baselines.py"), command, str(self.folder), *map(str, arguments)]

    def openvla(self, command: str, *arguments: object) -> list[str]:
        paths = ["--openvla", str(self.settings.openvla), "--dlimp", str(self.settings.dlimp)]
        script = [str(self.settings.peers), str(HERE / "openvla_loader.py"), command, str(self.source)]
        return [*script, *paths, *map(str, arguments)]

    def read_write(self, processes: int) -> list[str]:
        """Read the input and write as many bytes, in files of the same sizes, as `tokenize` just wrote."""
        sizes = ",".join(str(path.stat().st_size) for path in sorted((self.work / "mixture").rglob("*.parquet")))
        return self.baseline("read_write", "--out", self.output("copy"), "--sizes", sizes, "--processes", processes)


@dataclass(frozen=True)
class Contender:
    """One program. Only those with `cold` also run without the data in the page cache."""

    name: str
    command: Callable[[Bench], list[str]]
    cold: bool = False


def contenders(settings: Settings, size: int) -> list[Contender]:
    """This project and plain reads and writes, then the peers that are installed, in the order of a round.

    OpenVLA's loader takes part at 256 px and above.
    """
    cores = len(os.sched_getaffinity(0))
    found = [
        Contender("raw read", lambda b: b.baseline("read"), cold=True),
        Contender("filter", lambda b: b.product("filter", b.source, b.output("index")), cold=True),
        Contender("filter, one worker", lambda b: b.product("filter", b.source, b.output("index-one"), "--workers", 1)),
        Contender("filter, no Beam", lambda b: b.product("filter", b.source, b.output("index-plain"), "--plain")),
        Contender(
            "filter, Beam's DirectRunner",
            lambda b: b.product("filter", b.source, b.output("index-beam"), "--beam", "runner=DirectRunner"),
        ),
        Contender("statistics", lambda b: b.product("statistics", b.source, b.output("index-statistics"))),
        Contender("tokenize", lambda b: b.tokenize("mixture"), cold=True),
        Contender("tokenize, one worker", lambda b: b.tokenize("mixture-one", "--workers", 1), cold=True),
        Contender("tokenize, no Beam", lambda b: b.tokenize("mixture-plain", "--plain")),
        Contender("read + write", lambda b: b.read_write(1), cold=True),
        Contender("read + write, all cores", lambda b: b.read_write(cores), cold=True),
    ]
    if settings.peers:
        found += [
            Contender("tf.data, records not parsed", lambda b: b.baseline("tf_data")),
            Contender("TFDS, skipped decoding", lambda b: b.baseline("tfds_skip")),
            Contender("TFDS, images decoded", lambda b: b.baseline("tfds_decoded", "--limit", LIMIT)),
        ]
    if size >= 256 and settings.peers and settings.openvla and settings.dlimp:
        found += [
            Contender("OpenVLA's loader, statistics", lambda b: b.openvla("statistics")),
            Contender("OpenVLA's loader, statistics and tokens", lambda b: b.openvla("tokens")),
            Contender("OpenVLA's loader, samples", lambda b: b.openvla("samples", "--limit", LIMIT)),
        ]
    return found
