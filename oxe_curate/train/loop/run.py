"""A training run from its configuration to its result: check everything, forecast, train, save."""

from __future__ import annotations

import importlib.metadata
import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers

from oxe_curate.errors import ConfigError, CurateError, DataError, did_you_mean
from oxe_curate.storage import TEMPORARY, Folder
from oxe_curate.tokenize.folder import MixtureFolder
from oxe_curate.tokenize.manifest import RESOLVED, STATISTICS, TOKENS
from oxe_curate.train.config import TrainConfig, to_yaml
from oxe_curate.train.loop import checkpoints, saved
from oxe_curate.train.loop.forecast import Forecast, forecast, measure
from oxe_curate.train.loop.memory import told_when_full
from oxe_curate.train.loop.optimizers import check_optimizer
from oxe_curate.train.loop.processes import Processes, processes
from oxe_curate.train.loop.progress_log import Log, check_log
from oxe_curate.train.loop.run_folder import locked, prepare, run_hashes
from oxe_curate.train.loop.sharding import shard, whole_parameters
from oxe_curate.train.loop.source import MixtureSource
from oxe_curate.train.loop.trainer import FamilyTrainer
from oxe_curate.train.models.adapters import check_quantization
from oxe_curate.train.models.base import Family, family
from oxe_curate.train.models.compiling import compile_blocks

_PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "numpy")


class StoppedError(CurateError):
    """A signal ended the run; the step was finished and saved. The exit code is the shell's: 128 + the signal."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        run: its folder. steps: done in all.
        forecast: told before; None where nothing was left to do.
        values: last line of the log. validation: last validation, if any.
        seconds: of training, this time.
    """

    run: str
    steps: int
    forecast: Forecast | None = None
    values: dict[str, float] | None = None
    validation: dict[str, Any] | None = None
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """As plain numbers and texts."""
        return asdict(self)


def run_training(
    config: TrainConfig,
    resume: bool = False,
    forecast_only: bool = False,
    progress: bool = True,
    device: str | None = None,
) -> Result:
    """Train a model on a mixture.

    Args:
        config: of the run.
        resume: go on from the run folder's last complete checkpoint; begins where there is none yet.
        forecast_only: stop after the forecast; nothing is written.
        progress: tell what is going on, on standard error.
        device: "cpu" to leave the GPUs alone.

    Returns:
        the result; adapter/ in the run folder holds the trained weights.

    Raises:
        ConfigError: something does not fit: base, tokenizer, mixture, run folder.
        DataError: a shard or a checkpoint is damaged.
        StorageError: the disk is full; checkpoints are intact.
        MemoryFullError: with what to lower.
        DivergedError: the loss is not a number.
        StoppedError: SIGTERM or Ctrl+C, after the step was saved.
    """
    config = _absolute(config)
    transformers.utils.logging.disable_progress_bar()  # ours is quiet where nobody looks
    with processes(device) as here:
        say = _say if progress and here.first else _silent
        mixture = MixtureFolder.open(config.data)
        _check(config, mixture, here)
        if forecast_only:
            return _train(config, mixture, here, None, say, forecast_only=True)
        with locked(Path(config.run), here):
            resumed = prepare(config, mixture, resume, here)
            if resume and resumed is None:
                say(f"{config.run}: no checkpoint to go on from; the run begins")
            elif resumed is not None and resumed[1].step < checkpoints.steps(Path(config.run))[-1]:
                damaged = checkpoints.steps(Path(config.run))[-1]
                say(f"{config.run}: checkpoint-{damaged} is damaged: going on from checkpoint-{resumed[1].step}")
            return _train(config, mixture, here, resumed, say)


def _train(
    config: TrainConfig,
    mixture: MixtureFolder,
    here: Processes,
    resumed: tuple[Path, checkpoints.Progress] | None,
    say: Any,
    forecast_only: bool = False,
) -> Result:
    done = resumed[1].step if resumed else 0
    run = Path(config.run)
    if config.steps is not None and done == config.steps and (run / saved.ADAPTER).is_dir():
        say(f"{config.run}: has done its {done} steps. Give more --steps to go on.")
        return Result(config.run, done)
    with told_when_full("loading the model", config, here):
        model = _build(config, mixture, here, resumed)
    source = MixtureSource(mixture, model.spec, model.collator, config, here)
    if source.steps < done:
        raise ConfigError(f"{config.run}: has done {done} steps already; {source.steps} are asked for")
    told: Forecast | None = None
    if source.steps > done:
        with told_when_full("measuring the first steps", config, here):
            consumed = resumed[1].consumed if resumed else 0
            told = forecast(model, source, config, measure(model, source, config, consumed, here), done, here)
        say("\n".join(told.lines()))
    if forecast_only:
        return Result(config.run, done, told)
    here.together(lambda: _describe(config, mixture, model) if here.first else None)
    values, validation, start = {}, None, time.monotonic()
    if told is not None:
        trainer = _trainer(config, mixture, here, resumed, model, source, shown=say is _say)
        with told_when_full("training", config, here), _closing(trainer.run_log, run):
            trainer.run_all()
        values, validation = trainer.last_values, trainer.last_validation
        if trainer.stopped is not None and trainer.state.global_step < source.steps:
            raise _stopped(config, trainer)
    with whole_parameters(model, here.first):
        here.together(lambda: _save_adapter(run, model) if here.first else None)
    say(f"done: {run / saved.ADAPTER}. How well it does: oxe-curate evaluate {run}")
    return Result(config.run, source.steps, told, values, validation, time.monotonic() - start)


