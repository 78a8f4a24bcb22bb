"""A training run: check everything, forecast, train, save."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers

from oxe_curate import config as strict
from oxe_curate.atomic import atomic_folder
from oxe_curate.errors import ConfigError, CurateError, DataError, did_you_mean
from oxe_curate.outputs import claim_output
from oxe_curate.storage import Folder
from oxe_curate.tokenize.folder import MixtureFolder
from oxe_curate.tokenize.manifest import RESOLVED, STATISTICS, TOKENS
from oxe_curate.train.config import TrainConfig
from oxe_curate.train.loop.checkpoints import Resumed
from oxe_curate.train.loop.compare import with_compared_sources
from oxe_curate.train.loop.disk import disk_errors, storage_error
from oxe_curate.train.loop.distributed import Distributed, join_processes
from oxe_curate.train.loop.forecast import Forecast, forecast, measure
from oxe_curate.train.loop.memory import explain_out_of_memory
from oxe_curate.train.loop.optimizers import check_optimizer
from oxe_curate.train.loop.progress_log import Log
from oxe_curate.train.loop.resume import find_checkpoint, locked, run_hashes
from oxe_curate.train.loop.saved import run_record
from oxe_curate.train.loop.sharding import shard, whole_parameters
from oxe_curate.train.loop.source import MixtureSource
from oxe_curate.train.loop.trainer import FamilyTrainer
from oxe_curate.train.models.adapters import check_quantization
from oxe_curate.train.models.base import Family, family
from oxe_curate.train.models.compiling import compile_blocks
from oxe_curate.train.packages import check_training_packages
from oxe_curate.train.run_folder import RunFolder

_PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "numpy")


class StoppedError(CurateError):
    """A signal stopped the run after the step was saved. The exit code is that of a shell: 128 + the signal."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


