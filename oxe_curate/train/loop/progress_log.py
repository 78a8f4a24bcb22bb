"""What a run shows and writes while it trains: log.jsonl, a bar or lines for a reader, TensorBoard or W&B."""

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

from oxe_curate.errors import ConfigError
from oxe_curate.storage import Folder, stderr_is_terminal
from oxe_curate.train.loop.processes import Processes

LOG, VALIDATION, TENSORBOARD = "log.jsonl", "validation.json", "tensorboard"

LOSS = "loss"
_QUIET = 30.0
"""Seconds at least between two lines where no bar can be drawn, as in a cluster's log."""
_GIB = 2**30


class Meter:
    """Averages what forward passes return between two lines of the log, without waiting for the device.

    A scalar that only some batches have (the loss of image-text rows), or that is NaN where there was nothing to
    average, is averaged over the others. A loss that is no number stays one.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Any] = {}  # key -> [sum, number] on the device

    def add(self, outputs: dict[str, Any]) -> None:
        """Add one forward pass's scalars."""
        for key, value in outputs.items():
            if isinstance(value, torch.Tensor) and value.numel() == 1:
                value = value.detach().reshape(()).double()
                there = torch.ones_like(value) if key == LOSS else (~value.isnan()).double()
                pair = torch.stack([value if key == LOSS else value.nan_to_num(), there])
                self._sums[key] = self._sums[key] + pair if key in self._sums else pair

    def averages(self, processes: Processes) -> dict[str, float]:
        """Take the averages over all processes, and begin again. All processes must ask."""
        state = self.state(processes)
        self._sums = {}
        return {key: value / count for key, (value, count) in state.items() if count}

    def state(self, processes: Processes) -> dict[str, list[float]]:
        """The sums so far over all processes, for a checkpoint: key -> [sum, number]. All processes must ask."""
        merged: dict[str, list[float]] = {}
        for mine in processes.gather({key: pair.tolist() for key, pair in self._sums.items()}):
            for key, (value, count) in mine.items():
                told = merged.setdefault(key, [0.0, 0.0])
                merged[key] = [told[0] + value, told[1] + count]
        return {key: merged[key] for key in sorted(merged)}

    def load(self, state: dict[str, list[float]], processes: Processes) -> None:
        """Go on from a checkpoint's sums; the first process keeps them."""
        if processes.first:
            self._sums = {k: torch.tensor(v, dtype=torch.float64, device=processes.device) for k, v in state.items()}


class Clock:
    """Seconds of training since the last line of the log, validation and saving left out."""

    def __init__(self) -> None:
        self.start(0)

    def start(self, step: int) -> None:
        """Begin a line of the log after `step`."""
        self.step, self._since, self._out = step, time.monotonic(), 0.0

    def seconds(self) -> float:
        """Since then, pauses left out."""
        return time.monotonic() - self._since - self._out

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count what is done inside."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._out += time.monotonic() - start


class Log:
    """Writes the lines of a run; only the first process's is open.

    Args:
        run: the run's folder. config: of the run, for its name and kind of log.
        total: optimizer steps. done: those of the checkpoint that it goes on from.
        shown: tell a reader on standard error: a bar if it is a terminal, else a line now and then.
    """

    def __init__(self, run: Path, kind: str, settings: dict[str, Any], total: int, done: int, shown: bool) -> None:
        self.run, self._total, self._shown = run, total, shown
        self._told = self._began = time.monotonic()
        self._done = done
        self._start_over(done)
        self._file = (run / LOG).open("a", encoding="utf-8")
        self._bar = tqdm(
            total=total, initial=done, desc="train", unit="step", dynamic_ncols=True, file=sys.stderr,
            disable=not (shown and stderr_is_terminal()),
        )  # fmt: skip
        self._board = _board(run, done) if kind == "tensorboard" else None
        self._wandb = _wandb(run, settings) if kind == "wandb" else None

    def line(self, step: int, values: dict[str, float]) -> None:
        """One line of training."""
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
        if self._bar.disable and (now - self._told >= _QUIET or step == self._total):
            left = (now - self._began) / max(step - self._done, 1) * (self._total - step)
            self.say(f"step {step:,} of {self._total:,}: {text}, {tqdm.format_interval(left)} left")
            self._told = now

    def step(self) -> None:
        """Count an optimizer step on the bar."""
        self._bar.update()

    def validation(self, step: int, result: dict[str, Any]) -> None:
        """Append a validation to validation.json, whole or not at all."""
        past = [*_validations(self.run), {"step": step, **result}]
        Folder.of(self.run).publish_bytes(VALIDATION, (json.dumps(past, indent=1) + "\n").encode())
        flat = {key: value for key, value in result.items() if isinstance(value, float)}
        scalars = ", ".join(f"{key.replace('_', ' ')} {value:.3g}" for key, value in flat.items())
        self.say(f"validation after step {step:,}: {scalars}")
        for name, entry in result["datasets"].items():
            flat |= {f"{name}/l1/{i}": value for i, value in enumerate(entry["l1"])}
            flat |= {f"{name}/{key}": value for key, value in entry.items() if isinstance(value, float)}
        self._send(step, {f"validation/{key}": value for key, value in flat.items()})

    def say(self, text: str) -> None:
        """A line for a reader, above the bar if there is one."""
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

    def _start_over(self, done: int) -> None:
        """Drop the lines after the checkpoint: its steps come again."""
        folder = Folder.of(self.run)
        if (self.run / LOG).is_file():
            lines = (self.run / LOG).read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step(line) <= done]
            if len(kept) < len(lines):
                folder.publish_bytes(LOG, "".join(f"{line}\n" for line in kept).encode())
        past = _validations(self.run)
        kept_past = [entry for entry in past if entry["step"] <= done]
        if len(kept_past) < len(past):
            folder.publish_bytes(VALIDATION, (json.dumps(kept_past, indent=1) + "\n").encode())


def gpu_gib(device: torch.device) -> dict[str, float]:
    """The most GPU memory used so far, in GiB; nothing on a CPU."""
    return {"gpu_gib": torch.cuda.max_memory_allocated(device) / _GIB} if device.type == "cuda" else {}


def check_log(kind: str) -> None:
    """Raise ConfigError if the package that a kind of log needs is missing."""
    package = {"tensorboard": "tensorboard", "wandb": "wandb"}.get(kind)
    if package is None:
        return
    try:
        importlib.import_module(package)
    except ModuleNotFoundError:
        raise ConfigError(f"--log {kind} needs a package: pip install {package} (or --log none)") from None


def _board(run: Path, done: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(run / TENSORBOARD), purge_step=done + 1 if done else None)


def _wandb(run: Path, settings: dict[str, Any]) -> Any:
    wandb = importlib.import_module("wandb")
    identity = hashlib.sha256(str(run.absolute()).encode()).hexdigest()[:16]  # the same when the run goes on
    return wandb.init(dir=str(run), name=run.name, id=identity, project="oxe-curate", config=settings, resume="allow")


def _step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return sys.maxsize  # cut off when the process was killed


def _validations(run: Path) -> list[dict[str, Any]]:
    path = run / VALIDATION
    return list(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else []
