"""Training samples per second of processor time: images resized in the loader, left to the GPU, or re-encoded before.

    python -m benchmarks.resize_loader --out benchmarks/results        # a minute

Writes resize-loader.{md,json}. A mixture of varied Bridge episodes at 256 px is made first. For other sizes its frames
are exchanged, after they were read, for the same pictures at that size. One thread decodes; the kinds take turns, and
processor time is counted, so other work on the machine disturbs little.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from benchmarks import make_shards, report
from oxe_curate.filter.pipeline import FilterOptions, run_filter
from oxe_curate.tokenize.folder import MixtureFolder
from oxe_curate.tokenize.pipeline import TokenizeOptions, run_tokenize
from oxe_curate.train.data.batch import Batch, Rows
from oxe_curate.train.data.loader import Loader
from oxe_curate.train.data.local import LocalBlock
from oxe_curate.train.data.mixed import packed

HERE = Path(__file__).parent
BATCH, SIZE, POOL = 16, 224, 64
SHAPES = {"256x256": (256, 256), "480x640": (480, 640), "224x224": (SIZE, SIZE)}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "256x256, left to the GPU": ("256x256", {"mixed": True}),
    "256x256, bicubic in the loader": ("256x256", {}),
    "256x256, lanczos3 in the loader": ("256x256", {"resize": "lanczos3"}),
    "480x640, left to the GPU": ("480x640", {"mixed": True}),
    "480x640, bicubic in the loader": ("480x640", {}),
    "480x640, lanczos3 in the loader": ("480x640", {"resize": "lanczos3"}),
    "re-encoded at 224x224": ("224x224", {}),
}


def make_mixture(folder: Path, shared: Path) -> Path:
    """A tokenized mixture of 256 px images."""
    out = folder / "resize"
    if not (out / "manifest.json").exists():
        base = make_shards.find_base(shared, folder / "base")
        source = make_shards.make_dataset(folder / "resize-source", base, gb=0.05, shards=2, size=256)
        run_filter(source, folder / "resize-index", FilterOptions(progress=False))
        mixture = folder / "resize.yaml"
        mixture.write_text("name: resize\ndatasets: [{name: bridge_dataset, weight: 1}]\n")
        run_tokenize(mixture, folder / "resize-index", out, TokenizeOptions(progress=False))
    return out


def pictures(mixture: MixtureFolder, shape: tuple[int, int]) -> list[bytes]:
    """Frames of the mixture at another size, with as much noise as they have at theirs."""
    blocks = Loader(mixture, plain, image_size=SIZE, batch_size=POOL)
    rng, found = np.random.default_rng(0), []
    for image in blocks.rows(0).images[:, 0, 0]:  # type: ignore[union-attr]
        resized = np.asarray(Image.fromarray(image).resize(shape[::-1], Image.Resampling.LANCZOS))
        noisy = np.clip(resized + rng.normal(0, make_shards.NOISE, resized.shape), 0, 255).astype(np.uint8)
        found.append(bytes(simplejpeg.encode_jpeg(noisy, quality=95, colorsubsampling="420")))
    return found


def plain(rows: Rows) -> Batch:
    """A batch of images and actions."""
    return {"images": packed(rows.images[:, -1]), "actions": rows.actions}


def batches(mixture: MixtureFolder, options: dict[str, Any]) -> Iterator[Batch]:
    """Batches of the loader, in the caller's thread."""
    loader = Loader(mixture, plain, image_size=SIZE, batch_size=BATCH, workers=1, **options)
    return (plain(loader.rows(step)) for step in itertools.count())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE / "data", help="folder for the data (%(default)s)")
    parser.add_argument("--shared", type=Path, default=make_shards.shared_folder(), help="folder with data/rlds")
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=1, help="of each run (%(default)s)")
    parser.add_argument("--out", type=Path, help="folder for the tables")
    args = parser.parse_args()
    args.data.mkdir(parents=True, exist_ok=True)
    mixture = MixtureFolder.open(str(make_mixture(args.data, args.shared)))
    pools = {name: pictures(mixture, shape) for name, shape in SHAPES.items() if name != "256x256"}
    sizes = {name: sum(map(len, pool)) / len(pool) for name, pool in pools.items()}
    read = LocalBlock.frame
    chosen: list[bytes] = []

    def frame(self: LocalBlock, row: int, observation: int, camera: int) -> bytes | memoryview:
        data = read(self, row, observation, camera)
        sizes.setdefault("256x256", len(data))
        return chosen[row % len(chosen)] if chosen else data

    setattr(LocalBlock, "frame", frame)  # noqa: B010 (mypy allows no assignment to a method)
    rates: dict[str, list[float]] = {name: [] for name in KINDS}
    for _, name in itertools.product(range(args.rounds), KINDS):
        shape, options = KINDS[name]
        chosen[:] = pools.get(shape, [])
        made = batches(mixture, options)
        next(made)
        count, until, cpu = 0, time.perf_counter() + args.seconds, time.process_time()
        while time.perf_counter() < until:
            next(made)
            count += BATCH
        rates[name].append(count / (time.process_time() - cpu))
    head = ["", "samples per second of processor time", "kB an image"]
    lines = [[name, f"{median(found):,.0f}", f"{sizes[KINDS[name][0]] / 1e3:.0f}"] for name, found in rates.items()]
    report.show("", head, lines)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        facts = ", ".join(f"{key}: {value}" for key, value in report.machine(args.data).items())
        note = (
            f"Batches of {BATCH} samples with one image, brought to {SIZE} px or left at their size, random order, one "
            f"thread; medians of {args.rounds} rounds of {args.seconds:g} s. JPEG of quality 95."
        )
        text = ["# Resizing training images: the loader", "`python -m benchmarks.resize_loader`", facts, note]
        (args.out / "resize-loader.md").write_text("\n\n".join([*text, report.markdown(head, lines)]) + "\n")
        (args.out / "resize-loader.json").write_text(json.dumps({"facts": facts, "rates": rates}, indent=1) + "\n")


if __name__ == "__main__":
    main()
