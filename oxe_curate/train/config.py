"""What a training run is told: one strict dataclass, read from YAML, overridden by options, saved as resolved."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field
from pydantic.dataclasses import dataclass

from oxe_curate import config
from oxe_curate.errors import ConfigError
from oxe_curate.tokenize.mixture import Role

FamilyName = Literal["openvla", "roboflamingo"]
AdapterKind = Literal["lora", "qlora", "int8", "none"]
Tuning = Literal["full", "last-layer", "frozen-vision", "sandwich"]


@dataclass(frozen=True, config=config.STRICT)
class LoraConfig:
    """The low-rank adapter; OpenVLA's values by default.

    Attributes:
        rank: of the update. alpha: it is scaled by alpha / rank.
        targets: "all-linear" (every linear layer but the output head) or regular expressions / module name endings.
    """

    rank: int = Field(default=32, ge=1)
    alpha: float = Field(default=16, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: str | tuple[str, ...] = "all-linear"


@dataclass(frozen=True, config=config.STRICT)
class OpenVLAConfig:
    """What only the OpenVLA family reads.

    Attributes:
        head: "tokens" (256 bins through the language model's vocabulary) or "l1" (continuous actions from the last
            hidden states of the action slots, L1 loss, as in OpenVLA-OFT).
        decoding: "autoregressive" (one token after another) or "parallel" (every action slot in one pass,
            bidirectional among the slots). "l1" is always parallel.
    """

    head: Literal["tokens", "l1"] = "tokens"
    decoding: Literal["autoregressive", "parallel"] = "autoregressive"


@dataclass(frozen=True, config=config.STRICT)
class FlamingoConfig:
    """What only the RoboFlamingo family reads; the released code's values by default.

    Attributes:
        head: policy head over the window's features.
        history: for the MLP head: look at the whole window (True) or at the current step alone.
        pose_loss: "huber" (released code) or "mse" (paper). gripper_weight: factor of the gripper's BCE.
        train_embeddings: train the input embeddings of the language model.
        cache_vision: compute the frozen vision tower's features once per frame and reuse them in later epochs.
        cache_gib: disk space for them, in the run's folder; 0.5 MiB a frame with ViT-L/14 in bf16.
    """

    head: Literal["mlp", "gpt", "lstm"] = "lstm"
    history: bool = True
    pose_loss: Literal["huber", "mse"] = "huber"
    gripper_weight: float = Field(default=0.01, ge=0)
    train_embeddings: bool = True
    cache_vision: bool = False
    cache_gib: float = Field(default=64, gt=0)


@dataclass(frozen=True, config=config.STRICT)
class TrainConfig:
    """A training run.

    Attributes:
        data: the folder that tokenize wrote. base: checkpoint folder to start from. run: folder of the results.
        adapter: lora; qlora (NF4 language model + LoRA); int8 (int8 language model + LoRA); none (tune weights).
        tune: which weights, with adapter none only, as in OpenVLA's table: full; last-layer (the language model's
            last layer and output head); frozen-vision; sandwich (vision, input embeddings, last layer and head).
        steps, epochs: length of the run, one of them; default one epoch.
        batch_size: samples a device and forward pass. accumulation: forward passes an optimizer step.
        schedule: of the learning rate after `warmup` steps. clip: gradient norm, None for no clipping.
        dtype: of weights and activations; bf16 needs no loss scaling.
        cameras: roles to look at, default every camera of the mixture. proprio: add the robot's state.
        chunk: actions predicted at once, default the mixture's.
        augment: OpenVLA's crop, brightness, contrast, saturation and hue.
        text_factor: factor of the language loss on the mixture's image-text rows.
        workers: threads that decode; default by the machine.
        log_every, eval_every, save_every: in optimizer steps; None for eval or save: at the end only.
        keep: how many checkpoints stay. eval_samples: held-out samples looked at (0: no validation).
        shard: "ddp" or "fsdp", where several processes were launched.
    """

    data: str
    base: str
    run: str
    model: FamilyName = "openvla"
    adapter: AdapterKind = "lora"
    tune: Tuning | None = None
    lora: LoraConfig = LoraConfig()
    openvla: OpenVLAConfig = OpenVLAConfig()
    flamingo: FlamingoConfig = FlamingoConfig()
    steps: int | None = Field(default=None, ge=1)
    epochs: float | None = Field(default=None, gt=0)
    batch_size: int = Field(default=16, ge=1)
    accumulation: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=5e-4, gt=0)
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup: int = Field(default=0, ge=0)
    weight_decay: float | None = Field(default=None, ge=0)
    clip: float | None = Field(default=1.0, gt=0)
    seed: int = Field(default=0, ge=0, lt=2**31)
    dtype: Literal["bf16", "fp32"] = "bf16"
    checkpointing: bool = False
    compile: bool = False
    cameras: tuple[Role, ...] | None = None
    proprio: bool = False
    chunk: int | None = Field(default=None, ge=1)
    augment: bool = True
    text_factor: float = Field(default=1.0, ge=0)
    workers: int | None = Field(default=None, ge=1)
    log: Literal["tensorboard", "wandb", "none"] = "tensorboard"
    log_every: int = Field(default=10, ge=1)
    eval_every: int | None = Field(default=None, ge=1)
    eval_samples: int = Field(default=512, ge=0)
    save_every: int | None = Field(default=None, ge=1)
    keep: int = Field(default=2, ge=1)
    shard: Literal["ddp", "fsdp"] = "ddp"

    def __post_init__(self) -> None:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give steps or epochs, not both")
        if self.tune is not None and self.adapter != "none":
            raise ValueError(f"tune: {self.tune!r} tunes the weights themselves; it needs adapter: none")

    @property
    def tuning(self) -> Tuning:
        """`tune` with its default."""
        return self.tune or "full"


def read_config(path: Path | None, overrides: dict[str, Any]) -> TrainConfig:
    """Read a run's configuration: the file's keys, then `overrides` ("lora.rank" reaches into a section).

    Raises:
        ConfigError: an unknown key, a value out of range; names the file, the key and the closest match.
    """
    data = {} if path is None else config.read_yaml(path) or {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected keys and values")
    for key, value in overrides.items():
        if value is None:
            continue
        section = data
        *parents, last = key.split(".")
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    return config.build(TrainConfig, data, str(path or "options"))


def to_yaml(train: TrainConfig) -> str:
    """The configuration as resolved, with every default written out."""
    return yaml.safe_dump(_plain(asdict(train)), sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
