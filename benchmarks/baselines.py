"""The baselines for filter and tokenize, each timed in its own process; prints one line of JSON.

    python benchmarks/baselines.py read FOLDER

FOLDER is a TFDS folder, <name>/<version>. `read` and `read_write` need only Python, the others TensorFlow and
tensorflow-datasets (no oxe_curate: they run in any environment with those two). Imports are not timed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any

BLOCK = 1 << 20


def used() -> float:
    """Seconds of processor time of this process and of those that it has waited for."""
    found = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in found)


def shards(folder: Path) -> list[Path]:
    """The shards of the train split, in order."""
    return sorted(folder.glob("*-train.tfrecord-*"))


def read_file(path: Path) -> int:
    """Read a file once, into one buffer; return its size."""
    buffer, total = bytearray(BLOCK), 0
    with path.open("rb", buffering=0) as file:
        while got := file.readinto(buffer):
            total += got
    return total


class FileCutter:
    """A sink that splits its input into files of the given sizes, OUT/PREFIX-0, OUT/PREFIX-1, ..."""

    def __init__(self, out: Path, prefix: str, sizes: list[int]) -> None:
        self._files = iter([(out / f"{prefix}-{number}", size) for number, size in enumerate(sizes)])
        self._file: FileIO | None = None
        self._room = 0

    def write(self, data: memoryview) -> None:
        while data:
            if self._file is None or self._room == 0:
                self.close()
                path, self._room = next(self._files)
                self._file = FileIO(path, "w")
            n = self._file.write(data[: self._room])
            data, self._room = data[n:], self._room - n

    def close(self) -> None:
        if self._file:
            self._file.close()


def read_write_files(out: Path, sizes: list[int], paths: list[Path]) -> int:
    """Read every byte of `paths` and write files of the given sizes, from the bytes read; return the bytes read.

    The writes are spread evenly over the reads, so that the two share the disk as in a real conversion.
    """
    source_size, budget = sum(path.stat().st_size for path in paths), sum(sizes)
    sink, buffer = FileCutter(out, paths[0].name, sizes), memoryview(bytearray(BLOCK))
    total = written = 0
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while got := file.readinto(buffer):
                total += got
                while written < (due := budget * total // source_size):
                    block = buffer[: due - written]
                    sink.write(block)
                    written += len(block)
    sink.close()
    return total


def read(args: argparse.Namespace) -> dict[str, Any]:
    """One process reads every byte, one file after another."""
    return {"bytes": sum(read_file(path) for path in shards(args.folder))}


def read_write(args: argparse.Namespace) -> dict[str, Any]:
    """Read every byte and write the sizes of --sizes to --out, with --processes processes."""
    paths, sizes = shards(args.folder), [int(size) for size in args.sizes.split(",")]
    args.out.mkdir(parents=True, exist_ok=True)
    n = min(args.processes, len(paths))
    work = [(sizes[i::n], paths[i::n]) for i in range(n)]
    if n == 1:
        total = read_write_files(args.out, sizes, paths)
    else:
        with multiprocessing.get_context("fork").Pool(n) as pool:
            total = sum(pool.starmap(partial(read_write_files, args.out), work))
    return {"bytes": total, "written": sum(path.stat().st_size for path in args.out.iterdir())}


def tf_data(args: argparse.Namespace) -> dict[str, Any]:
    """tf.data yields every raw record; nothing is parsed."""
    import tensorflow as tf

    start, before = time.perf_counter(), used()
    dataset = tf.data.TFRecordDataset([str(p) for p in shards(args.folder)], num_parallel_reads=tf.data.AUTOTUNE)
    episodes = sum(1 for _ in dataset)
    return {"seconds": time.perf_counter() - start, "cpu": used() - before, "episodes": episodes}


def tfds_skip(args: argparse.Namespace) -> dict[str, Any]:
    """TFDS parses every episode, images left encoded (SkipDecoding on `steps`, as OpenVLA and Octo read)."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    start, before = time.perf_counter(), used()
    builder = tfds.builder_from_directory(str(args.folder))
    config = tfds.ReadConfig(num_parallel_calls_for_interleave_files=tf.data.AUTOTUNE)
    dataset = builder.as_dataset(split="train", decoders={"steps": tfds.decode.SkipDecoding()}, read_config=config)
    steps = sum(int(episode["steps"]["action"].shape[0]) for episode in dataset)
    return {"seconds": time.perf_counter() - start, "cpu": used() - before, "steps": steps}


def tfds_decoded(args: argparse.Namespace) -> dict[str, Any]:
    """TFDS as in its documentation, every image decoded; stops after --limit steps."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    start, before = time.perf_counter(), used()
    dataset = tfds.builder_from_directory(str(args.folder)).as_dataset(split="train")
    flat = dataset.interleave(lambda e: e["steps"], cycle_length=8, num_parallel_calls=tf.data.AUTOTUNE)
    steps = 0
    for batch in flat.batch(64).prefetch(tf.data.AUTOTUNE):
        steps += int(batch["action"].shape[0])
        if args.limit and steps >= args.limit:
            break
    return {"seconds": time.perf_counter() - start, "cpu": used() - before, "steps": steps, "partial": True}


CONTENDERS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    function.__name__: function for function in (read, read_write, tf_data, tfds_skip, tfds_decoded)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contender", choices=CONTENDERS)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--limit", type=int, default=0, help="tfds_decoded: number of steps to stop after (0: no limit)"
    )
    parser.add_argument("--out", type=Path, help="read_write: folder to write to")
    parser.add_argument("--sizes", help="read_write: sizes of the files to write, in bytes, comma-separated")
    parser.add_argument("--processes", type=int, default=1, help="read_write: number of processes (%(default)s)")
    args = parser.parse_args()
    start, before = time.perf_counter(), used()
    result = CONTENDERS[args.contender](args)
    result = {"seconds": time.perf_counter() - start, "cpu": used() - before} | result
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
