"""Measure the share of a scan that standardising the actions takes; writes benchmarks/results/standardize.md.

    python -m benchmarks.standardize FOLDER        # a source root made by benchmarks.make_shards

Both are timed in one process, in turn, as the best of several rounds: otherwise other work on the machine would
dominate the share of such short times.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.report import machine
from oxe_curate.episode import Steps
from oxe_curate.filter.plan import FilterOptions, plan_tasks
from oxe_curate.filter.scan import Scanner, scan_shard
from oxe_curate.registry.card import DatasetCard
from oxe_curate.rlds import tfrecord
from oxe_curate.rlds.dataset import find
from oxe_curate.storage import Folder

ROUNDS = 15


def best(work: Callable[[], object]) -> float:
    """Seconds of the fastest round."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def standardize_all(card: DatasetCard, episodes: list[Steps]) -> None:
    """Standardise the episodes of a shard together, as the scan does."""
    card.standardizer().many(episodes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    source = parser.parse_args().source
    lines = []
    for dataset in find(Folder.of(source)):
        for frames in ("span", "exact"):
            task = plan_tasks([dataset], Folder.of(source), FilterOptions(frames=frames))[0]
            scanner = Scanner(dataset, task.card, task.recipe)
            shard = memoryview(dataset.source.read_bytes(task.shard.path))
            episodes = [scanner.reader.read(shard, offset, length) for offset, length in tfrecord.records(shard)]
            steps = [episode.steps for episode in episodes]
            whole = best(partial(scan_shard, task)) / len(steps)
            part = best(partial(standardize_all, task.card, steps)) / len(steps)
            length = sum(episode.num_steps for episode in episodes) / len(episodes)
            cells = (f"{length:.0f}", frames, f"{whole * 1e6:.0f}", f"{part * 1e6:.0f}", f"{part / whole:.2f}")
            lines.append(f"| {dataset.label} | {' | '.join(cells)} |")
    table = [
        "| data set | steps per episode | frames | scan, µs per episode | standardise, µs | share |",
        "|---|---|---|---|---|---|",
        *lines,
    ]
    command = f"python -m benchmarks.standardize {shlex.join(sys.argv[1:])}"
    told = ", ".join(f"{key} {value}" for key, value in machine(source).items())
    text = "\n".join([f"`{command}`", "", told, "", *table, ""])
    print(text)
    (Path(__file__).parent / "results" / "standardize.md").write_text(text)


if __name__ == "__main__":
    main()
