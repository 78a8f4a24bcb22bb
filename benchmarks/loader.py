"""The group loader: samples per second of the data path of training, on one core; see train_stream.py."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from benchmarks import measure, train_stream
from benchmarks.rows import Anchor, Row, round_ratio
from benchmarks.settings import Settings, say

ROUNDS, SECONDS, GB = 2, 2, 0.5
OURS = {"decoded": "this project, random order", "read only": "this project, random order, bytes"}
STORED = "re-encoded at 224x224"
Runs = dict[str, list[measure.Measurement]]


def rows(settings: Settings) -> Iterator[Row]:
    """Each reader in turn; then the loop of small operations next to each kind of loader."""
    folder = train_stream.make_mixture(settings.data, settings.shared, GB / 4 if settings.quick else GB)
    names = list(train_stream.CONTENDERS)
    if not importlib.util.find_spec("datasets"):
        settings.skip("Hugging Face datasets", "is not installed")
        names = [name for name in names if "Hugging Face" not in name]
    streams = _in_turn(settings, folder, "stream", names)
    for name in names:
        kind = train_stream.CONTENDERS[name][0]
        if name == OURS[kind]:
            yield from _compared(streams, name, [other for other in names if train_stream.CONTENDERS[other][0] == kind])
    loops = _in_turn(settings, folder, "beside", list(train_stream.BESIDE))
    for name, runs in loops.items():
        shares = [100 * m.result["beside"] / m.result["alone"] for m in runs]
        waited = median(100 * m.result["waited"] / m.result["seconds"] for m in runs)
        what = f"a loop of small torch operations next to {name}, 100 samples/s: its own speed"
        yield Row(
            "loader", what, median(shares), "%", (min(shares), max(shares)), note=f"waits {waited:.2g} % of the time"
        )
    yield from _sizes(settings)


def _sizes(settings: Settings) -> Iterator[Row]:
    """Samples of each second of processor time by size of the stored images, and where they are resized."""
    out = settings.data / "resize-loader"
    command = [sys.executable, "-m", "benchmarks.resize_loader", "--out", str(out), "--shared", str(settings.shared)]
    command += ["--data", str(settings.data), "--rounds", str(min(3, settings.rounds))]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    rates = json.loads((out / "resize-loader.json").read_text())["rates"]
    base = rates[STORED]
    for name, found in rates.items():
        if name != STORED:
            anchor = Anchor(f"images {STORED}", median(base), round_ratio(found, base), "speed")
            spread = (min(found), max(found))
            what = f"the loader, images {name}: per second of processor time"
            yield Row("loader", what, median(found), "samples/s", spread, anchor)


def _in_turn(settings: Settings, folder: Path, part: str, names: Sequence[str]) -> Runs:
    runs: Runs = {name: [] for name in names}
    files = [Path(path) for path in train_stream.shards(folder)]
    count = min(ROUNDS, settings.rounds)
    for number in range(count):
        for name in names:
            command = [sys.executable, "-m", "benchmarks.train_stream", part, name, str(folder)]
            command += ["--seconds", str(1 if settings.quick else SECONDS)]
            runs[name].append(measure.run(command, files, cold=False, log=settings.data / "log.txt"))
            say(f"round {number + 1} of {count}, {part}, {name}")
    return runs


def _rates(runs: Sequence[measure.Measurement], seconds: str) -> list[float]:
    return [m.result["samples"] / m.result[seconds] for m in runs]


def _compared(streams: Runs, name: str, others: Sequence[str]) -> Iterator[Row]:
    """Rows of a reader of this project, compared with the others that do the same work."""
    ours = _rates(streams[name], "seconds")
    spread, memory = (min(ours), max(ours)), max(m.anonymous for m in streams[name]) / 1e6
    yield Row("loader", f"{name}, one core: memory, anonymous", memory, "MB")
    for other in others:
        if other == name:
            continue
        theirs = _rates(streams[other], "seconds")
        cpu = round_ratio(_rates(streams[name], "cpu"), _rates(streams[other], "cpu"))
        anchor = Anchor(other, median(theirs), round_ratio(ours, theirs), "speed", cpu)
        yield Row("loader", f"{name}, one core", median(ours), "samples/s", spread, anchor)
