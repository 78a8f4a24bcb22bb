"""Milliseconds to resize a batch on a GPU as training does, next to torch's own operation; and whether bytes are equal.

    python -m benchmarks.resize --device cuda --out benchmarks/results        # under three minutes

Writes resize-gpu.{md,json} after each measurement. Images are random bytes, the worst case for rounding. "mixed" is an
equal number of images of 256x256, 180x320, 480x640 and 128x128. The accuracy of the GPU is compared with the CPU, and
with Pillow if it is installed, at sizes from 1 to 2000 and under each setting that could lower the precision of matrix
products. `benchmarks/resize_loader.py` measures the CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from oxe_curate.train.data import resize
from oxe_curate.train.data.mixed import MixedImages
from oxe_curate.train.settings import ResizeFilter

HERE = Path(__file__).parent
SIZE = 224
FILTERS: tuple[ResizeFilter, ...] = ("bicubic", "lanczos3")
BATCHES = (16, 32, 64)
SOURCES = {"256x256": [(256, 256)], "480x640": [(480, 640)], "mixed": [(256, 256), (180, 320), (480, 640), (128, 128)]}
EXTREMES = [(1, 1), (1, 2000), (2000, 1), (2000, 7), (7, 2000), (97, 131), (224, 640), (480, 224), (1080, 1920)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to test this script (%(default)s)")
    parser.add_argument("--out", type=Path, help="folder of resize-gpu.md and .json")
    parser.add_argument("--repeats", type=int, default=30, help="of each measurement (%(default)s)")
    args = parser.parse_args()
    device = torch.device(args.device)
    found: dict[str, Any] = {"machine": machine(device), "accuracy": [], "speed": [], "memory": []}
    for kind, rows in (
        ("accuracy", accuracy(device)),
        ("speed", speed(device, args.repeats)),
        ("memory", memory(device, args.repeats)),
    ):
        for row in rows:
            found[kind].append(row)
            print(json.dumps(row), flush=True)
            if args.out:
                args.out.mkdir(parents=True, exist_ok=True)
                (args.out / "resize-gpu.json").write_text(json.dumps(found, indent=1) + "\n")
                (args.out / "resize-gpu.md").write_text(report(found))
    print(report(found))


def machine(device: torch.device) -> dict[str, str]:
    """The device and the versions."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    return {"device": name, "torch": torch.__version__, "numpy": np.__version__}


