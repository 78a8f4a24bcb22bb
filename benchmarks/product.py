"""This project's contenders, each timed in its own process; prints one line of JSON.

    python -m benchmarks.product filter SOURCE INDEX

The functions are those behind the commands. Imports are not timed (as with the peers); starting worker
processes, including their imports, is.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets.core.features  # noqa: F401  (imported on first use: before the clock starts)

import oxe_curate.beam.fn  # noqa: F401  (likewise)
from oxe_curate.actions.bounds import Bounds
from oxe_curate.beam import runner
from oxe_curate.beam.task import Work
from oxe_curate.filter import pipeline as filtering
from oxe_curate.filter.plan import FilterOptions
from oxe_curate.index.numbers import Numbers
from oxe_curate.index.store import Index
from oxe_curate.tokenize import pipeline as tokenizing


def without_beam(tasks: Sequence[Any], work: Work, **_: object) -> dict[str, Any]:
    """Replaces `runner.run_tasks`: the same tasks, run one after another."""
    return {task.output: getattr(work(task), "result", None) for task in tasks}


def run_filter(args: argparse.Namespace) -> dict[str, Any]:
    options = FilterOptions(
        workers=args.workers, progress=False, beam_args=tuple(f"--{option}" for option in args.beam)
    )
    result = filtering.run_filter(args.source, args.out, options)
    (summary,) = result.summaries.values()
    return {"kept": summary.kept, "seen": summary.seen, "bytes_looked_at": summary.bytes_read}


def statistics(args: argparse.Namespace) -> dict[str, Any]:
    """dataset_statistics.json from the shards: filter, then the index's own columns; over every episode, as OpenVLA."""
    filtering.run_filter(args.source, args.out / "index", FilterOptions(workers=args.workers, progress=False))
    index = Index.open(args.out / "index")
    ((name, entry),) = index.datasets.items()
    numbers = Numbers(index, name, "all")
    bounds = Bounds.fit(numbers.column("action"), num_trajectories=entry.summary.seen)
    (args.out / "dataset_statistics.json").write_text(json.dumps({name: bounds.to_json()}))
    steps = (np.asarray(table["source_steps"]).sum() for _, table in index.tables(name, ["source_steps"]))
    return {"source_steps": int(sum(steps)), **bounds.to_json()}


def run_tokenize(args: argparse.Namespace) -> dict[str, Any]:
    """A mixture of this one data set, every step once, the primary camera."""
    args.out.mkdir(parents=True)
    mixture = args.out.parent / f"{args.out.name}.yaml"
    size = args.image_size or "null"
    mixture.write_text(f"name: bench\ndatasets: [{{name: bridge_dataset, weight: 1.0}}]\nimage: {{size: {size}}}\n")
    options = tokenizing.TokenizeOptions(
        tokenizer=args.tokenizer, workers=args.workers, progress=False, shard_bytes=args.shard_mb << 20
    )
    result = tokenizing.run_tokenize(mixture, args.index, args.out, options)
    rows = sum(sum(counts.values()) for counts in result.manifest["rows"].values())
    written = sum(path.stat().st_size for path in args.out.glob("*.parquet"))
    return {"rows": rows, "shards": result.shards_done, "written": written}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, function in (("filter", run_filter), ("statistics", statistics), ("tokenize", run_tokenize)):
        command = commands.add_parser(name)
        command.set_defaults(function=function)
        command.add_argument("index" if name == "tokenize" else "source")
        command.add_argument("out", type=Path)
        command.add_argument("--workers", type=int, help="number of processes (default: from the amount of work)")
        command.add_argument(
            "--beam", nargs="*", default=(), metavar="OPTION", help="filter: such as runner=DirectRunner"
        )
        command.add_argument("--plain", action="store_true", help="the same functions without Beam, one process")
        command.add_argument("--tokenizer", type=Path, help="tokenize: folder or file")
        command.add_argument("--shard-mb", type=int, default=256, help="tokenize: MiB of images per output shard")
        command.add_argument("--image-size", type=int, help="tokenize: image size in pixels")
    args = parser.parse_args()
    if args.plain:
        runner.run_tasks = without_beam
    start, busy = time.perf_counter(), time.process_time()
    result = args.function(args)
    used = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - busy}
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # of this process; kibibytes on Linux
    sys.stdout.write(json.dumps({**used, "memory_mb": most, **result}) + "\n")


if __name__ == "__main__":
    main()
