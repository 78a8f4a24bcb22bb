"""Samples per second of the training data path on one core, compared with other readers of the same Parquet shards.

    python -m benchmarks.train_stream                  # writes benchmarks/results/train-stream.{md,json}

The mixture (about 150 MB of 224 px images) is made first if it is missing. The readers take turns, each in its own
process, on one core; then a loop that launches small operations, like a training step on a fast GPU, runs next to each
kind of loader. Nothing else should run at the same time.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks import make_shards, measure, report

HERE = Path(__file__).parent
BATCH, SIZE, BUFFER = 16, 224, 1000
NUMBERS = ["instruction", "action", "bins", "action_mask"]
RATE = 100  # samples per second that a training step uses
PACKAGES = ("torch", "datasets", "pillow")

Batches = Iterator[Any]


def make_mixture(folder: Path, shared: Path, gb: float) -> Path:
    """A tokenized mixture of varied Bridge episodes at 224 px, in several shards."""
    from oxe_curate.filter.pipeline import FilterOptions, run_filter
    from oxe_curate.tokenize.pipeline import TokenizeOptions, run_tokenize

    out = folder / f"stream-{gb:g}gb"
    if not (out / "manifest.json").exists():
        base = make_shards.find_base(shared, folder / "base")
        source = make_shards.make_dataset(folder / f"stream-source-{gb:g}gb", base, gb=gb, shards=4, size=256)
        run_filter(source, folder / "stream-index", FilterOptions(progress=False))
        mixture = folder / "stream.yaml"
        mixture.write_text(f"name: stream\ndatasets: [{{name: bridge_dataset, weight: 1}}]\nimage: {{size: {SIZE}}}\n")
        run_tokenize(mixture, folder / "stream-index", out, TokenizeOptions(progress=False, shard_bytes=32 << 20))
    return out


def shards(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.glob("train-*.parquet"))


def pillow(data: bytes) -> Any:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def simple(data: bytes) -> Any:
    import simplejpeg

    return simplejpeg.decode_jpeg(data, "RGB")


def plain(rows: Any) -> Any:
    return rows


def ours(folder: Path, row_groups: bool = False, workers: int = 1) -> Batches:
    """This project's loader: any row at any time, or by whole row groups as from an object store."""
    from oxe_curate.tokenize.folder import MixtureFolder
    from oxe_curate.train.data.loader import Loader

    mixture = MixtureFolder.open(str(folder))
    return iter(
        Loader(mixture, plain, image_size=SIZE, batch_size=BATCH, steps=10**6, workers=workers, row_groups=row_groups)
    )


def ours_encoded(folder: Path, row_groups: bool) -> Batches:
    """The data that the loader reads before decoding."""
    from oxe_curate.tokenize.folder import MixtureFolder
    from oxe_curate.train.data.order import batch_positions
    from oxe_curate.train.data.row_source import open_rows
    from oxe_curate.train.data.rows import SampleFormat
    from oxe_curate.train.data.shards import split_shards

    mixture = MixtureFolder.open(str(folder))
    rows = open_rows(mixture, split_shards(mixture, "train"), SampleFormat.of(mixture), row_groups=row_groups)
    order = rows.order(0, BATCH, 1)
    plan = (order.rows(batch_positions(0, step, 0, 1, BATCH)) for step in itertools.count())
    for claim in rows.batches(plan):
        yield [(block.records[row], block.texts[0][row], bytes(block.frame(row, 0, 0))) for block, row in claim()]


def buffered(samples: Iterator[Any]) -> Iterator[Any]:
    """A shuffle buffer as in webdataset and tf.data."""
    rng, held = random.Random(0), list(itertools.islice(samples, BUFFER))
    for sample in samples:
        place = rng.randrange(BUFFER)
        yield held[place]
        held[place] = sample


def dataset(folder: Path, decode: Callable[[bytes], Any] | None) -> Any:
    """The usual code around pyarrow: an IterableDataset over iter_batches, with a shuffle buffer."""
    import pyarrow.parquet as pq
    import torch

    class Shards(torch.utils.data.IterableDataset):  # type: ignore[misc]
        def __iter__(self) -> Iterator[Any]:
            return map(self.finish, buffered(self.rows()))

        def rows(self) -> Iterator[Any]:
            files, rng = shards(folder), random.Random(0)
            while True:
                rng.shuffle(files)
                for name in files:
                    for batch in pq.ParquetFile(name).iter_batches(256, columns=[*NUMBERS, "image_primary"]):
                        yield from batch.to_pylist()

        def finish(self, row: Any) -> Any:
            image = row["image_primary"]["bytes"]
            return {
                "image": decode(image) if decode else image, "instruction": row["instruction"],
                "action": np.float32(row["action"]), "bins": np.uint8(row["bins"]),
            }  # fmt: skip

    return Shards()


