"""The group far: filter and tokenize from a simulated far object store, by size of record; see object_store.py."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

from benchmarks import far_data, object_store
from benchmarks.rows import Anchor, Row, at_least, round_ratio, takes_part
from benchmarks.settings import Settings, say

DELAY, BANDWIDTH = 0.05, 100e6
ROUNDS, AIM = 2, 0.8
FETCHING = "threads that only fetch the bytes needed"
Figures = dict[str, Any]


def rows(settings: Settings) -> Iterator[Row]:
    """Speed compared with threads that only fetch the ranges that the command needs, and what it requested."""
    folder, rounds = settings.data / "far", 1 if settings.quick else ROUNDS
    for case in object_store.CASES:
        link = object_store.Link(DELAY, BANDWIDTH, case.at_once)
        data = far_data.make(folder / f"{case.record:g}", settings.base, case.record, case.shards, case.episodes)
        runs: dict[str, list[Figures]] = {}
        spent: list[float] = []
        for number in range(rounds):
            if not takes_part(spent, settings.budget):
                break
            found = object_store.measure(data, case, link, folder / "out")
            spent.append(sum(row["seconds"] + row["downloader"] for row in found))
            for row in found:
                runs.setdefault(row["command"], []).append(row)
            say(f"records of {case.record:g} MB, round {number + 1} of {rounds}")
        for command, found in runs.items():
            yield from rows_of(command, case.record, found)


def rows_of(command: str, record: float, found: list[Figures]) -> Iterator[Row]:
    """The rows of a command and a size of record [MB], from the figures of each round."""
    anchor, first, what = (
        [row["downloader"] for row in found],
        found[0],
        f"{command} from s3://, records of {record:g} MB",
    )
    link = f"{DELAY * 1000:g} ms a request, {first['at_once']} at once, {BANDWIDTH / 1e6:g} MB/s each"
    for name, limit in (("reading", at_least(AIM)), ("seconds", None)):
        seconds = [row[name] for row in found]
        compared = Anchor(FETCHING, median(anchor), round_ratio(anchor, seconds), "speed")
        part = "first to last request" if name == "reading" else "whole command"
        note = link if name == "reading" else f"processor {median(row['cpu'] for row in found):.2g} s"
        yield Row("far", f"{what}, {part}", median(seconds), "s", (min(seconds), max(seconds)), compared, limit, note)
    for name, fewest, unit, scale in (("requests", "fewest", "", 1.0), ("bytes", "least", "kB", 1e3)):
        compared = Anchor(FETCHING, first[fewest] / scale, first[name] / first[fewest], name)
        yield Row("far", f"{what}: {name} an episode", first[name] / scale, unit, anchor=compared)
