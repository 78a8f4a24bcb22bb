"""Readers of the same Parquet shards, each timed on one core in its own process; prints one line of JSON.

    python -m benchmarks.train_stream stream "this project, random order" MIXTURE

Or `beside`: a loop that launches small operations, like a training step on a fast GPU, next to a loader. loader.py lets
them take turns. Batches have 16 samples with instruction, action and bins; "decoded" yields uint8 images of 224 px,
"read only" encoded ones. This project's random order and Hugging Face's map-style are permutations of all samples; the
others mix within a buffer of 1,000 samples or more. Hugging Face streaming refills its buffer in each epoch, which is
short here: its rate by processor time is the fairer one.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import make_shards

BATCH, SIZE, BUFFER = 16, 224, 1000
NUMBERS = ["instruction", "action", "bins", "action_mask"]
RATE = 100  # samples per second that a training step uses

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["stream", "beside"])
    parser.add_argument("name", help="of a reader: " + ", ".join([*CONTENDERS, *BESIDE]))
    parser.add_argument("mixture", type=Path)
    parser.add_argument("--seconds", type=float, default=5, help="(%(default)s)")
    args = parser.parse_args()
    work = stream if args.part == "stream" else beside
    print(json.dumps(work(args.mixture, args.name, args.seconds)), flush=True)
    os._exit(0)  # without waiting for prefetched work


if __name__ == "__main__":
    main()
