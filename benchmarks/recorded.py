"""Rows of the page from the files of benchmarks that `make bench` does not run: on a GPU, a cluster, or for hours."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from benchmarks.report import Aim
from benchmarks.rows import Anchor, Limit, Row, at_least, at_most
from benchmarks.store import Store

Data = Mapping[str, Any]


def _from_aim(topic: str, aim: Aim, what: str = "") -> Row:
    """A row of a number that has a limit of its own."""
    text = f"{what}: {aim.text}" if what else aim.text
    return Row(topic, text, aim.value, aim.unit.strip(), limit=Limit(aim.bound, aim.at_least))


def openvla_rows(data: Data) -> Iterator[Row]:
    """A fine-tuning step of the 7B, compared with OpenVLA's script."""
    found = {(row["kind"], row["batch"], row["checkpointing"]): row for row in data["rows"]}
    ours, reference = found["lora-compiled", 16, False], found["reference-sdpa", 16, False]
    name = "OpenVLA's finetune.py with SDPA"
    for key, unit, of, limit in (
        ("samples_per_second", "samples/s", "speed", at_least(1.8)),
        ("peak_gib", "GiB", "memory", at_most(1)),
    ):
        anchor = Anchor(name, reference[key], ours[key] / reference[key], of)
        yield Row("gpu", f"OpenVLA-7B, LoRA, batch 16, a training step: {of}", ours[key], unit, None, anchor, limit)
    for batch, bound in ((8, 10), (1, 8)):
        peak = found["qlora", batch, True]["peak_gib"]
        yield Row(
            "gpu", f"OpenVLA-7B, QLoRA, batch {batch}, a training step: memory", peak, "GiB", limit=at_most(bound)
        )


def flamingo_rows(data: Data) -> Iterator[Row]:
    """A training step of RoboFlamingo in bf16 with checkpointing, compared with the released trainer's way.

    Of the heads, the one with the lowest ratio of speed, and the one with the highest ratio of memory.
    """
    found = {(row["kind"], row["head"], row["variant"]): row for row in data["rows"]}
    for model in ("3b", "9b"):
        pairs = [
            (found[model, head, "bf16, checkpointing"], row)
            for (kind, head, variant), row in found.items()
            if kind == f"{model}-reference" and (model, head, "bf16, checkpointing") in found
        ]
        for key, unit, of, worst, limit in (
            ("samples_per_second", "samples/s", "speed", min, at_least(3)),
            ("peak_gib", "GiB", "memory", max, at_most(0.5)),
        ):
            ratio, number = worst((ours[key] / theirs[key], i) for i, (ours, theirs) in enumerate(pairs))
            ours, theirs = pairs[number]
            anchor = Anchor("the released trainer's way, float32", theirs[key], ratio, of)
            what = f"RoboFlamingo {model}, bf16, checkpointing, a training step: {of}"
            note = f"worst of {len(pairs)} heads: {ours['head']}"
            yield Row("gpu", what, ours[key], unit, None, anchor, limit, note)


def control_rows(data: Data) -> Iterator[Row]:
    """Actions per second of the 7B at batch 1, compared with transformers' generate."""
    named = {(row["name"], row["weights"]): row["actions_s"] for row in data["rows"] if "actions_s" in row}
    base = named["transformers generate", "bf16"]
    for name, bound in (("token by token", 25), ("parallel, tokens", 400)):
        for weights in ("bf16", "NF4"):
            value, what = named[name, weights], f"OpenVLA-7B, control, {name}, {weights}"
            anchor = Anchor("transformers' generate, bf16", base, value / base, "speed")
            yield Row("gpu", what, value, "actions/s", anchor=anchor)
            if weights == "bf16":
                yield Row("gpu", what, value, "actions/s", limit=at_least(bound))