def batch_of(sizes: list[tuple[int, int]], count: int, resize_filter: ResizeFilter, pin: bool) -> MixedImages:
    """Random images as the loader makes them, in an order that mixes the sizes."""
    rng = np.random.default_rng(count)
    groups = [torch.from_numpy(rng.integers(0, 256, (count // len(sizes), *s, 3), np.uint8)) for s in sizes]
    order = np.arange(count).reshape(len(sizes), -1).T.ravel()  # of one size: in order
    images = MixedImages(tuple(groups), order, SIZE, resize_filter)
    return images.pin_memory() if pin else images


def timed(work: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Median milliseconds of the device."""
    for _ in range(3):
        work()
    found = []
    for _ in range(repeats):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            work()
            end.record()
            torch.cuda.synchronize()
            found.append(start.elapsed_time(end))
        else:
            begin = time.perf_counter()
            work()
            found.append(1e3 * (time.perf_counter() - begin))
    return float(median(found))


def interpolate(images: MixedImages) -> torch.Tensor:
    """The same with torch's bicubic interpolation, which does not round between its passes."""
    done = []
    for group in images.groups:
        x = group.permute(0, 3, 1, 2).float()
        y = torch.nn.functional.interpolate(x, (SIZE, SIZE), mode="bicubic", antialias=True)
        done.append(y.round_().clamp_(0, 255).to(torch.uint8))
    return torch.cat(done) if len(done) > 1 else done[0]


def speed(device: torch.device, repeats: int) -> Iterator[dict[str, Any]]:
    """Milliseconds a batch; with the copy from page-locked memory, too."""
    pin = device.type == "cuda"
    for name, sizes in SOURCES.items():
        for count in BATCHES if pin else (4,):
            row: dict[str, Any] = {"images": name, "batch": count}
            for kind in FILTERS:
                there = batch_of(sizes, count, kind, pin)
                here = MixedImages(tuple(g.to(device) for g in there.groups), there.order, SIZE, kind)
                row[f"{kind} ms"] = timed(lambda here=here: here.resized(device), device, repeats)  # type: ignore[misc]
                row[f"{kind} with copy ms"] = timed(
                    lambda there=there: there.resized(device),  # type: ignore[misc]
                    device,
                    repeats,
                )
                begin = time.perf_counter()
                there.resized(device)
                row[f"{kind} host ms"] = 1e3 * (time.perf_counter() - begin)
            row["interpolate ms"] = timed(lambda here=here: interpolate(here), device, repeats)  # type: ignore[misc]
            yield row


def memory(device: torch.device, repeats: int) -> Iterator[dict[str, Any]]:
    """Milliseconds and peak memory against the number of bytes that are processed at once."""
    chosen = resize._MEMORY
    count = 64 if device.type == "cuda" else 4
    images = batch_of(SOURCES["480x640"], count, "bicubic", False)
    images = MixedImages(tuple(g.to(device) for g in images.groups), images.order, SIZE, "bicubic")
    try:
        for mib in (16, 32, 64, 128, 256, 512):
            resize._MEMORY = mib << 20
            row: dict[str, Any] = {"at once MiB": mib, "chosen": chosen == resize._MEMORY, "batch": count}
            row["ms"] = timed(lambda: images.resized(device), device, repeats)
            if device.type == "cuda":
                before = torch.cuda.memory_allocated()
                torch.cuda.reset_peak_memory_stats()
                images.resized(device)
                row["peak MiB"] = (torch.cuda.max_memory_allocated() - before) / 2**20
            yield row
    finally:
        resize._MEMORY = chosen


SETTINGS = ("default", "TF32 allowed", "bf16 autocast")


@contextlib.contextmanager
def precision(setting: str, device: torch.device) -> Iterator[None]:
    """A setting that lowers the precision of other matrix products."""
    if setting == "bf16 autocast":
        with torch.autocast(device.type, torch.bfloat16):
            yield
    elif setting == "TF32 allowed":
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
    else:
        yield


def accuracy(device: torch.device) -> Iterator[dict[str, Any]]:
    """How far the device is from the CPU and from Pillow, in grey levels, and the share of bytes that differ."""
    rng = np.random.default_rng(0)
    for setting in SETTINGS:
        for kind in FILTERS:
            total = differ = largest = from_pillow = 0
            for height, width in EXTREMES + SOURCES["mixed"]:
                noise = rng.integers(0, 256, (2, height, width, 3), np.uint8)
                noise[1] = np.where(noise[1] > 127, 255, 0)
                images = torch.from_numpy(noise)
                with precision(setting, device):
                    found = resize.resize_images(images.to(device), SIZE, kind).cpu().numpy().astype(int)
                distance = np.abs(found - resize.resize_images(images, SIZE, kind).numpy())
                total, differ, largest = (
                    total + distance.size, differ + int((distance > 0).sum()), max(largest, int(distance.max()))
                )  # fmt: skip
                if kind == "bicubic":
                    from_pillow = max([from_pillow, *(int(np.abs(f - p).max()) for f, p in with_pillow(found, noise))])
            yield {
                "setting": setting, "filter": kind, "share that differs from the CPU": differ / total,
                "levels from the CPU": largest, "levels from Pillow": from_pillow if kind == "bicubic" else None,
            }  # fmt: skip


def with_pillow(found: Any, images: Any) -> Iterator[tuple[Any, Any]]:
    """Pairs of a result and Pillow's; none without Pillow."""
    try:
        from PIL import Image
    except ImportError:
        return
    for result, image in zip(found, images, strict=True):
        yield result, np.asarray(Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BICUBIC)).astype(int)


def report(found: dict[str, Any]) -> str:
    """The tables as Markdown."""
    text = ["# Resizing batches on the GPU", "`python -m benchmarks.resize --device cuda --out benchmarks/results`"]
    text.append(", ".join(f"{key}: {value}" for key, value in found["machine"].items()))
    text.append(
        "Milliseconds of the device for a batch of uint8 images to 224 px (medians), without and with the copy from "
        "page-locked memory; `interpolate` is `torch.nn.functional.interpolate(mode='bicubic', antialias=True)`, which "
        "does not equal Pillow. Host: milliseconds until the calls return."
    )
    text += [table(found["speed"]), "Bytes of pixels processed at once, 480x640:", table(found["memory"])]
    text += [
        "Distance of the results, random and black-and-white noise, sizes from 1 to 2000:",
        table(found["accuracy"]),
    ]
    step = HERE / "results" / "train-openvla.json"
    if found["speed"] and step.is_file():
        text.append(share_of_step(found["speed"], json.loads(step.read_text())))
    return "\n\n".join(text) + "\n"


def share_of_step(speeds: list[dict[str, Any]], training: dict[str, Any]) -> str:
    """The share of the measured 7B training step at the same batch size."""
    row = next(
        (r for r in training["rows"] if r["kind"] == "lora" and r["batch"] == 16 and not r["checkpointing"]), None
    )
    if row is None:
        return ""
    shares = [
        f"{r['images']}: {r['bicubic with copy ms'] / 1e3 / row['seconds']:.2%}" for r in speeds if r["batch"] == 16
    ]
    return (
        f"A LoRA step of OpenVLA-7B at batch 16 takes {row['seconds'] * 1e3:,.0f} ms "
        f"([train-openvla.md](train-openvla.md)); resizing with bicubic adds {', '.join(shares)}."
        if shares
        else ""
    )


def table(rows: list[dict[str, Any]]) -> str:
    """Rows with the same keys as a Markdown table."""
    if not rows:
        return ""
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    for row in rows:
        cells = [
            "" if v is None else f"{v:.3g}" if isinstance(v, float) and abs(v) < 100 else f"{v:.0f}"
            if isinstance(v, float) else str(v) for v in row.values()
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