def _check(config: TrainConfig, mixture: MixtureFolder, here: Processes) -> None:
    """Everything that can be known to be wrong before the model is loaded."""
    check_log(config.log)
    check_quantization(config.adapter, here.device)
    check_optimizer(config.optimizer, here.device)
    base = Path(config.base)
    if not base.is_dir():
        near = [p.name for p in base.parent.iterdir() if p.is_dir()] if base.parent.is_dir() else []
        raise ConfigError(f"--base {base}: no such folder. {did_you_mean(base.name, near) if near else ''}".rstrip())
    if config.shard == "fsdp" and here.world == 1:
        raise ConfigError("--shard fsdp divides a model over several processes: start them with torchrun")
    for name in mixture.names:
        if name not in mixture.statistics:
            raise DataError(
                f"{mixture.folder}/{STATISTICS}: has no statistics of {name!r}, which the mixture names. "
                f"{did_you_mean(name, mixture.statistics)} Run tokenize again."
            )


def _build(
    config: TrainConfig,
    mixture: MixtureFolder,
    here: Processes,
    resumed: tuple[Path, checkpoints.Progress] | None,
) -> Family:
    torch.manual_seed(config.seed)  # fresh modules: the same in every process
    model = family(config.model).build(config, mixture, here.device)
    if resumed is not None:
        model.load(resumed[0] / checkpoints.WEIGHTS)
    if not any(p.requires_grad for p in model.parameters()):
        raise ConfigError("nothing of the model is trained: check adapter, tune and lora.targets")
    if config.compile:
        compile_blocks(model.net)
    if config.shard == "fsdp":
        shard(model, here.device)
    model.train()
    return model


def _trainer(
    config: TrainConfig,
    mixture: MixtureFolder,
    here: Processes,
    resumed: tuple[Path, checkpoints.Progress] | None,
    model: Family,
    source: MixtureSource,
    shown: bool,
) -> FamilyTrainer:
    log = None
    if here.first:
        done = resumed[1].step if resumed else 0
        log = Log(Path(config.run), config.log, asdict(config), source.steps, done, shown)
    if not source.validates:
        config = replace(config, eval_samples=0)
    return FamilyTrainer(
        model, config, mixture, source, steps=source.steps, processes=here, hashes=run_hashes(config, mixture),
        log=log, resumed=resumed,
    )  # fmt: skip


def _describe(config: TrainConfig, mixture: MixtureFolder, model: Family) -> None:
    """Write what the run is: its configuration, spec and copies of the mixture's tables."""
    folder = Folder.of(config.run)
    for name in (STATISTICS, TOKENS, RESOLVED):
        folder.publish_bytes(name, mixture.folder.read_bytes(name))
    folder.publish_bytes(saved.CONFIG, to_yaml(config).encode())
    record = saved.run_record(config, model.spec, versions())
    folder.publish_bytes(saved.RUN, (json.dumps(record, indent=1) + "\n").encode())


def versions() -> dict[str, str]:
    """The packages that a run's numbers depend on."""
    found = {"python": sys.version.split()[0]}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _save_adapter(run: Path, model: Family) -> None:
    """The result, whole or not at all, in place of that of a shorter run."""
    temporary = run / f"{TEMPORARY}{saved.ADAPTER}"

    def write() -> None:
        model.save(temporary)
        checkpoints.flush(temporary)

    checkpoints.remove(temporary)
    checkpoints.told(run / saved.ADAPTER, write)
    checkpoints.remove(run / saved.ADAPTER)
    temporary.rename(run / saved.ADAPTER)
    checkpoints.flush(run, recursive=False)


def _stopped(config: TrainConfig, trainer: FamilyTrainer) -> StoppedError:
    number = trainer.stopped or signal.SIGTERM
    step = int(trainer.state.global_step)
    return StoppedError(
        f"stopped by {signal.Signals(number).name} after step {step}, which is saved "
        f"({config.run}/checkpoint-{step}). train --resume --run {config.run} goes on.",
        number,
    )


def _absolute(config: TrainConfig) -> TrainConfig:
    """Paths that still mean the same from another folder."""
    return replace(
        config,
        data=Folder.of(config.data).uri,
        base=str(Path(config.base).expanduser().absolute()),
        run=str(Path(config.run).expanduser().absolute()),
    )


@contextmanager
def _closing(log: Log | None, run: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # of the log: checkpoints tell their own
        raise checkpoints.explained(run, error) or error from error
    finally:
        if log is not None:
            log.close()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _silent(text: str) -> None:
    """Nothing is told."""
