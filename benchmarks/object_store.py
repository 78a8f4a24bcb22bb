"""How much of a far object store's link do filter and tokenize use?

    python -m benchmarks.object_store

A server on this machine answers a request for n bytes after 50 ms + n / (100 MB/s), so K requests in flight give at most
K x 100 MB/s. Data sets with records of 0.1, 1, 10 and 100 MB are filtered and tokenized from s3://, with one worker;
index and mixture are written to the local disk.

What the link gives is stated twice, for the bytes that the command needs (filter: everything but the frames; tokenize:
the frames of one camera), if their places were known from the start. `ideal` is computed: the least connection time,
which reads through gaps that are shorter than another request, divided by K. `downloader` is measured: K threads that
fetch the same ranges from the same server and keep nothing.
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

from benchmarks import far_data, make_shards, report
from benchmarks.far_server import Counts, environment, far, take_counts

HERE = Path(__file__).parent
SHARDS = 8
EPISODES = {0.1: 500, 1.0: 100, 10.0: 25, 100.0: 6}
"""Record size in MB -> records of a shard."""
_LARGEST = 32 << 20
"""Bytes of the largest request of the downloader."""
_CAMERA = ("image_0",)
"""The camera that the mixture of benchmarks/product.py has."""
_AIM = 0.8


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

    def ideal(self, shards: Sequence[far_data.Ranges]) -> float:
        """Seconds for all shards, with every connection busy until the end: no reader can be faster."""
        plan = [length for ranges in shards for _, length in self.plan(ranges)]
        return sum(self.delay + length / self.bandwidth for length in plan) / self.at_once


def download(port: int, keys: Sequence[str], shards: Sequence[far_data.Ranges], link: Link) -> float:
    """Seconds in which `link.at_once` threads fetch the ranges of all shards, the longest first, and drop the bytes."""
    pieces = [
        (min(_LARGEST, offset + length - at), key, at)
        for key, ranges in zip(keys, shards, strict=True)
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


def measure(data: Path, megabytes: float, link: Link, scratch: Path, only: str) -> list[dict[str, Any]]:
    """A row of the tables for each command."""
    paths = sorted(data.rglob("*.tfrecord-*"))
    keys = [str(path.relative_to(data)) for path in paths]
    rows = []
    shutil.rmtree(scratch, ignore_errors=True)
    index, mixture = str(scratch / "index"), str(scratch / "mix")
    with far(data, link.delay, link.bandwidth) as port:
        for command, cameras in (("filter", None), ("tokenize", _CAMERA)):
            shards = [far_data.needed(path, cameras) for path in paths]
            if command == "filter":
                found, counts = run(["filter", "s3://bucket", index, "--workers", "1"], port, link.at_once)
            else:
                found, counts = run(["tokenize", index, mixture, "--workers", "1"], port, link.at_once)
            episodes = len(paths) * EPISODES[megabytes]
            take_counts(port)
            anchor = download(port, keys, shards, link)
            fetched = take_counts(port)
            rows.append({
                "command": command, "record MB": megabytes, "in flight": link.at_once, "seconds": found["seconds"],
                "cpu": found.get("cpu_seconds", 0.0), "memory": found.get("memory_mb", 0.0),
                "ideal": link.ideal(shards), "downloader": anchor, "most": counts.at_once,
                "needed": sum(length for ranges in shards for _, length in ranges) / episodes,
                "requests": counts.reads / episodes, "bytes": counts.bytes / episodes,
                "other": counts.requests - counts.reads,
                "ideal requests": fetched.reads / episodes, "ideal bytes": fetched.bytes / episodes,
            })  # fmt: skip
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
            if only == command:
                break
    return rows


def tables(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The aims, and requests and bytes per episode, as Markdown."""
    aims = [
        "| command | record | in flight | s | ideal s | downloader s | of the ideal | of the downloader | aim | met | CPU s | memory MB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---|---:|---:|",
    ]
    costs = [
        "| command | record | needed kB | requests an episode | kB an episode | downloader: requests | kB | other requests |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        record = f"{row['record MB']:g} MB"
        share, of_anchor = row["ideal"] / row["seconds"], row["downloader"] / row["seconds"]
        aims.append(
            f"| {row['command']} | {record} | {row['in flight']} | {row['seconds']:.2f} | {row['ideal']:.2f} | "
            f"{row['downloader']:.2f} | {share:.2f} | {of_anchor:.2f} | {_AIM} | "
            f"{'yes' if of_anchor >= _AIM else 'no'} | {row['cpu']:.2f} | {row['memory']:.0f} |"
        )
        costs.append(
            f"| {row['command']} | {record} | {row['needed'] / 1e3:,.0f} | {row['requests']:.2f} | "
            f"{row['bytes'] / 1e3:,.0f} | {row['ideal requests']:.2f} | {row['ideal bytes'] / 1e3:,.0f} | "
            f"{row['other']} |"
        )
    return ["\n".join(aims), "## Requests and bytes of source shards, per episode", "\n".join(costs)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE / "data/far", help="folder of the data (%(default)s)")
    parser.add_argument("--record-mb", type=float, nargs="+", default=list(EPISODES), choices=list(EPISODES))
    parser.add_argument("--delay", type=float, default=0.05, help="seconds before each answer (%(default)s)")
    parser.add_argument("--bandwidth", type=float, default=100.0, help="MB/s of a connection (%(default)s)")
    parser.add_argument("--in-flight", type=int, default=4, help="connections (%(default)s)")
    parser.add_argument("--only", choices=["filter"], default="", help=argparse.SUPPRESS)
    parser.add_argument("--name", default="object-store")
    args = parser.parse_args()
    base = make_shards.find_base(make_shards.shared_folder(), args.data / "base")
    link = Link(args.delay, args.bandwidth * 1e6, args.in_flight)
    rows = []
    for megabytes in args.record_mb:
        data = far_data.make(args.data / f"{megabytes:g}", base, megabytes, SHARDS, EPISODES[megabytes])
        rows += measure(data, megabytes, link, args.data / "out", args.only)
    lines = [
        f"# Benchmark: {args.name}", "`python -m benchmarks.object_store`",
        "\n".join(f"- {key}: {value}" for key, value in report.machine(HERE).items()),
        *tables(rows),
    ]  # fmt: skip
    (HERE / "results" / f"{args.name}.md").write_text("\n\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
