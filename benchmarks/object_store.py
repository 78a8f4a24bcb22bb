"""How much of a far object store's link do filter and tokenize use?

    python -m benchmarks.object_store

A server on this machine answers a request for n bytes after 50 ms + n / (100 MB/s), so K requests in flight give at
most K x 100 MB/s. Data sets with records of 0.1, 1, 10 and 100 MB are filtered and tokenized from s3://, with one
worker; index and mixture are written to the local disk. K is so small that two cores, which also serve, are faster than
the link: 2, and 1 for records of 0.1 MB, which take more processor time than transfer.

What the link gives is stated twice, for the bytes that the command needs (filter: everything but the frames; tokenize:
the frames of one camera, of each output shard), if their places were known from the start. `ideal` is computed: the
least connection time, which reads through gaps that are shorter than another request, divided by K. `downloader` is
measured: K threads that fetch the same ranges from the same server, 32 MiB at most at a time, and keep nothing.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks import far_data, make_shards, report
from benchmarks.far_server import Counts, environment, far, take_counts
from oxe_curate.episode import EpisodeId

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    """A data set, and how it is read.

    Attributes:
        record: MB of a record.
        shards, episodes: number of shards, and of records in each.
        at_once: requests in flight.
        output: MiB of images per output shard of the mixture.
    """

    record: float
    shards: int
    episodes: int
    at_once: int = 2
    output: int = 128


CASES = (Case(0.1, 8, 500, at_once=1, output=64), Case(1, 8, 100), Case(10, 8, 25), Case(100, 8, 6))
_LARGEST = 32 << 20
"""Bytes of the largest request of the downloader."""
_CAMERA = "image_0"
"""The camera that the mixture of benchmarks/product.py has."""
_AIM = 0.8


Parts = list[tuple[str, far_data.Ranges]]
"""What a command needs, part by part: object, and (offset, length) of its bytes."""


@dataclass(frozen=True)
class Link:
    """A connection: seconds before an answer, and bytes per second. `at_once`: connections."""

    delay: float
    bandwidth: float
    at_once: int

    def plan(self, ranges: far_data.Ranges) -> far_data.Ranges:
        """The requests with the least connection time: a gap is read if that is faster than another request."""
        runs: list[list[int]] = []
        for offset, length in ranges:
            if runs and offset - runs[-1][1] < self.delay * self.bandwidth:
                runs[-1][1] = offset + length
            else:
                runs.append([offset, offset + length])
        return [(start, stop - start) for start, stop in runs]

    def ideal(self, parts: Parts) -> float:
        """Seconds for all parts, with every connection busy until the end: no reader can be faster."""
        plan = [length for _, ranges in parts for _, length in self.plan(ranges)]
        return sum(self.delay + length / self.bandwidth for length in plan) / self.at_once


def download(port: int, parts: Parts, link: Link) -> float:
    """Seconds in which `link.at_once` threads fetch the ranges of all parts, the longest first, and drop the bytes."""
    pieces = [
        (min(_LARGEST, offset + length - at), key, at)
        for key, ranges in parts
        for offset, length in link.plan(ranges)
        for at in range(offset, offset + length, _LARGEST)
    ]
    waiting: queue.SimpleQueue[tuple[int, str, int] | None] = queue.SimpleQueue()
    for piece in [*sorted(pieces, reverse=True), *[None] * link.at_once]:
        waiting.put(piece)

    def work() -> None:
        connection, into = http.client.HTTPConnection("127.0.0.1", port), memoryview(bytearray(_LARGEST))
        while (piece := waiting.get()) is not None:
            length, key, at = piece
            connection.request("GET", f"/bucket/{key}", headers={"Range": f"bytes={at}-{at + length - 1}"})
            answer = connection.getresponse()
            while answer.readinto(into):
                pass

    threads = [threading.Thread(target=work) for _ in range(link.at_once)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start


def run(command: Sequence[str], port: int, in_flight: int) -> tuple[dict[str, Any], Counts]:
    """Run a contender of benchmarks.product: its own seconds and counts, and what it requested."""
    take_counts(port)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.product", *command],
        stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **environment(port, in_flight)},
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1]), take_counts(port)


def for_filter(data: Path) -> Parts:
    """What filter needs, shard by shard."""
    paths = sorted(data.rglob("*.tfrecord-*"))
    return [(str(path.relative_to(data)), far_data.needed(path, None)) for path in paths]


def for_tokenize(data: Path, mixture: Path) -> Parts:
    """What tokenize needs, output shard by output shard: an episode is in one of them, drawn at random."""
    paths, found = sorted(data.rglob("*.tfrecord-*")), []
    for output in sorted([*mixture.glob("train-*.parquet"), *mixture.glob("validation-*.parquet")]):
        names = map(EpisodeId.parse, set(pq.read_table(output, columns=["episode_id"])["episode_id"].to_pylist()))
        records: dict[int, set[int]] = {}
        for name in names:
            records.setdefault(name.shard, set()).add(name.record)
        for shard, chosen in sorted(records.items()):
            found.append((str(paths[shard].relative_to(data)), far_data.needed(paths[shard], _CAMERA, chosen)))
    return found


def measure(data: Path, case: Case, link: Link, scratch: Path) -> list[dict[str, Any]]:
    """A row of the tables for each command."""
    shutil.rmtree(scratch, ignore_errors=True)
    index, mixture, rows = scratch / "index", scratch / "mix", []
    with far(data, link.delay, link.bandwidth) as port:
        for command in ("filter", "tokenize"):
            if command == "filter":
                arguments = ["filter", "s3://bucket", str(index)]
            else:
                arguments = ["tokenize", str(index), str(mixture), "--shard-mb", str(case.output)]
            found, counts = run([*arguments, "--workers", "1"], port, link.at_once)
            parts = for_filter(data) if command == "filter" else for_tokenize(data, mixture)
            take_counts(port)
            anchor = download(port, parts, link)
            fetched = take_counts(port)
            episodes = case.shards * case.episodes
            rows.append({
                "command": command, "record": case.record, "at_once": link.at_once, "most": counts.at_once,
                "seconds": found["seconds"], "reading": counts.last - counts.first, "cpu": found["cpu_seconds"],
                "memory": found["memory_mb"], "ideal": link.ideal(parts), "downloader": anchor,
                "needed": sum(length for _, ranges in parts for _, length in ranges) / episodes,
                "requests": counts.reads / episodes, "bytes": counts.bytes / episodes,
                "other": counts.requests - counts.reads,
                "fewest": fetched.reads / episodes, "least": fetched.bytes / episodes,
            })  # fmt: skip
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def tables(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The aims, and requests and bytes per episode, as Markdown."""
    aims = [
        "| command | record | in flight | reading s | ideal s | downloader s | ideal / reading | downloader / reading "
        "| aim | met | command s | CPU s | memory MB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---|---:|---:|---:|",
    ]
    costs = [
        "| command | record | needed kB | requests | kB | downloader: requests | kB | other requests of the command |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        record, reading = f"{row['record']:g} MB", row["reading"]
        share = row["downloader"] / reading
        aims.append(
            f"| {row['command']} | {record} | {row['most']} of {row['at_once']} | {reading:.1f} | {row['ideal']:.1f} | "
            f"{row['downloader']:.1f} | {row['ideal'] / reading:.2f} | {share:.2f} | {_AIM} | "
            f"{'yes' if share >= _AIM else 'no'} | {row['seconds']:.1f} | {row['cpu']:.1f} | {row['memory']:.0f} |"
        )
        costs.append(
            f"| {row['command']} | {record} | {row['needed'] / 1e3:,.0f} | {row['requests']:.2f} | "
            f"{row['bytes'] / 1e3:,.0f} | {row['fewest']:.2f} | {row['least'] / 1e3:,.0f} | {row['other']} |"
        )
    return [
        "`reading`: from the first request for a source shard to the end of the last one. `command`: the whole "
        "command, with its start, judging or the last output shard, and the manifest.",
        "\n".join(aims), "## Requests and bytes of source shards, per episode", "\n".join(costs),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE / "data/far", help="folder of the data (%(default)s)")
    parser.add_argument("--record-mb", type=float, nargs="+", help="only these record sizes")
    parser.add_argument("--delay", type=float, default=0.05, help="seconds before each answer (%(default)s)")
    parser.add_argument("--bandwidth", type=float, default=100.0, help="MB/s of a connection (%(default)s)")
    parser.add_argument("--in-flight", type=int, help="connections (default: 2, and 1 for records of 0.1 MB)")
    parser.add_argument("--name", default="object-store")
    args = parser.parse_args()
    base = make_shards.find_base(make_shards.shared_folder(), args.data / "base")
    rows = []
    for case in CASES:
        if args.record_mb is None or case.record in args.record_mb:
            link = Link(args.delay, args.bandwidth * 1e6, args.in_flight or case.at_once)
            data = far_data.make(args.data / f"{case.record:g}", base, case.record, case.shards, case.episodes)
            rows += measure(data, case, link, args.data / "out")
    lines = [
        f"# Benchmark: {args.name}", f"`{' '.join(['python -m benchmarks.object_store', *sys.argv[1:]])}`",
        "\n".join(f"- {key}: {value}" for key, value in report.machine(HERE).items()),
        f"A request for n bytes takes {args.delay * 1e3:g} ms + n / ({args.bandwidth:g} MB/s). One worker.",
        *tables(rows),
    ]  # fmt: skip
    (HERE / "results" / f"{args.name}.md").write_text("\n\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
