"""The contenders of a benchmark, their commands, and the targets."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import make_shards
from benchmarks.measure import Measurement
from benchmarks.report import Aim, Row

HERE = Path(__file__).parent
RESIZED = 224  # pixels, OpenVLA's input size


@dataclass
class Bench:
    """One data set, the folders that the contenders write to, and their runs so far."""

    source: Path
    work: Path
    args: argparse.Namespace
    runs: dict[str, dict[str, list[Measurement]]] = field(default_factory=dict)

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
        return int(self.runs["statistics"]["warm"][0].result["source_steps"])

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
        file = self.args.shared / "data" / "tokenizers" / "llama2" / "tokenizer.model"
        tokenizer = ["--tokenizer", file] if file.exists() else []
        return self.product("tokenize", self.work / "index", self.output(out), *tokenizer, *arguments)

    def baseline(self, command: str, *arguments: object) -> list[str]:
        python = self.args.baseline_python or sys.executable
        return [python, str(HERE / "baselines.py"), command, str(self.folder), *map(str, arguments)]

    def openvla(self, command: str, *arguments: object) -> list[str]:
        paths = ["--openvla", str(self.args.openvla), "--dlimp", str(self.args.dlimp)]
        script = [self.args.baseline_python, str(HERE / "openvla_loader.py"), command, str(self.source)]
        return [*script, *paths, *map(str, arguments)]

    def read_write(self, processes: int) -> list[str]:
        """Read the input and write as many bytes, in files of the same sizes, as `tokenize` just wrote."""
        sizes = ",".join(str(path.stat().st_size) for path in sorted((self.work / "mixture").rglob("*.parquet")))
        return self.baseline("read_write", "--out", self.output("copy"), "--sizes", sizes, "--processes", processes)


@dataclass(frozen=True)
class Contender:
    """A row of the table. `slow` ones run twice at most and warm only, `partial` ones stop early."""

    name: str
    note: str
    command: Callable[[Bench], list[str]]
    slow: bool = False
    partial: bool = False


def contenders(args: argparse.Namespace, image_size: int) -> list[Contender]:
    """The contenders for images of this size, in the order of a round."""
    cores = len(os.sched_getaffinity(0))
    found = [
        Contender("raw read", "every byte, one process, 1 MiB blocks", lambda b: b.baseline("read")),
        Contender(
            "filter",
            "shards -> index through Beam, as the command does",
            lambda b: b.product("filter", b.source, b.output("index")),
        ),
        Contender(
            "filter, one worker",
            "the same with one worker",
            lambda b: b.product("filter", b.source, b.output("index-one"), "--workers", 1),
        ),
        Contender(
            "filter, no Beam",
            "the same functions called in a loop, one process",
            lambda b: b.product("filter", b.source, b.output("index-plain"), "--plain"),
        ),
        Contender(
            "statistics",
            "shards -> dataset_statistics.json by the functions behind filter and tokenize, one process",
            lambda b: b.product("statistics", b.source, b.output("index-statistics")),
        ),
        Contender(
            "tokenize",
            "index -> shuffled mixture with tokens, the primary camera's bytes copied, as the command does",
            lambda b: b.tokenize("mixture"),
        ),
        Contender(
            "tokenize, one worker",
            "the same with one worker",
            lambda b: b.tokenize("mixture-one", "--workers", 1),
        ),
        Contender(
            "tokenize, no Beam",
            "the same functions called in a loop, one process",
            lambda b: b.tokenize("mixture-plain", "--plain"),
        ),
        Contender("read + write", "every byte in, tokenize's bytes out, one process", lambda b: b.read_write(1)),
        Contender("read + write, all cores", "the same, one process per core", lambda b: b.read_write(cores)),
    ]
    if image_size >= RESIZED:
        found.append(
            Contender(
                f"tokenize, {RESIZED} px",
                "every image decoded, resized with Lanczos, re-encoded",
                lambda b: b.tokenize("mixture-resized", "--image-size", RESIZED),
                slow=True,
            )
        )
    if args.baseline_python:
        found += [
            Contender("tf.data raw", "TFRecordDataset, records not parsed", lambda b: b.baseline("tf_data")),
            Contender(
                "TFDS, skip decoding",
                "as_dataset, every feature parsed, images not decoded",
                lambda b: b.baseline("tfds_skip"),
            ),
            Contender(
                "TFDS, decoded",
                "as_dataset, every image decoded",
                lambda b: b.baseline("tfds_decoded", "--limit", args.limit),
                slow=True,
                partial=True,
            ),
        ]
    if args.openvla:
        found += [
            Contender("OpenVLA statistics", "its loader computes them", lambda b: b.openvla("statistics"), slow=True),
            Contender(
                "OpenVLA statistics + tokens",
                "its loader and ActionTokenizer over one epoch, no image decoded",
                lambda b: b.openvla("tokens"),
                slow=True,
            ),
            Contender(
                "OpenVLA samples",
                "its training stream: shuffled, decoded, 224 px",
                lambda b: b.openvla("samples", "--limit", args.limit),
                slow=True,
                partial=True,
            ),
        ]
    return found


def aims(table: Sequence[Row], image_size: int) -> list[Aim]:
    """The targets whose rows were measured."""
    row = {r.name: r for r in table}
    found = []

    def ratio(text: str, slower: str, faster: str, bound: float, cold: bool = False) -> None:
        if slower in row and faster in row:
            above, below = (row[name].cold_seconds if cold else row[name].seconds for name in (slower, faster))
            if above and below:
                found.append(Aim(text, above / below, bound, at_least=True, unit="x"))

    def overhead(text: str, name: str, plain: str) -> None:
        if name in row and plain in row:
            found.append(Aim(text, row[name].seconds / row[plain].seconds, 1.3, at_least=False, unit="x"))

    ratio("filter: speed against TFDS with skipped decoding", "TFDS, skip decoding", "filter", 20)
    ratio("filter: speed against one read of every byte, warm", "raw read", "filter", 1)
    if image_size >= 256 and "filter" in row and row["filter"].touched is not None:
        share = 100 * row["filter"].touched
        found.append(Aim("filter: share of a cold shard that it touches", share, 5, at_least=False, unit=" %"))
    ratio("statistics: speed against OpenVLA's", "OpenVLA statistics", "statistics", 20)
    for kind, cold in (("warm", False), ("cold", True)):
        ratio(
            f"tokenize: speed against read + write, all cores, {kind}", "read + write, all cores", "tokenize", 0.6, cold
        )
        ratio(f"tokenize: the same, one process, {kind}", "read + write", "tokenize, one worker", 0.6, cold)
    overhead("filter: time against the same functions without Beam", "filter, one worker", "filter, no Beam")
    overhead("tokenize: time against the same functions without Beam", "tokenize, one worker", "tokenize, no Beam")
    for name in ("filter", "tokenize", f"tokenize, {RESIZED} px"):
        if name in row:
            for text, value in (("RSS", row[name].rss), ("anonymous", row[name].anonymous)):
                found.append(Aim(f"{name}: peak memory, {text}", value / 1e6, 1000, at_least=False, unit=" MB"))
    return found