def collate(samples: Any) -> Any:
    """Like torch's default, but numpy arrays stay numpy and encoded images stay a list."""
    decoded = isinstance(samples[0]["image"], np.ndarray)
    stacked = {name: np.stack([s[name] for s in samples]) for name in ("action", "bins")}
    images = [s["image"] for s in samples]
    return {**stacked, "image": np.stack(images) if decoded else images}


def iter_batches(folder: Path, decode: Callable[[bytes], Any] | None, workers: int = 0) -> Batches:
    import torch

    return iter(torch.utils.data.DataLoader(dataset(folder, decode), BATCH, collate_fn=collate, num_workers=workers))


def hugging_face(folder: Path, streaming: bool, decode: bool) -> Batches:
    """datasets.load_dataset, shuffled: map-style by its own permutation, streaming with a buffer."""
    import datasets  # type: ignore[import-untyped]

    datasets.disable_progress_bars()
    loaded = datasets.load_dataset(
        "parquet", data_files=shards(folder), split="train", streaming=streaming, cache_dir=str(folder.parent / "hf")
    )
    if not decode:
        loaded = loaded.cast_column("image_primary", datasets.Image(decode=False))
    loaded = loaded.select_columns([*NUMBERS, "image_primary"])
    shuffled = loaded.shuffle(seed=0, buffer_size=BUFFER) if streaming else loaded.shuffle(seed=0)

    def samples() -> Iterator[Any]:
        while True:
            for row in shuffled:
                image = row["image_primary"]
                yield {
                    "image": np.asarray(image.convert("RGB")) if decode else image["bytes"],
                    "action": np.float32(row["action"]), "bins": np.uint8(row["bins"]),
                }  # fmt: skip

    endless = samples()
    return (collate(list(itertools.islice(endless, BATCH))) for _ in itertools.count())


CONTENDERS: dict[str, tuple[str, Callable[[Path], Batches]]] = {
    "this project, random order": ("decoded", ours),
    "this project, by row groups": ("decoded", lambda folder: ours(folder, True)),
    "torch DataLoader over iter_batches, simplejpeg": ("decoded", lambda folder: iter_batches(folder, simple)),
    "torch DataLoader over iter_batches, Pillow": ("decoded", lambda folder: iter_batches(folder, pillow)),
    "Hugging Face map-style": ("decoded", lambda folder: hugging_face(folder, False, True)),
    "Hugging Face streaming": ("decoded", lambda folder: hugging_face(folder, True, True)),
    "this project, random order, bytes": ("read only", lambda folder: ours_encoded(folder, False)),
    "this project, by row groups, bytes": ("read only", lambda folder: ours_encoded(folder, True)),
    "torch DataLoader over iter_batches, bytes": ("read only", lambda folder: iter_batches(folder, None)),
    "Hugging Face map-style, bytes": ("read only", lambda folder: hugging_face(folder, False, False)),
    "Hugging Face streaming, bytes": ("read only", lambda folder: hugging_face(folder, True, False)),
}
BESIDE: dict[str, Callable[[Path], Batches]] = {
    "this project, 2 threads": lambda folder: ours(folder, workers=2),
    "torch DataLoader, 2 processes": lambda folder: iter_batches(folder, simple, workers=2),
}


