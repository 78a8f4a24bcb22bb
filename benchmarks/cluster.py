"""filter on a Dask cluster whose reads are slow, by number of workers; and the job of 4 TB of shards.

    python -m benchmarks.cluster --folder FOLDER

Scheduler and workers are processes of this machine; each worker's read takes 50 ms longer (slow_reads.py), so that
they wait as on a slow network file system. Writes results/cluster.{md,json}.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.report import machine
from benchmarks.scale_source import small_shards
from oxe_curate.beam.job import Job
from oxe_curate.filter import scan
from oxe_curate.filter.pipeline import FilterOptions, run_filter
from oxe_curate.filter.plan import plan_tasks
from oxe_curate.rlds.dataset import find
from oxe_curate.storage import Folder

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[1]
TERABYTES, SHARD_BYTES = 4, 256 << 20


@contextmanager
def dask_cluster(folder: Path, workers: int, preload: str = "") -> Iterator[str]:
    """Start a scheduler and workers as processes; yield the scheduler's address."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "scheduler.json"
    file.unlink(missing_ok=True)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    started: list[subprocess.Popen[bytes]] = []

    def start(kind: str, *options: str) -> None:
        command = [
            sys.executable,
            "-m",
            f"distributed.cli.dask_{kind}",
            "--scheduler-file",
            str(file),
            "--no-dashboard",
        ]
        with (folder / f"{kind}.log").open("a") as log:
            started.append(subprocess.Popen([*command, *options], env=env, cwd=folder, stdout=log, stderr=log))

    try:
        start("scheduler", "--host", "127.0.0.1", "--port", "0")
        while not file.exists():
            time.sleep(0.1)
        for _ in range(workers):
            start("worker", "--nthreads", "1", "--no-nanny", *(["--preload", preload] if preload else []))
        address = str(json.loads(file.read_text())["address"])
        _wait_for_workers(address, workers)
        yield address
    finally:
        for process in started:
            process.kill()
            process.wait()


def _wait_for_workers(address: str, workers: int) -> None:
    from dask.distributed import Client

    with Client(address, set_as_default=False) as client:
        client.wait_for_workers(workers, timeout=120)


def throughput(folder: Path, shards: int, workers: Sequence[int]) -> list[dict[str, Any]]:
    """Seconds of `filter` by number of workers, each on a fresh index."""
    source = small_shards(folder / "source", shards)
    rows = []
    for count in workers:
        shutil.rmtree(folder / "index", ignore_errors=True)
        with dask_cluster(folder / "dask", count, "benchmarks.slow_reads") as address:
            options = FilterOptions(
                progress=False, beam_args=("--runner=DaskRunner", f"--dask_client_address={address}")
            )
            start = time.monotonic()
            run_filter(source, folder / "index", options)
            seconds = time.monotonic() - start
        rows.append(
            {"workers": count, "shards": shards, "seconds": round(seconds, 2), "shards_per_s": shards / seconds}
        )
        print(rows[-1], flush=True)
    return rows


def job_size(folder: Path) -> dict[str, Any]:
    """What the job of 4 TB of shards costs the command: its file, its graph, and the time until it is submitted."""
    from oxe_curate.beam.remote import remote_pipeline

    dataset = find(Folder.of(small_shards(folder / "source", 160)))
    out = Folder.of(folder / "job")
    few = plan_tasks(dataset, out, FilterOptions())
    count = (TERABYTES << 40) // SHARD_BYTES
    tasks = [
        replace(
            few[n % len(few)], shard=replace(few[0].shard, number=n, count=count, path=f"{few[0].shard.path}-{n:05d}")
        )
        for n in range(count)
    ]
    start, used = time.monotonic(), time.process_time()
    job = Job.publish(tasks, scan.write_scanned_shard)
    packed = time.monotonic() - start
    proto = remote_pipeline(job, []).to_runner_api()
    built = time.monotonic() - start
    return {
        "tasks": count,
        "bytes of one task, pickled": len(pickle.dumps(tasks[0])),
        "bytes of all tasks, pickled one by one": count * len(pickle.dumps(tasks[0])),
        "bytes of the job file": out.size(job.file),
        "bytes of the graph": len(proto.SerializeToString()),
        "seconds to pack": round(packed, 2),
        "seconds to pack and build": round(built, 2),
        "cpu seconds": round(time.process_time() - used, 2),
        "seconds until Dask runs the first": round(_submission(folder, tasks), 1),
        "bytes of memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def touch(task: scan.FilterTask) -> None:
    """A task without work."""
    task.out.publish_bytes(task.output, b"")


def _submission(folder: Path, tasks: Sequence[scan.FilterTask]) -> float:
    """Seconds until the first of the tasks has run on Dask; they only write an empty file."""
    from oxe_curate.beam import dask_cluster as on_dask
    from oxe_curate.beam.options import Patience
    from oxe_curate.beam.remote import remote_pipeline

    shutil.rmtree(folder / "empty", ignore_errors=True)
    out = Folder.of(folder / "empty")
    with dask_cluster(folder / "dask", 2) as address:
        start = time.monotonic()
        job = Job.publish([replace(task, out=out) for task in tasks], touch)
        named = ["--runner=apache_beam.runners.dask.dask_runner.DaskRunner", f"--dask_client_address={address}"]
        result = on_dask.DaskJob(remote_pipeline(job, on_dask.dask_options(named, len(tasks), Patience())).run())
        while not any(name.endswith(".parquet") for name, _, _ in out.list(tasks[0].output.rpartition("/")[0])):
            time.sleep(0.1)
        seconds = time.monotonic() - start
        result.cancel()
        result.close()
    return seconds


def markdown(rows: Sequence[dict[str, Any]], job: dict[str, Any]) -> str:
    """The tables of results/cluster.md."""
    first = rows[0]["seconds"]
    lines = ["# filter on a cluster", "", ", ".join(f"{name} {value}" for name, value in machine(RESULTS).items()), ""]
    lines += [f"Every read of a worker takes 50 ms longer; {rows[0]['shards']} shards.", ""]
    lines += ["| workers | seconds | shards/s | speed-up |", "|---:|---:|---:|---:|"]
    lines += [
        f"| {r['workers']} | {r['seconds']:.1f} | {r['shards_per_s']:.1f} | {first / r['seconds']:.2f} |" for r in rows
    ]
    lines += ["", f"## The job of {TERABYTES} TB in shards of {SHARD_BYTES >> 20} MB", "", "| | |", "|---|---:|"]
    lines += [f"| {name} | {value:,} |" for name, value in job.items()]
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure, and write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/data/cluster"))
    parser.add_argument("--shards", type=int, default=160)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    args = parser.parse_args()
    rows = throughput(args.folder.absolute(), args.shards, args.workers)
    job = job_size(args.folder.absolute())
    (RESULTS / "cluster.json").write_text(
        json.dumps({"environment": machine(RESULTS), "throughput": rows, "job": job}, indent=1) + "\n"
    )
    (RESULTS / "cluster.md").write_text(markdown(rows, job))
    print(markdown(rows, job))


if __name__ == "__main__":
    main()
