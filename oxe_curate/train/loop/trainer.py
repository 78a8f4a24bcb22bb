"""Hugging Face's Trainer for a model family, with our own data, checkpoints, validation and log."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from torch import nn
from torch.distributed.tensor import DTensor
from transformers.trainer_callback import PrinterCallback, TrainerCallback

from oxe_curate.errors import CurateError
from oxe_curate.tokenize.folder import MixtureFolder
from oxe_curate.train.config import TrainConfig
from oxe_curate.train.data.batch import Batch
from oxe_curate.train.loop.checkpoints import Progress, Resumed, save_checkpoint
from oxe_curate.train.loop.distributed import Distributed
from oxe_curate.train.loop.optimizers import adamw
from oxe_curate.train.loop.progress_log import LOSS, Clock, Log, Meter, gpu_gib
from oxe_curate.train.loop.sharding import whole_parameters
from oxe_curate.train.loop.train_state import load_optimizer_state, load_random_state, optimizer_state, random_state
from oxe_curate.train.loop.validate import to_device, validate
from oxe_curate.train.models.base import Family
from oxe_curate.train.run_folder import CheckpointFolder, RunFolder


class DivergedError(CurateError):
    """The loss became NaN or infinite."""


class BatchSource(Protocol):
    """Source of training and held-out batches."""

    def train(self, consumed: int) -> Iterable[Batch]:
        """This process's batches after `consumed` samples of all processes."""

    def validation(self) -> Iterable[Batch]:
        """This process's held-out batches, collated with `HeldOut`."""


