"""The forecast of a run: steps, epochs, hours and memory, from a few measured steps."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from oxe_curate.train.config import TrainConfig
from oxe_curate.train.loop.distributed import Distributed
from oxe_curate.train.loop.optimizers import MOMENT_BYTES, adamw
from oxe_curate.train.loop.source import MixtureSource
from oxe_curate.train.loop.train_state import untouched_random_state
from oxe_curate.train.loop.trainer import autocast
from oxe_curate.train.loop.validate import to_device, validate
from oxe_curate.train.models.base import Family

_STEPS = 3
"""Optimizer steps that are measured, after one that compiles and allocates."""

_GIB = 2**30


@dataclass(frozen=True)
class Measured:
    """Times of a few steps.

    Attributes:
        step: seconds per optimizer step. validation: seconds per held-out batch, 0 without validation.
        peak: peak GPU memory in bytes, None on a CPU.
    """

    step: float
    validation: float
    peak: int | None


@dataclass(frozen=True)
class Forecast:
    """The forecast of a run.

    Attributes:
        steps: optimizer steps in total. left: steps that remain. global_batch: samples per step.
        samples: rows of an epoch. epochs: passes over the mixture's rows, in total.
        datasets: name -> {"rows", "samples" seen in the whole run, "passes" over the data set's own steps}.
        parameters, trained: numbers of weights.
        samples_per_second: over all processes. hours: remaining time, with validation.
        peak_gib, memory_gib: GPU memory, peak and total; None on a CPU.
        checkpoint_gib, disk_gib: size of a checkpoint, and free disk space.
        device: name of the device. notes: warnings and hints.
    """

    steps: int
    left: int
    global_batch: int
    samples: int
    epochs: float
    datasets: dict[str, dict[str, float]]
    parameters: int
    trained: int
    samples_per_second: float
    hours: float
    peak_gib: float | None
    memory_gib: float | None
    checkpoint_gib: float
    disk_gib: float
    device: str
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Lines for the terminal."""
        remaining = "" if self.left == self.steps else f", {self.left:,} remaining"
        share = 100 * self.trained / self.parameters
        lines = [
            f"{self.steps:,} steps of {self.global_batch} samples{remaining}: {self.epochs:.3g} epochs of "
            f"{self.samples:,} rows",
            f"{self.trained:,} of {self.parameters:,} weights trained ({share:.2f} %)",
        ]
        columns = [
            (name, f"{entry['rows']:,.0f}", f"{entry['samples']:,.0f}", f"{entry['passes']:.3g}")
            for name, entry in self.datasets.items()
        ]
        name, rows, samples, _ = (max(map(len, column)) for column in zip(*columns, strict=True))
        for a, b, c, d in columns:
            lines.append(f"  {a:<{name}}  {b:>{rows}} rows, {c:>{samples}} samples, each step {d} times")
        lines.append(f"{_duration(self.hours)} on {self.device} at {self.samples_per_second:.1f} samples/s (measured)")
        if self.peak_gib is not None and self.memory_gib is not None:
            lines.append(f"GPU memory: peak {self.peak_gib:.1f} of {self.memory_gib:.1f} GiB")
        lines.append(f"checkpoint size: {_size(self.checkpoint_gib)}; free disk space: {_size(self.disk_gib)}")
        return lines + [f"note: {note}" for note in self.notes]


def measure(family: Family, source: MixtureSource, config: TrainConfig, consumed: int, dist: Distributed) -> Measured:
    """Measure a few training steps and one held-out batch; weights, optimizer and random generators stay unchanged.

    The steps run with a learning rate of zero on a temporary optimizer, whose moments count towards the peak.
    """
    if dist.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(dist.device)
    batches = iter(source.train(consumed))
    # zero times a NaN gradient would still change the weight, so such a step is skipped
    groups = [{**group, "weight_decay": 0.0} for group in family.parameter_groups(None)]
    optimizer = adamw(config.optimizer, groups, 0.0, dist.device)
    available = len(source.train(consumed)) // config.accumulation
    try:
        with untouched_random_state():
            tried = range(min(1 + _STEPS, max(available, 1)))
            seconds = [_step(family, optimizer, batches, config, dist) for _ in tried]
            held = _held_out(family, source, config, dist) if source.validates else 0.0
    finally:
        batches.close()  # type: ignore[attr-defined]
        optimizer.zero_grad(set_to_none=True)
        optimizer.state.clear()
    peak = torch.cuda.max_memory_allocated(dist.device) if dist.device.type == "cuda" else None
    if peak is not None:
        if dist.world > 1 and config.shard == "ddp":
            peak += 4 * sum(p.numel() for p in family.parameters() if p.requires_grad)  # DDP's copy of the gradients
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(dist.device)
    measured = seconds[1:] or seconds
    return Measured(sum(measured) / len(measured), held, peak)


def _step(family: Family, optimizer: Any, batches: Iterator[Any], config: TrainConfig, dist: Distributed) -> float:
    start = time.perf_counter()
    for _ in range(config.accumulation):
        batch = to_device(next(batches), dist.device)
        with autocast(config, dist.device):
            loss = family(**batch)["loss"]
        (loss / config.accumulation).backward()
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(trained, config.clip or float("inf"))
    if torch.isfinite(norm.full_tensor() if hasattr(norm, "full_tensor") else norm):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if dist.device.type == "cuda":
        torch.cuda.synchronize(dist.device)
    return time.perf_counter() - start


def _held_out(family: Family, source: MixtureSource, config: TrainConfig, dist: Distributed) -> float:
    batch = next(iter(source.validation()))
    start = time.perf_counter()
    validate(family, [batch], source.mixture, dist, autocast(config, dist.device))
    return time.perf_counter() - start


def forecast(
    family: Family, source: MixtureSource, config: TrainConfig, measured: Measured, done: int, dist: Distributed
) -> Forecast:
    """Turn a measurement into a forecast.

    Args:
        family: the model.
        source: of its batches.
        config: of the run.
        measured: by `measure`.
        done: steps before this start.
        dist: the processes.
    """
    steps, left = source.steps, source.steps - done
    epochs = steps * source.global_batch / source.samples
    weights = {entry.name: entry.weight for entry in source.mixture.mixture.datasets}
    rows = source.mixture.manifest["rows"]
    datasets = {n: {"rows": k, "samples": epochs * k, "passes": epochs * weights[n]} for n, k in rows["train"].items()}
    for name, k in rows.get("text", {}).items():
        datasets[name] = {"rows": k, "samples": epochs * k, "passes": epochs}
    seconds = left * measured.step
    if source.validates:
        times = 1 + (left // config.eval_every if config.eval_every else 0)
        seconds += times * len(source.validation()) * measured.validation
    trained = sum(p.numel() for p in family.parameters() if p.requires_grad)
    checkpoint = (4 + MOMENT_BYTES[config.optimizer]) * trained  # float32 weights and two moments
    memory = torch.cuda.mem_get_info(dist.device)[1] / _GIB if dist.device.type == "cuda" else None
    return Forecast(
        steps=steps,
        left=left,
        global_batch=source.global_batch,
        samples=source.samples,
        epochs=epochs,
        datasets=datasets,
        parameters=sum(_numbers(p) for p in family.parameters()),
        trained=trained,
        samples_per_second=source.global_batch / measured.step,
        hours=seconds / 3600,
        peak_gib=None if measured.peak is None else measured.peak / _GIB,
        memory_gib=memory,
        checkpoint_gib=checkpoint / _GIB,
        disk_gib=shutil.disk_usage(_existing(Path(config.run))).free / _GIB,
        device=_named(dist),
        notes=tuple(_notes(source, config, dist, checkpoint * (config.keep + 1))),
    )


def _notes(source: MixtureSource, config: TrainConfig, dist: Distributed, disk: int) -> Iterator[str]:
    if config.eval_samples > 0 and not source.validates:
        yield "the mixture has no held-out samples, so there is no validation (set `validation: 0.05` and run tokenize)"
    if config.save_every is None:
        yield "the only checkpoint is written at the end; use --save-every N to be able to resume"
    if config.warmup >= source.steps:
        yield f"the warm-up is longer than the run: --warmup {config.warmup} of {source.steps} steps"
    if dist.device.type == "cpu":
        yield "training on the CPU"
    idle = torch.cuda.device_count() - int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if dist.device.type == "cuda" else 0
    if idle > 0:
        count = torch.cuda.device_count()
        yield f"{idle} of {count} GPUs are idle; torchrun --nproc-per-node {count} -m -- oxe_curate train ... uses all"
    free = shutil.disk_usage(_existing(Path(config.run))).free
    if disk > free:
        yield f"not enough disk space for {config.keep} checkpoints (--keep) and the one being written"


def _numbers(parameter: Any) -> int:
    """Number of weights of a parameter; bitsandbytes packs two NF4 weights into a byte."""
    shape = getattr(getattr(parameter, "quant_state", None), "shape", None)
    return int(shape.numel()) if shape is not None else int(parameter.numel())


def _named(dist: Distributed) -> str:
    name = torch.cuda.get_device_name(dist.device) if dist.device.type == "cuda" else "the CPU"
    if dist.world == 1:
        return name
    return f"{dist.world} x {name}" if dist.device.type == "cuda" else f"{dist.world} processes on the CPU"


def _existing(path: Path) -> Path:
    path = path.expanduser().absolute()
    return path if path.exists() else _existing(path.parent)


def _duration(hours: float) -> str:
    if hours < 1 / 60:
        return "a second" if hours * 3600 < 1.5 else f"{hours * 3600:.0f} seconds"
    return f"{hours * 60:.0f} minutes" if hours < 2 else f"{hours:.1f} hours"


def _size(gib: float) -> str:
    return f"{gib:.1f} GiB" if gib >= 0.95 else f"{gib * 1024:.0f} MiB"