def resize_rows(data: Data) -> Iterator[Row]:
    """Resizing a batch of training images on a GPU, copying it there included."""
    for row in data["speed"]:
        if row["batch"] != 32:
            continue
        for kind in ("bicubic", "lanczos3"):
            what = f"resize 32 images, {row['images']}, to 224 px, {kind}"
            ratio = row[f"{kind} ms"] / row["interpolate ms"]
            note = f"with the copy to the GPU {row[f'{kind} with copy ms']:.3g} ms"
            anchor = Anchor("torch's bicubic interpolate, which rounds once", row["interpolate ms"], ratio, "time")
            yield Row("gpu", what, row[f"{kind} ms"], "ms", anchor=anchor, note=note)
    for other in ("the CPU", "Pillow"):
        levels = [row[f"levels from {other}"] for row in data["accuracy"] if row[f"levels from {other}"] is not None]
        yield Row("gpu", f"resized on the GPU, largest distance from {other}", max(levels), "levels", limit=at_most(1))


def cluster_rows(data: Data) -> Iterator[Row]:
    """filter on Dask workers whose reads take 50 ms longer, and the job of 4 TB."""
    one, *more = data["throughput"]
    for row in more:
        ratio = row["shards_per_s"] / one["shards_per_s"]
        what = f"filter on {row['workers']} Dask workers with slow reads, {row['shards']} shards"
        yield Row(
            "scale",
            what,
            row["shards_per_s"],
            "shards/s",
            anchor=Anchor("one worker", one["shards_per_s"], ratio, "speed"),
        )
    job = data["job"]
    what = f"a job of {job['tasks']:,} shards, 4 TB"
    yield Row("scale", f"{what}: seconds until Dask runs the first", job["seconds until Dask runs the first"], "s")
    yield Row("scale", f"{what}: the job file", job["bytes of the job file"] / 1e6, "MB")


def scale_rows(data: Data) -> Iterator[Row]:
    """Every command on an index of a million episodes and 100 million steps."""
    from benchmarks.scale import MEASURES

    rows = data["rows"]
    for what in MEASURES:
        if what.name not in rows or what.data in ("long", "large", "soup"):  # groups of make bench
            continue
        if "failed" in rows[what.name]:
            yield Row("scale", f"{what.text}: {rows[what.name]['failed']}", float("nan"), "", limit=at_most(0))
            continue
        for aim in what.aims(rows[what.name], rows):
            yield _from_aim("scale", aim, what.text)


def defects_rows(data: Data) -> Iterator[Row]:
    """Which planted defects filter finds."""
    from benchmarks.defects_table import Trial, aims

    for aim in aims([Trial(**trial) for trial in data["trials"]]):
        yield _from_aim("quality", aim, "planted defects")


RECORDED: dict[str, tuple[str, Callable[[Data], Iterator[Row]]]] = {
    "train-openvla": ("python -m benchmarks.train_openvla --out benchmarks/results", openvla_rows),
    "train-flamingo": ("python -m benchmarks.train_flamingo --out benchmarks/results", flamingo_rows),
    "resize-gpu": ("python -m benchmarks.resize --device cuda --out benchmarks/results", resize_rows),
    "control": ("python -m benchmarks.control --out benchmarks/results", control_rows),
    "scale": ("python -m benchmarks.scale --folder FOLDER", scale_rows),
    "cluster": ("python -m benchmarks.cluster --folder FOLDER", cluster_rows),
    "defects": ("python -m benchmarks.defects --folder FOLDER --look 8", defects_rows),
}
"""File -> the command that writes it, and the function that makes rows of it."""


def with_recorded(store: Store, folder: Path) -> Store:
    """A copy of the store, with the rows of the recorded files in `folder`."""
    found = deepcopy(store)
    for name, (command, rows_of) in RECORDED.items():
        path = folder / f"{name}.json"
        if not path.exists():
            continue
        data = json.loads(path.read_text())
        about = data.get("environment") or data.get("facts") or data.get("machine", {})
        about = {key: str(value) for key, value in {**about, **about.get("machine", {})}.items() if key in FACTS}
        rows = [Row(**{**vars(row), "command": command}) for row in rows_of(data)]
        found.update(name, rows, {"date": ""} | about, complete=True)
    return found


FACTS = (
    "date", "commit", "device", "processor", "memory", "load at the start", "kernel", "file system", "Python", "torch",
    "transformers", "apache-beam", "pyarrow", "numpy", "tensorflow-datasets", "crc32c", "simplejpeg",
)  # fmt: skip