class FamilyTrainer(transformers.Trainer):
    """Trains a family.

    Args:
        family: on its device, and sharded if the run is.
        config: of the run.
        mixture: of the run.
        source: of the batches.
        steps: optimizer steps, including those before a resumed checkpoint.
        dist: the processes that train together.
        hashes: of the inputs, saved in checkpoints.
        log: in the first process; None in the others.
        resumed: checkpoint to continue from; the caller loads its weights into the family, before sharding.
    """

    def __init__(
        self,
        family: Family,
        config: TrainConfig,
        mixture: MixtureFolder,
        source: BatchSource,
        *,
        steps: int,
        dist: Distributed,
        hashes: dict[str, str | None],
        log: Log | None,
        resumed: Resumed | None = None,
    ) -> None:
        self.family, self.config, self.mixture, self.source = family, config, mixture, source
        self.dist, self.hashes, self.run_log, self.resumed = dist, hashes, log, resumed
        self.run = RunFolder(Path(config.run))
        self.meter = Meter()
        self.last_validation: dict[str, Any] | None = None
        self.last_values: dict[str, float] = {}
        self.stopped: int | None = None  # the signal that stops the run
        self.optimizer: Any = None
        self._clock = Clock()
        super().__init__(model=_Model(family), args=_arguments(config, steps, dist, mixture), callbacks=[_Flow(self)])
        self.remove_callback(PrinterCallback)
        # our losses are means over samples, so the mean over micro-batches is the mean over all
        self.model_accepts_loss_kwargs = False
        if any(isinstance(p, DTensor) for p in family.parameters()):
            self.accelerator.prepare_model = lambda model, **_: model  # sharded by FSDP, so no DDP
        if resumed is not None:
            self.meter.load(resumed[1].meter, dist)

    @property
    def global_batch(self) -> int:
        """Samples per optimizer step, over all processes."""
        return self.config.batch_size * self.config.accumulation * self.dist.world

    @property
    def consumed(self) -> int:
        """Samples that all processes have trained on, together."""
        return int(self.state.global_step) * self.global_batch

    def run_all(self) -> None:
        """Train to the end, or until SIGTERM or Ctrl+C, which finish and save the current step.

        Raises:
            DivergedError: the loss is not finite.
            StorageError: a checkpoint cannot be written.
        """
        with _signals(self):
            self.train(resume_from_checkpoint=str(self.resumed[0].path) if self.resumed else None)

    def get_train_dataloader(self) -> Any:
        """Our loader; the Trainer's sampler and dispatch are not used."""
        return self.source.train(self.resumed[1].consumed if self.resumed else 0)

    def create_optimizer(self, model: Any = None) -> Any:
        """AdamW for the family's parameter groups."""
        if self.optimizer is None:
            config, groups = self.config, self.family.parameter_groups(self.config.weight_decay)
            self.optimizer = adamw(config.optimizer, groups, config.learning_rate, self.dist.device)
        return self.optimizer

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the family's loss; its other scalars are averaged for the log."""
        with autocast(self.config, self.dist.device):
            outputs = model(**inputs)
        self.meter.add(outputs)
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Validate on the held-out samples and write validation.json."""
        with self._clock.paused():
            result = validate(
                self.family,
                self.source.validation(),
                self.mixture,
                self.dist,
                autocast(self.config, self.dist.device),
            )
            self.last_validation = result
            if self.run_log is not None:
                self.run_log.validation(self.state.global_step, result)
        self.control.should_evaluate = False
        return {}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Write a log line from our own averages; raises DivergedError unless the loss is finite."""
        if "train_runtime" in logs:  # the Trainer's closing summary
            return
        step = int(self.state.global_step)
        values = self.meter.averages(self.dist)
        if not math.isfinite(values.get(LOSS, 0.0)):
            raise self._diverged(step)
        rate, done = {}, step - self._clock.step
        if done > 0 and self._clock.seconds() > 0:
            rate = {"samples_per_second": done * self.global_batch / self._clock.seconds()}
        kept = {key: float(logs[key]) for key in ("grad_norm", "learning_rate") if key in logs}
        self.last_values = values | kept | rate | gpu_gib(self.dist.device)
        if self.run_log is not None:
            self.run_log.line(step, self.last_values)
        self._clock.start(step)
        self.control.should_log = False

    def store_flos(self) -> None:
        """FLOPs are not counted."""

    def _diverged(self, step: int) -> DivergedError:
        steps = self.run.steps()
        kept = f"The last good checkpoint is checkpoint-{steps[-1]}." if steps else "There is no earlier checkpoint."
        return DivergedError(
            f"loss became NaN or infinite by step {step}. Lower --learning-rate (now {self.config.learning_rate:g}), "
            f"or set --clip (now {self.config.clip}) or --warmup. {kept}"
        )

    def _move_model_to_device(self, model: Any, device: Any) -> None:
        """The family is on its device already; quantized and sharded ones must not be moved."""

    def _prepare_inputs(self, inputs: Batch) -> Batch:
        moved: Batch = to_device(inputs, self.dist.device)
        return moved

    def _clip_grad_norm(self, model: Any) -> Any:
        return _whole(torch.nn.utils.clip_grad_norm_(self._trained(), self.args.max_grad_norm))

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        return grad_norm  # without clipping it is not measured: that takes a pass over all gradients

    def _trained(self) -> list[Any]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with self._clock.paused():
            # gathers sharded moments, so it comes before any writing
            moments = optimizer_state(self.family, self.optimizer, self.dist.first)
            meter = self.meter.state(self.dist)
            if not math.isfinite(meter.get(LOSS, [0.0])[0]):
                raise self._diverged(int(self.state.global_step))
            progress = Progress(
                step=int(self.state.global_step),
                consumed=self.consumed,
                global_batch=self.global_batch,
                config=asdict(self.config),
                hashes=self.hashes,
                meter=meter,
            )

            def fill(folder: CheckpointFolder) -> None:
                if self.dist.first:
                    self.family.save(folder.weights)
                    torch.save(moments, folder.optimizer)
                    torch.save(self.lr_scheduler.state_dict(), folder.scheduler)
                    self.state.save_to_json(str(folder.trainer_state))
                torch.save(random_state(), folder.random_state(self.dist.rank))

            with whole_parameters(self.family, self.dist.first):
                save_checkpoint(self.run, progress, fill, self.config.keep, self.dist)
        self.control.should_save = False

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The caller has loaded the weights."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        folder = CheckpointFolder(Path(checkpoint))
        moments = torch.load(folder.optimizer, map_location="cpu", weights_only=True, mmap=True)
        load_optimizer_state(self.family, self.optimizer, moments, folder.optimizer)
        self.lr_scheduler.load_state_dict(torch.load(folder.scheduler, weights_only=True))
        for group, rate in zip(self.optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True):
            group["lr"] = rate  # the schedule only sets it after a step

    def _load_scaler(self, checkpoint: str | None) -> None:
        """bf16 needs no scaler."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        path = CheckpointFolder(Path(checkpoint or "")).random_state(self.dist.rank)
        if checkpoint is not None and path.is_file():  # an additional process starts from the seed
            load_random_state(torch.load(path, map_location="cpu", weights_only=True))


class _Model(nn.Module):
    """Hides attributes of the family, such as `config`, that the Trainer would interpret."""

    def __init__(self, family: Family) -> None:
        super().__init__()
        self.family = family

    def forward(self, **batch: Any) -> dict[str, torch.Tensor]:
        outputs: dict[str, torch.Tensor] = self.family(**batch)
        return outputs


class _Flow(TrainerCallback):
    """Decides when to log, validate, save and stop."""

    def __init__(self, trainer: FamilyTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        torch.manual_seed(self.trainer.config.seed + self.trainer.dist.rank)
        self.trainer._clock.start(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        config, step = self.trainer.config, state.global_step
        if self.trainer.run_log is not None:
            self.trainer.run_log.step()
        stopped = self.trainer.dist.largest(self.trainer.stopped or 0)  # any process may have received the signal
        self.trainer.stopped = stopped or None
        end = step >= state.max_steps or stopped > 0

        def due(every: int | None) -> bool:
            return every is not None and step % every == 0

        finished = step >= state.max_steps
        control.should_log = due(config.log_every) or finished
        control.should_evaluate = config.eval_samples > 0 and not stopped and (due(config.eval_every) or finished)
        control.should_save = due(config.save_every) or end
        control.should_training_stop = end


def autocast(config: TrainConfig, device: torch.device) -> AbstractContextManager[Any]:
    """The context of every forward pass: bf16 autocast over float32 trained weights, or none for fp32."""
    return torch.autocast(device.type, torch.bfloat16) if config.dtype == "bf16" else nullcontext()


@contextmanager
def _signals(trainer: FamilyTrainer) -> Iterator[None]:
    """Finish and save the step on SIGTERM and the first Ctrl+C; stop at once on the second."""

    def stop(number: int, frame: Any) -> None:
        if number == signal.SIGINT and trainer.stopped is not None:
            raise KeyboardInterrupt
        trainer.stopped = number

    try:
        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread: signals are the caller's
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _arguments(config: TrainConfig, steps: int, dist: Distributed, mixture: MixtureFolder) -> Any:
    # a batch of only image-text rows leaves the weights that only robot rows use without a gradient
    mixed = bool(mixture.manifest["rows"].get("text"))
    arguments = transformers.TrainingArguments(
        output_dir=config.run,
        max_steps=steps,
        per_device_train_batch_size=1,  # the loader makes the batches; this is only displayed
        gradient_accumulation_steps=config.accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant_with_warmup" if config.schedule == "constant" else config.schedule,
        warmup_steps=config.warmup,
        max_grad_norm=config.clip or 0.0,
        seed=config.seed,
        use_cpu=dist.device.type == "cpu",
        logging_strategy="no",  # _Flow decides
        save_strategy="no",
        eval_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        ignore_data_skip=True,
        ddp_find_unused_parameters=mixed,
        logging_nan_inf_filter=False,  # it would wait for the GPU in every step
    )
    assert arguments.device is not None  # counts the GPUs; with several, one process would use all of them
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _whole(value: Any) -> Any:
    return value.full_tensor() if isinstance(value, DTensor) else value
