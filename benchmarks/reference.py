"""The group reference: mixtures by reference, written for 25 million synthetic steps, and read in training."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks import scale
from benchmarks.rows import Anchor, Row, at_most, round_ratio
from benchmarks.settings import Settings, say

MB = 1e6
SECONDS, BYTES = 120, 40
DELAY, BANDWIDTH, AT_ONCE = 0.05, 100e6, 32  # of train_references.py


def rows(settings: Settings) -> Iterator[Row]:
    """Written, then read."""
    yield from _written(settings)
    out = settings.data / "references-out"
    command = [sys.executable, "-m", "benchmarks.train_references", "--out", str(out), "--seconds", "3"]
    command += ["--data", str(settings.data / "references"), "--rounds", str(min(2, settings.rounds))]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    yield from read_rows(json.loads((out / "train-references.json").read_text())["runs"])


def _written(settings: Settings) -> Iterator[Row]:
    """`tokenize` of the whole mixture, in a process of its own with its workers."""
    folder = settings.data / ("reference-quick" if settings.quick else "reference")
    folder.mkdir(parents=True, exist_ok=True)
    size = scale.Scale().part(0.1) if settings.quick else scale.Scale()
    say("makes the index, unless it is there")
    scale._makers(size)["soup"](folder / "soup")
    figures = scale.measured("reference", folder)
    if "failed" in figures:
        raise RuntimeError(figures["failed"])
    count = figures["rows"]
    what = f"tokenize by reference, a re-weighted soup of {count / 1e6:.3g} million rows"
    note = f"processor {figures['cpu']:.3g} s, two cores, all in"
    yield Row("reference", f"{what}: time", figures["seconds"], "s", limit=at_most(SECONDS), note=note)
    yield Row(
        "reference", f"{what}: places of the frames", figures["places"] / count, "B a frame", limit=at_most(BYTES)
    )
    yield Row("reference", f"{what}: all files", figures["written"] / count, "B a frame")
    note = f"anonymous {figures['anonymous'] / MB:,.0f} MB"
    yield Row("reference", f"{what}: peak memory", figures["rss"] / MB, "MB", note=note)


def read_rows(runs: Mapping[str, Sequence[Any]]) -> Iterator[Row]:
    """What train_references.py measured: on a disk compared with copies, from a store with the most it could give."""
    for mode in ("bytes", "decoded"):
        rates = [[run["samples"] / run["cpu"] for run in runs[f"{kind}, {mode}"]] for kind in ("references", "copies")]
        ours, copies = rates
        anchor = Anchor("a mixture with copies", median(copies), round_ratio(ours, copies), "speed")
        what = f"training reads by reference, local disk, {mode}: per second of processor time"
        yield Row("reference", what, median(ours), "samples/s", (min(ours), max(ours)), anchor)
    most = AT_ONCE / (DELAY + runs["size"][0] / BANDWIDTH)
    for place in ("on the disk", "in the store"):
        found = [run["samples"] / run["seconds"] for run in runs[f"references, mixture {place}"]]
        anchor = Anchor("a request for each frame, all always in flight", most, median(found) / most, "speed")
        note = f"{DELAY * 1000:g} ms a request, {AT_ONCE} at once, {BANDWIDTH / 1e6:g} MB/s each"
        what = f"training reads by reference from s3://, mixture {place}"
        yield Row("reference", what, median(found), "samples/s", (min(found), max(found)), anchor, note=note)
