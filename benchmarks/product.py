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
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow_datasets.core.features  # noqa: F401  (imported on first use: before the clock starts)

import oxe_curate.beam.fn  # noqa: F401  (likewise)
from oxe_curate.actions.bounds import Bounds
from oxe_curate.beam import runner
from oxe_curate.beam.task import Work
from oxe_curate.filter import pipeline as filtering
from oxe_curate.filter import scan
from oxe_curate.filter.plan import FilterOptions, plan_tasks
from oxe_curate.rlds.dataset import find
from oxe_curate.storage import Folder
from oxe_curate.tokenize import pipeline as tokenizing


def without_beam(tasks: Sequence[Any], work: Work, **_: object) -> None:
    """Replaces `runner.run_tasks`: the same tasks, run one after another."""
    for task in tasks:
        work(task)


def run_filter(args: argparse.Namespace) -> dict[str, Any]:
    options = FilterOptions(workers=args.workers, progress=False)
    result = filtering.run_filter(args.source, args.out, options)
    (summary,) = result.summaries.values()
    return {"kept": summary.kept, "seen": summary.seen, "bytes_looked_at": summary.bytes_read}


def statistics(args: argparse.Namespace) -> dict[str, Any]:
    """dataset_statistics.json straight from the shards, without an index; over every episode, as OpenVLA does."""
    options = FilterOptions(frames="span")
    tasks = plan_tasks(find(Folder.of(args.source)), Folder.of(args.out), options)
    table = pa.concat_tables(scan.scan_shard(task)[0] for task in tasks)
    actions = [np.asarray(chunk.values.flatten()).reshape(-1, 7) for chunk in table["action"].chunks]
    bounds = Bounds.fit(actions, num_trajectories=len(table) - table["action"].null_count)
    args.out.mkdir(parents=True)
    (args.out / "dataset_statistics.json").write_text(json.dumps({tasks[0].dataset.name: bounds.to_json()}))
    return {"source_steps": pc.sum(table["source_steps"]).as_py(), **bounds.to_json()}


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
