"""What a training run is told: one strict dataclass, read from YAML, overridden by options, saved as resolved."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs

from oxe_curate import config
from oxe_curate.errors import ConfigError
from oxe_curate.registry.card import IndexedRole

FamilyName = Literal["openvla", "roboflamingo"]
AdapterKind = Literal["lora", "qlora", "int8", "none"]
Tuning = Literal["full", "last-layer", "frozen-vision", "sandwich"]
OptimizerKind = Literal["adamw", "adamw8bit"]

CONFIG_FILE = "config.yaml"
"""In a run's folder: its configuration as resolved."""

FAMILY_DEFAULTS: dict[FamilyName, dict[str, Any]] = {
    "openvla": {},
    # the released train_calvin.py and the script that calls it; its picture shifts are not OpenVLA's augmentation
    "roboflamingo": {"adapter": "none", "batch_size": 6, "learning_rate": 1e-4, "warmup": 500, "augment": False},
}
"""Where a family's defaults differ from those written at `TrainConfig`'s fields, which are OpenVLA's."""

_NEEDED = {
    "data": "MIXTURE (the folder that tokenize wrote; data: in a file)",
    "base": "--base (the checkpoint folder to start from)",
    "run": "--run (the folder of the results)",
}


@dataclass(frozen=True, config=config.STRICT)
class LoraConfig:
    """The low-rank adapter; OpenVLA's values by default.

    Attributes:
        rank: of the update. alpha: it is scaled by alpha / rank.
        targets: "all-linear" (every linear layer but the output head); "openvla" (what OpenVLA's script adapts under
            the PEFT that it pins, 0.11: the output head and the ViTs' patch embedding too); or regular expressions /
            module name endings.
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
    """A training run. Defaults are the family's: those of `FAMILY_DEFAULTS`, then those written here.

    However it is made, it is whole: a key of `FAMILY_DEFAULTS` that is left out, or None, has the family's value.

    Attributes:
        data: the folder that tokenize wrote. base: checkpoint folder to start from. run: folder of the results.
        adapter: lora; qlora (NF4 language model + LoRA); int8 (int8 language model + LoRA); none (tune weights).
        tune: which weights, with adapter none only, as in OpenVLA's table: full; last-layer (the language model's
            last block, token embedding and output head); frozen-vision (all but the vision encoder); sandwich
            (last-layer with the vision encoder and the projector).
        steps, epochs: length of the run, one of them; default one epoch.
        batch_size: samples a device and forward pass. accumulation: forward passes an optimizer step.
        optimizer: adamw, or adamw8bit: bitsandbytes' AdamW, whose moments take 2 bytes a trained weight, not 8.
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
    optimizer: OptimizerKind = "adamw"
    learning_rate: float = Field(default=5e-4, gt=0)
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup: int = Field(default=0, ge=0)
    weight_decay: float | None = Field(default=None, ge=0)
    clip: float | None = Field(default=1.0, gt=0)
    seed: int = Field(default=0, ge=0, lt=2**31)
    dtype: Literal["bf16", "fp32"] = "bf16"
    checkpointing: bool = False
    compile: bool = False
    cameras: tuple[IndexedRole, ...] | None = None
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

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, data: Any) -> Any:
        """The keys given, over the family's defaults."""
        if isinstance(data, ArgsKwargs):
            data = dict(zip((field.name for field in fields(cls)), data.args, strict=False)) | (data.kwargs or {})
        if not isinstance(data, dict) or data.get("model", "openvla") not in get_args(FamilyName):
            return data  # told below
        by_family = {key for defaults in FAMILY_DEFAULTS.values() for key in defaults}
        given = {key: value for key, value in data.items() if value is not None or key not in by_family}
        return FAMILY_DEFAULTS[data.get("model", "openvla")] | given

    def __post_init__(self) -> None:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give steps or epochs, not both")
        if self.tune is not None and self.adapter != "none":
            raise ValueError(f"tune: {self.tune!r} tunes the weights themselves; it needs adapter: none")
        if self.optimizer == "adamw8bit" and self.shard == "fsdp":
            raise ValueError(
                "optimizer: adamw8bit needs each weight whole, and shard: fsdp divides them. Take adamw (its moments "
                "are divided too), or shard: ddp"
            )

    @property
    def tuning(self) -> Tuning:
        """`tune` with its default."""
        return self.tune or "full"


def read_train_config(path: Path | None, overrides: dict[str, Any], resume: bool = False) -> TrainConfig:
    """Read a run's configuration: the file's keys, then `overrides` ("lora.rank" reaches into a section).

    Args:
        path: of a YAML file.
        overrides: key -> value.
        resume: start from the configuration that the run folder keeps, if it has begun, so that `run` is enough.

    Returns:
        the configuration with every default filled in.

    Raises:
        ConfigError: an unknown key, a value out of range; names the file, the key and the closest match. A mixture,
            base or run that nothing names.
    """
    told = _read_keys(path) if path is not None else {}
    for key, value in overrides.items():
        section = told
        *parents, last = key.split(".")
        for parent in parents:
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                raise ConfigError(f"{key}: {parent} is {section!r}, not a section of keys")
        section[last] = value
    where, begun = str(path or "options"), ""
    if resume and told.get("run"):
        kept = Path(str(told["run"])).expanduser() / CONFIG_FILE
        if kept.is_file():
            before = _read_keys(kept)
            if told.get("steps") is not None or told.get("epochs") is not None:
                before["steps"] = before["epochs"] = None  # the new length, in whichever measure
            told, where = _merged(before, told), f"{kept} with {where}"
        else:
            begun = f" ({kept} is not there: no run to go on with)"
    missing = [what for key, what in _NEEDED.items() if told.get(key) is None]
    if missing:
        raise ConfigError(f"{where}: train needs {', '.join(missing)}{begun}")
    return config.build(TrainConfig, told, where)


def _read_keys(path: Path) -> dict[str, Any]:
    found = config.read_yaml(path) or {}
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: expected keys and values")
    return found


def _merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """`other` over `one`, section by section."""
    both = dict(one)
    for key, value in other.items():
        inside = isinstance(value, dict) and isinstance(both.get(key), dict)
        both[key] = _merged(both[key], value) if inside else value
    return both


def to_yaml(train: TrainConfig) -> str:
    """The configuration as resolved, with every default written out."""
    return config.to_yaml(train)