@dataclass(frozen=True)
class Result:
    """The result of a run.

    Attributes:
        run: the run folder. steps: done in total.
        forecast: made before the training; None if nothing was left to do.
        values: last log line. validation: last validation, if any.
        seconds: duration of the training, since the last start.
    """

    run: str
    steps: int
    forecast: Forecast | None = None
    values: dict[str, float] | None = None
    validation: dict[str, Any] | None = None
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
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
        resume: continue from the last complete checkpoint in the run folder, or start if there is none yet.
        forecast_only: stop after the forecast; nothing is written.
        progress: report progress on standard error.
        device: "cpu" to use no GPU.

    Returns:
        the result; the trained weights are in adapter/ in the run folder.

    Raises:
        ConfigError: the base model, tokenizer, mixture or run folder does not fit.
        DataError: a shard or a checkpoint is damaged.
        StorageError: the disk is full; checkpoints are intact.
        MemoryFullError: out of memory; the message lists what to lower.
        DivergedError: the loss is NaN or infinite.
        StoppedError: SIGTERM or Ctrl+C, after the step was saved.
    """
    config = _absolute(config)
    transformers.utils.logging.disable_progress_bar()  # ours is shown in terminals only
    with join_processes(device) as dist:
        report = _report if progress and dist.first else _ignore
        mixture = MixtureFolder.open(config.data, config.source)
        _check(config, mixture, dist)
        compare = functools.partial(with_compared_sources, dist=dist, progress=progress)
        if forecast_only:
            mixture = compare(mixture, RunFolder(Path(config.run)), write=False)
            return _train(config, mixture, dist, None, report, forecast_only=True)
        run = RunFolder(Path(config.run))
        with locked(run, dist):
            resumed = find_checkpoint(config, mixture, resume, dist)
            if resume and resumed is None:
                report(f"{config.run}: no checkpoint yet; starting from the beginning")
            elif resumed is not None and resumed[1].step < run.steps()[-1]:
                damaged = run.checkpoint(run.steps()[-1]).path.name
                report(f"{config.run}: {damaged} is damaged; continuing from {resumed[0].path.name}")
            mixture = compare(mixture, run, write=True)
            return _train(config, mixture, dist, resumed, report)


def _train(
    config: TrainConfig,
    mixture: MixtureFolder,
    dist: Distributed,
    resumed: Resumed | None,
    report: Callable[[str], None],
    forecast_only: bool = False,
) -> Result:
    done = resumed[1].step if resumed else 0
    run = RunFolder(Path(config.run))
    if config.steps is not None and done == config.steps and run.adapter.is_dir():
        report(f"{config.run}: all {done} steps are done; set a larger --steps to continue")
        return Result(config.run, done)
    with explain_out_of_memory("loading the model", config, dist):
        model = _build(config, mixture, dist, resumed)
    source = MixtureSource(mixture, model.spec, model.collator, config, dist)
    if source.steps < done:
        raise ConfigError(f"{config.run}: {done} steps are done already, more than the {source.steps} of this run")
    expected: Forecast | None = None
    if source.steps > done:
        with explain_out_of_memory("measuring the first steps", config, dist):
            consumed = resumed[1].consumed if resumed else 0
            expected = forecast(model, source, config, measure(model, source, config, consumed, dist), done, dist)
        report("\n".join(expected.lines()))
    if forecast_only:
        return Result(config.run, done, expected)
    dist.together(lambda: _describe(config, mixture, model) if dist.first else None)
    values, validation, start = {}, None, time.monotonic()
    if expected is not None:
        trainer = _trainer(config, mixture, dist, resumed, model, source, shown=report is _report)
        with explain_out_of_memory("training", config, dist), _closing(trainer.run_log, run.path):
            trainer.run_all()
        values, validation = trainer.last_values, trainer.last_validation
        if trainer.stopped is not None and trainer.state.global_step < source.steps:
            raise _stopped(config, trainer)
    with whole_parameters(model, dist.first):
        dist.together(lambda: _save_adapter(run, model) if dist.first else None)
    report(f"done: {run.adapter}. To evaluate it: oxe-curate evaluate {run.path}")
    return Result(config.run, source.steps, expected, values, validation, time.monotonic() - start)


def _check(config: TrainConfig, mixture: MixtureFolder, dist: Distributed) -> None:
    """Find what is wrong before the model is loaded and before anything is written."""
    check_training_packages(config)
    # together: no process writes into the folder while another still looks at it
    dist.together(lambda: claim_output(config.run, "run", {"base model": config.base, "mixture": config.data}))
    check_quantization(config.adapter, dist.device)
    check_optimizer(config.optimizer, dist.device)
    base = Path(config.base)
    if not base.is_dir():
        near = [p.name for p in base.parent.iterdir() if p.is_dir()] if base.parent.is_dir() else []
        hint = f" {did_you_mean(base.name, near)}" if near else ""
        raise ConfigError(f"--base {base}: base model folder not found.{hint}")
    if config.shard == "fsdp" and dist.world == 1:
        raise ConfigError("--shard fsdp needs several processes; start them with torchrun")
    for name in mixture.names:
        if name not in mixture.statistics:
            raise DataError(
                f"{mixture.folder}/{STATISTICS}: no statistics for {name!r}, a data set of the mixture. "
                f"{did_you_mean(name, mixture.statistics)} Run tokenize again."
            )


def _build(
    config: TrainConfig,
    mixture: MixtureFolder,
    dist: Distributed,
    resumed: Resumed | None,
) -> Family:
    torch.manual_seed(config.seed)  # new modules get the same weights in every process
    model = family(config.model).build(config, mixture, dist.device)
    if resumed is not None:
        model.load(resumed[0].weights)
    if not any(p.requires_grad for p in model.parameters()):
        raise ConfigError("no weight of the model would be trained; check adapter, tune and lora.targets")
    if config.compile:
        compile_blocks(model.net)
    if config.shard == "fsdp":
        shard(model, dist.device)
    model.train()
    return model


def _trainer(
    config: TrainConfig,
    mixture: MixtureFolder,
    dist: Distributed,
    resumed: Resumed | None,
    model: Family,
    source: MixtureSource,
    shown: bool,
) -> FamilyTrainer:
    log = None
    if dist.first:
        done = resumed[1].step if resumed else 0
        log = Log(RunFolder(Path(config.run)), config.log, asdict(config), source.steps, done, shown)
    if not source.validates:
        config = replace(config, eval_samples=0)
    return FamilyTrainer(
        model, config, mixture, source, steps=source.steps, dist=dist, hashes=run_hashes(config, mixture),
        log=log, resumed=resumed,
    )  # fmt: skip


def _describe(config: TrainConfig, mixture: MixtureFolder, model: Family) -> None:
    """Write the configuration, the record and copies of the mixture's tables."""
    folder, run = Folder.of(config.run), RunFolder(Path(config.run))
    for name in (STATISTICS, TOKENS, RESOLVED):
        folder.publish_bytes(name, mixture.folder.read_bytes(name))
    folder.publish_bytes(run.config.name, strict.to_yaml(config).encode())
    record = run_record(config, model.spec, _versions())
    folder.publish_bytes(run.record.name, (json.dumps(record, indent=1) + "\n").encode())


def _versions() -> dict[str, str]:
    """Versions of the packages that the results depend on."""
    found = {"python": sys.version.split()[0]}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _save_adapter(run: RunFolder, model: Family) -> None:
    """Write the trained weights atomically; they replace those of a shorter run."""
    with disk_errors(run.adapter), atomic_folder(run.adapter) as temporary:
        model.save(temporary)


def _stopped(config: TrainConfig, trainer: FamilyTrainer) -> StoppedError:
    number = trainer.stopped or signal.SIGTERM
    step = int(trainer.state.global_step)
    return StoppedError(
        f"stopped by {signal.Signals(number).name} after step {step}, which is saved in "
        f"{config.run}/checkpoint-{step}. To continue: oxe-curate train --resume --run {config.run}",
        number,
    )


def _absolute(config: TrainConfig) -> TrainConfig:
    """Make the paths absolute, so that the run can be resumed from another folder."""
    return replace(
        config,
        data=Folder.of(config.data).uri,
        source=None if config.source is None else Folder.of(config.source).uri,
        base=str(Path(config.base).expanduser().absolute()),
        run=str(Path(config.run).expanduser().absolute()),
    )


@contextmanager
def _closing(log: Log | None, run: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # of the log; checkpoints raise StorageError
        raise storage_error(run, error) or error from error
    finally:
        if log is not None:
            log.close()


def _report(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _ignore(text: str) -> None:
    """Report nothing."""
