"""Samples per second of the training data path from a mixture by reference, next to one that has copies.

    python -m benchmarks.train_references              # writes benchmarks/results/train-references.{md,json}

The source is 256 px Bridge episodes in 24 shards; it is made first if it is missing, and the images keep their size.
On the local disk (in the page cache) the contenders take turns, each in its own process on one core; what counts is
samples per second of processor time. Then the same samples are read from s3://, from a server on this machine that
answers a request for n bytes after 50 ms + n / (100 MB/s), with 32 requests in flight, as by default.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import make_shards, measure, report
from benchmarks.far_server import environment, far, take_counts

HERE = Path(__file__).parent
BATCH, SIZE, SHARDS = 32, 256, 24
IN_FLIGHT = 32
MIXTURES = {"copies": "", "references": "image: {copy: false}\n"}
MODES = ("bytes", "decoded")


def make_mixtures(folder: Path, gb: float) -> Path:
    """folder/copies and folder/references: the same mixture in both forms."""
    from oxe_curate.filter.pipeline import FilterOptions, run_filter
    from oxe_curate.tokenize.pipeline import TokenizeOptions, run_tokenize

    base = make_shards.find_base(make_shards.shared_folder(), folder / "base")
    source = make_shards.make_dataset(folder / "in", base, gb=gb, shards=SHARDS, size=SIZE)
    if not (folder / "index" / "index.json").exists():
        run_filter(source, folder / "index", FilterOptions(progress=False, frames="exact"))
    for name, keys in MIXTURES.items():
        if not (folder / name / "manifest.json").exists():
            text = f"name: m\ndatasets: [{{name: bridge_dataset, weight: 1}}]\n{keys}"
            (folder / f"{name}.yaml").write_text(text)
            options = TokenizeOptions(progress=False, shard_bytes=64 << 20)
            run_tokenize(folder / f"{name}.yaml", folder / "index", folder / name, options)
    return source


def encoded(mixture: Any, workers: int) -> Iterator[Any]:
    """Batches of encoded frames with their numbers, read in the order of the loader."""
    from oxe_curate.train.data.loader import prefetched
    from oxe_curate.train.data.order import batch_positions
    from oxe_curate.train.data.row_source import open_rows
    from oxe_curate.train.data.rows import SampleFormat
    from oxe_curate.train.data.shards import split_shards

    rows = open_rows(mixture, split_shards(mixture, "train"), SampleFormat.of(mixture))
    order = rows.order(0, BATCH, 1)
    claims = rows.batches(order.rows(batch_positions(0, step, 0, 1, BATCH)) for step in itertools.count())

    def job(claim: Any) -> Any:
        return {"rows": [(block.records[row], block.texts[0][row], block.frame(row, 0, 0)) for block, row in claim()]}

    for batch in prefetched((functools.partial(job, claim) for claim in claims), workers):
        yield batch["rows"]


def batches(folder: str, source: str | None, mode: str, workers: int) -> Iterator[Any]:
    from oxe_curate.tokenize.folder import MixtureFolder
    from oxe_curate.train.data.loader import Loader

    mixture = MixtureFolder.open(folder, source)
    mixture = dataclasses.replace(mixture, compared=mixture.sources.compare())  # as train does
    if mode == "bytes":
        return encoded(mixture, workers)
    return iter(
        Loader(mixture, lambda rows: {"rows": rows}, image_size=SIZE, batch_size=BATCH, steps=10**6, workers=workers)
    )


def read(folder: str, source: str | None, mode: str, seconds: float, port: int) -> dict[str, Any]:
    """Samples, seconds and processor time, after buffers were filled; on one core, unless from a store."""
    workers = 8 if port else 1
    seconds = max(seconds, 12) if port else seconds  # what is read ahead takes a second
    if not port:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    found = batches(folder, source, mode, workers)
    until = time.perf_counter() + (4 if port else 1)
    next(found)
    while time.perf_counter() < until:
        next(found)
    if port:
        take_counts(port)
    count, start, cpu = 0, time.perf_counter(), time.process_time()
    while (now := time.perf_counter()) < start + seconds:
        next(found)
        count += 1
    counts = take_counts(port) if port else None
    return {
        "seconds": now - start, "samples": count * BATCH, "cpu": time.process_time() - cpu,
        **({"requests": counts.requests, "bytes": counts.bytes} if counts else {}),
    }  # fmt: skip


def child(args: argparse.Namespace, folder: str, mode: str, source: str | None, port: int = 0) -> dict[str, Any]:
    command = [
        sys.executable, "-m", "benchmarks.train_references", "--read", mode, "--mixture", folder,
        "--seconds", str(args.seconds), "--port", str(port), *(["--source", source] if source else []),
    ]  # fmt: skip
    files = [path for part in ("copies", "references", "in") for path in (args.data / part).rglob("*-of-*")]
    return measure.run(command, files, cold=False, log=args.data / "log.txt").result


def local_lines(args: argparse.Namespace, runs: dict[str, list[Any]]) -> list[list[str]]:
    for _ in range(args.rounds):
        for mode in MODES:
            for name in MIXTURES:
                runs.setdefault(f"{name}, {mode}", []).append(child(args, str(args.data / name), mode, None))
    rate = {key: median(run["samples"] / run["cpu"] for run in found) for key, found in runs.items()}
    return [
        [mode, *(f"{rate[f'{name}, {mode}']:,.0f}" for name in MIXTURES),
         f"{rate[f'references, {mode}'] / rate[f'copies, {mode}']:.2f}"]
        for mode in MODES
    ]  # fmt: skip


def far_lines(args: argparse.Namespace, source: Path, runs: dict[str, list[Any]]) -> list[list[str]]:
    """The mixture on this disk or in the store, its sources in the store."""
    limit = IN_FLIGHT / (args.delay + runs["size"][0] / args.bandwidth / 1e6)
    lines = []
    with far(args.data, args.delay, args.bandwidth * 1e6) as port:
        os.environ |= environment(port, IN_FLIGHT)
        where = f"s3://bucket/{source.relative_to(args.data)}"
        for title, folder, root in (
            ("references, mixture on the disk", str(args.data / "references"), where),
            ("references, mixture in the store", "s3://bucket/references", where),
        ):
            (run,) = runs[title] = [child(args, folder, "bytes", root, port)]
            rate = run["samples"] / run["seconds"]
            lines.append([
                title, f"{rate:,.0f}", f"{rate / limit:.2f}", f"{run['requests'] / run['samples']:.2f}",
                f"{run['bytes'] / run['samples'] / 1e3:.1f}", f"{run['samples'] / run['cpu']:,.0f}",
            ])  # fmt: skip
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE / "data" / "references", help="folder (%(default)s)")
    parser.add_argument("--gb", type=float, default=0.6, help="size of the source data (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=4, help="of each run (%(default)s)")
    parser.add_argument("--delay", type=float, default=0.05, help="seconds before each answer (%(default)s)")
    parser.add_argument("--bandwidth", type=float, default=100, help="MB/s of a connection (%(default)s)")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder for the tables (%(default)s)")
    parser.add_argument("--read", choices=MODES, help=argparse.SUPPRESS)
    parser.add_argument("--mixture", help=argparse.SUPPRESS)
    parser.add_argument("--source", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read:
        print(json.dumps(read(args.mixture, args.source, args.read, args.seconds, args.port)), flush=True)
        os._exit(0)  # without waiting for prefetched work
    args.data = args.data.absolute()
    args.data.mkdir(parents=True, exist_ok=True)
    source = make_mixtures(args.data, args.gb)
    machine = report.machine(args.data)
    import pyarrow.parquet as pq

    kept = list((args.data / "copies").glob("train-*.parquet"))
    rows = sum(pq.read_metadata(path).num_rows for path in kept)
    sizes = {name: sum(p.stat().st_size for p in (args.data / name).glob("train-*")) / rows for name in MIXTURES}
    runs: dict[str, list[Any]] = {}
    text = ["# Training from references and from copies\n"]
    text.append(
        f"`python -m benchmarks.train_references`: {rows:,} samples. A row takes {sizes['copies'] / 1e3:.1f} kB with a "
        f"copy of its frame and {sizes['references']:.0f} bytes without.\n"
    )
    text.append(", ".join(f"{key}: {value}" for key, value in machine.items()) + "\n")
    head, lines = ["samples per second of processor time", "copies", "references", "ratio"], local_lines(args, runs)
    report.show("", head, lines)
    text += ["From the page cache, one thread on one core, random order:\n", report.markdown(head, lines) + "\n"]
    runs["size"] = [sizes["copies"]]
    head = [
        "encoded frames from s3://", "samples/s", "of the limit", "requests a sample", "kB a sample",
        "samples per second of processor time",
    ]  # fmt: skip
    lines = far_lines(args, source, runs)
    report.show("", head, lines)
    text.append(
        f"From a store that answers n bytes after {args.delay * 1000:.0f} ms + n / ({args.bandwidth:g} MB/s), "
        f"{IN_FLIGHT} requests in flight; the limit is one request a frame, with all of them always in flight:\n"
    )
    text.append(report.markdown(head, lines) + "\n")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "train-references.md").write_text("\n".join(text))
    (args.out / "train-references.json").write_text(json.dumps({"machine": machine, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