def stream(folder: Path, name: str, seconds: float) -> dict[str, float]:
    """Samples of one reader on one core, after a second to fill its buffers."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    batches = CONTENDERS[name][1](folder)
    until = time.perf_counter() + 1
    next(batches)
    while time.perf_counter() < until:
        next(batches)
    count, start, cpu = 0, time.perf_counter(), time.process_time()
    while (now := time.perf_counter()) < start + seconds:
        next(batches)
        count += 1
    return {"seconds": now - start, "samples": count * BATCH, "cpu": time.process_time() - cpu}


def beside(folder: Path, name: str, seconds: float) -> dict[str, Any]:
    """A loop of small operations that takes batches like a training step in every other quarter of a second.

    In the quarters between, the loader idles once its buffers are full; other work on the machine slows both equally.
    """
    import torch

    torch.set_num_threads(1)
    batches = BESIDE[name](folder)
    next(batches)
    time.sleep(2)  # buffers fill
    a, b = torch.ones(1), torch.ones(1)
    launches, spent, waited = [0, 0], [0.0, 0.0], 0.0
    for quarter in range(round(8 * seconds)):
        taking, due = quarter % 2, 0.0
        start = time.perf_counter()
        while (now := time.perf_counter() - start) < 0.25:
            if taking and now >= due:
                next(batches)
                waited += time.perf_counter() - start - now
                due += BATCH / RATE
            for _ in range(20):
                torch.add(a, b, out=a)
            launches[taking] += 20
        spent[taking] += now
    return {"seconds": spent[1], "waited": waited, "alone": launches[0] / spent[0], "beside": launches[1] / spent[1]}


def rounds(args: argparse.Namespace, folder: Path, part: str, names: list[str]) -> dict[str, list[Any]]:
    """Run the readers in turn."""
    found: dict[str, list[Any]] = {name: [] for name in names}
    log = args.data / "log.txt"
    for number in range(args.rounds):
        for name in names:
            print(f"\r{part} {number + 1}/{args.rounds} {name:60}", end="", file=sys.stderr)
            command = [
                *(sys.executable, "-m", "benchmarks.train_stream", f"--{part}", name),
                *("--mixture", str(folder), "--seconds", str(args.seconds)),
            ]
            files = [Path(path) for path in shards(folder)]
            found[name].append(measure.run(command, files, cold=False, log=log))
    print("\r" + " " * 90, end="\r", file=sys.stderr)
    return found


def tables(
    streams: dict[str, list[Any]], loops: dict[str, list[Any]], size: float
) -> list[tuple[list[str], list[Any]]]:
    """Header and lines of the two tables."""
    rate = {n: median(m.result["samples"] / m.result["seconds"] for m in runs) for n, runs in streams.items()}
    cpu = {n: median(m.result["samples"] / m.result["cpu"] for m in runs) for n, runs in streams.items()}
    lines = []
    for name, runs in streams.items():
        kind = CONTENDERS[name][0]
        first = next(rate[n] for n in rate if CONTENDERS[n][0] == kind)
        memory = max(m.anonymous for m in runs) / report.MB
        lines.append(
            [name, kind, f"{rate[name]:,.0f}", f"{rate[name] / first:.2g}", f"{cpu[name]:,.0f}",
             f"{rate[name] * size / 1e6:,.0f}", f"{memory:,.0f} MB"]
        )  # fmt: skip
    head = ["contender", "", "samples/s", "ratio", "per second of processor time", "MB/s of images", "anonymous memory"]
    slower = []
    for name, runs in loops.items():
        results = [m.result for m in runs]
        share = median(r["beside"] / r["alone"] for r in results)
        waited = median(r["waited"] / r["seconds"] for r in results)
        slower.append([name, f"{median(r['alone'] for r in results) / 1e3:,.0f}", f"{share:.1%}", f"{waited:.2%}"])
    return [
        (head, lines),
        (
            [
                "next to the loop",
                "thousand launches/s without a loader",
                "share of them next to it",
                "time waited for batches",
            ],
            slower,
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE / "data", help="folder for the data (%(default)s)")
    parser.add_argument("--shared", type=Path, default=make_shards.shared_folder(), help="folder with data/rlds")
    parser.add_argument("--gb", type=float, default=0.5, help="size of the source data (%(default)s)")
    parser.add_argument("--mixture", type=Path, help="existing mixture of 224 px images to use instead of making one")
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=5, help="of each run (%(default)s)")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder for the tables (%(default)s)")
    parser.add_argument("--stream", help=argparse.SUPPRESS)
    parser.add_argument("--beside", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stream:
        print(json.dumps(stream(args.mixture, args.stream, args.seconds)))
        os._exit(0)  # without waiting for prefetched work
    if args.beside:
        print(json.dumps(beside(args.mixture, args.beside, args.seconds)), flush=True)
        os._exit(0)
    args.data.mkdir(parents=True, exist_ok=True)
    folder = args.mixture or make_mixture(args.data, args.shared, args.gb)
    machine = report.machine(folder) | report.versions(sys.executable, PACKAGES)
    streams = rounds(args, folder, "stream", list(CONTENDERS))
    loops = rounds(args, folder, "beside", list(BESIDE))
    import pyarrow.parquet as pq

    counts = sum(pq.read_metadata(name).num_rows for name in shards(folder))
    size = sum(Path(name).stat().st_size for name in shards(folder)) / counts
    text = ["# The data path of training\n"]
    text.append(f"`python -m benchmarks.train_stream`: {counts:,} samples of {size / 1e3:.1f} kB.\n")
    text.append(", ".join(f"{key}: {value}" for key, value in machine.items()) + "\n")
    text.append(NOTE.format(rounds=args.rounds, seconds=args.seconds))
    for head, lines in tables(streams, loops, size):
        report.show("", head, lines)
        text.append(report.markdown(head, lines) + "\n")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "train-stream.md").write_text("\n".join(text))
    raw = {name: [m.result for m in runs] for name, runs in {**streams, **loops}.items()}
    (args.out / "train-stream.json").write_text(json.dumps({"machine": machine, "runs": raw}, indent=1) + "\n")


NOTE = """\
Medians of {rounds} rounds of {seconds:g} s in which the contenders take turns, each pinned to one core, shards in the
page cache, one second to fill buffers not counted. Each makes batches of 16 samples with instruction, action and bins;
"decoded" yields uint8 images of 224 px, "read only" encoded ones. This project's random order and Hugging Face's
map-style are permutations of all samples; the others mix within a buffer of 1,000 samples or more. The second table is
a loop of small torch operations, bound by launches like a training step on a fast GPU. Every other quarter of a
second it takes 100 samples a second from a loader; in the quarters between it runs without one. Hugging Face
streaming refills its buffer in each epoch, which is short here: its rate by processor time is the fairer one.
"""

if __name__ == "__main__":
    main()
