"""The log of a run: log.jsonl, validation.json, a progress bar or lines, TensorBoard or W&B."""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from oxe_curate.storage import Folder, stderr_is_terminal
from oxe_curate.train.loop.distributed import Distributed
from oxe_curate.train.run_folder import RunFolder

LOSS = "loss"
_QUIET = 30.0
"""Minimum seconds between two lines where there is no progress bar, as in a cluster's log."""
_GIB = 2**30


class Meter:
    """Averages the scalars of forward passes between two log lines, without waiting for the device.

    A scalar that only some batches have (the loss of image-text rows), or that is NaN in a batch without values, is
    averaged over the others. A loss of NaN stays NaN.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Any] = {}  # key -> [sum, count] on the device

    def add(self, outputs: dict[str, Any]) -> None:
        """Add one forward pass's scalars."""
        for key, value in outputs.items():
            if isinstance(value, torch.Tensor) and value.numel() == 1:
                value = value.detach().reshape(()).double()
                there = torch.ones_like(value) if key == LOSS else (~value.isnan()).double()
                pair = torch.stack([value if key == LOSS else value.nan_to_num(), there])
                self._sums[key] = self._sums[key] + pair if key in self._sums else pair

    def averages(self, dist: Distributed) -> dict[str, float]:
        """Return the averages over all processes and reset them. All processes must call it."""
        state = self.state(dist)
        self._sums = {}
        return {key: value / count for key, (value, count) in state.items() if count}

    def state(self, dist: Distributed) -> dict[str, list[float]]:
        """The sums over all processes, for a checkpoint: key -> [sum, count]. All processes must call it."""
        merged: dict[str, list[float]] = {}
        for mine in dist.gather({key: pair.tolist() for key, pair in self._sums.items()}):
            for key, (value, count) in mine.items():
                total, number = merged.get(key, [0.0, 0.0])
                merged[key] = [total + value, number + count]
        return {key: merged[key] for key in sorted(merged)}

    def load(self, state: dict[str, list[float]], dist: Distributed) -> None:
        """Continue from the sums of a checkpoint; the first process keeps them."""
        if dist.first:
            self._sums = {k: torch.tensor(v, dtype=torch.float64, device=dist.device) for k, v in state.items()}


class Clock:
    """Seconds of training since the last log line, without validation and saving."""

    def __init__(self) -> None:
        self.start(0)

    def start(self, step: int) -> None:
        """Start a log line after `step`."""
        self.step, self._since, self._out = step, time.monotonic(), 0.0

    def seconds(self) -> float:
        """Seconds since then, without pauses."""
        return time.monotonic() - self._since - self._out

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the block from the time."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._out += time.monotonic() - start


class Log:
    """Writes the log of a run, in the first process only.

    Args:
        run: the run folder. kind: "tensorboard", "wandb" or "none". settings: the configuration, for W&B.
        total: optimizer steps. done: those of the checkpoint that the run continues from.
        shown: show progress on standard error: a bar in a terminal, otherwise a line now and then.
    """

    def __init__(self, run: RunFolder, kind: str, settings: dict[str, Any], total: int, done: int, shown: bool) -> None:
        self.run, self._total, self._shown = run, total, shown
        self._reported = self._began = time.monotonic()
        self._done = done
        self._truncate(done)
        self._file = run.log.open("a", encoding="utf-8")
        self._bar = tqdm(
            total=total, initial=done, desc="train", unit="step", dynamic_ncols=True, file=sys.stderr,
            disable=not (shown and stderr_is_terminal()),
        )  # fmt: skip
        self._board = _board(run.tensorboard, done) if kind == "tensorboard" else None
        self._wandb = _wandb(run.path, settings) if kind == "wandb" else None

    def line(self, step: int, values: dict[str, float]) -> None:
        """Write a log line."""
        print(json.dumps({"step": step, **values, "time": round(time.time(), 3)}), file=self._file, flush=True)
        self._send(step, {f"train/{key}": value for key, value in values.items()})
        shown = {
            "loss": "{:.4f}",
            "token_accuracy": "{:.3f}",
            "samples_per_second": "{:.1f} samples/s",
            "gpu_gib": "{:.1f} GiB",
        }
        short = {"token_accuracy": "accuracy ", "loss": "loss "}
        parts = [short.get(k, "") + text.format(values[k]) for k, text in shown.items() if k in values]
        text = ", ".join(parts)
        self._bar.set_postfix_str(text, refresh=False)
        now = time.monotonic()
        if self._bar.disable and (now - self._reported >= _QUIET or step == self._total):
            left = (now - self._began) / max(step - self._done, 1) * (self._total - step)
            self.report(f"step {step:,} of {self._total:,}: {text}, {tqdm.format_interval(left)} left")
            self._reported = now

    def step(self) -> None:
        """Count an optimizer step on the bar."""
        self._bar.update()

    def validation(self, step: int, result: dict[str, Any]) -> None:
        """Append a result to validation.json, atomically."""
        past = [*self.run.validations(), {"step": step, **result}]
        self._publish(self.run.validation, json.dumps(past, indent=1) + "\n")
        flat = {key: value for key, value in result.items() if isinstance(value, float)}
        scalars = ", ".join(f"{key.replace('_', ' ')} {value:.3g}" for key, value in flat.items())
        self.report(f"validation after step {step:,}: {scalars}")
        for name, entry in result["datasets"].items():
            flat |= {f"{name}/l1/{i}": value for i, value in enumerate(entry["l1"])}
            flat |= {f"{name}/{key}": value for key, value in entry.items() if isinstance(value, float)}
        self._send(step, {f"validation/{key}": value for key, value in flat.items()})

    def report(self, text: str) -> None:
        """Print a line on standard error, above the bar if there is one."""
        if self._shown:
            tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        """Flush and close everything."""
        self._bar.close()
        self._file.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()

    def _send(self, step: int, values: dict[str, float]) -> None:
        if self._board is not None:
            for key, value in values.items():
                self._board.add_scalar(key, value, step)
        if self._wandb is not None:
            self._wandb.log(values, step=step)

    def _truncate(self, done: int) -> None:
        """Remove the lines after the checkpoint, whose steps are trained again."""
        if self.run.log.is_file():
            lines = self.run.log.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step(line) <= done]
            if len(kept) < len(lines):
                self._publish(self.run.log, "".join(f"{line}\n" for line in kept))
        past = self.run.validations(until=done)
        if len(past) < len(self.run.validations()):
            self._publish(self.run.validation, json.dumps(past, indent=1) + "\n")

    @staticmethod
    def _publish(path: Path, text: str) -> None:
        Folder.of(path.parent).publish_bytes(path.name, text.encode())


def gpu_gib(device: torch.device) -> dict[str, float]:
    """Peak GPU memory so far, in GiB; empty on a CPU."""
    return {"gpu_gib": torch.cuda.max_memory_allocated(device) / _GIB} if device.type == "cuda" else {}


def _board(folder: Path, done: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=done + 1 if done else None)


def _wandb(run: Path, settings: dict[str, Any]) -> Any:
    wandb = importlib.import_module("wandb")
    identity = hashlib.sha256(str(run.absolute()).encode()).hexdigest()[:16]  # the same when the run is resumed
    return wandb.init(dir=str(run), name=run.name, id=identity, project="oxe-curate", config=settings, resume="allow")


def _step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return sys.maxsize  # cut short when the process was killed
