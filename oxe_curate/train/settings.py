"""The settings of a training run: one table of keys, types, limits, defaults and help texts.

`config.py` makes validated dataclasses of it, the command line its options. It imports neither pydantic nor torch, so
that `--help` stays fast.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, Literal, get_args, get_type_hints

from annotated_types import Ge, Gt, Lt

FamilyName = Literal["openvla", "roboflamingo"]
AdapterKind = Literal["lora", "qlora", "int8", "none"]
Tuning = Literal["full", "last-layer", "frozen-vision", "sandwich"]
OptimizerKind = Literal["adamw", "adamw8bit"]

FAMILY_DEFAULTS: dict[FamilyName, dict[str, Any]] = {
    "openvla": {},
    # the released train_calvin.py and its script; its image shifts differ from OpenVLA's augmentation
    "roboflamingo": {"adapter": "none", "batch_size": 6, "learning_rate": 1e-4, "warmup": 500, "augment": False},
}
"""Where a family's defaults differ from those of `TrainSettings`, which are OpenVLA's."""

SECTIONS: dict[str, FamilyName] = {"openvla": "openvla", "flamingo": "roboflamingo"}
"""Section that only one family reads -> that family."""


@dataclass(frozen=True)
class Help:
    """What the command line shows of a setting.

    Attributes:
        text: one phrase, without a full stop.
        default: shown instead of the field's default, in words.
        option: name on the command line; None: `--` and the key, or `--set` only inside a section.
        metavar: shown for the value.
    """

    text: str
    default: str | None = None
    option: str | None = None
    metavar: str | None = None


@dataclass(frozen=True)
class LoraSettings:
    """The LoRA adapter; OpenVLA's values by default."""

    rank: Annotated[int, Ge(1), Help("LoRA rank", option="--rank")] = 32
    alpha: Annotated[float, Gt(0), Help("LoRA scale; updates are multiplied by alpha / rank", option="--alpha")] = 16
    dropout: Annotated[float, Ge(0), Lt(1), Help("LoRA dropout")] = 0.0
    targets: Annotated[
        str | tuple[str, ...],
        Help(
            "LoRA layers: all-linear (all but the output head); openvla (what OpenVLA's script adapts under PEFT 0.11: "
            "also the output head and the patch embeddings); or regular expressions / endings of module names",
            option="--targets",
        ),
    ] = "all-linear"


@dataclass(frozen=True)
class OpenVLASettings:
    """Settings that only OpenVLA reads."""

    head: Annotated[
        Literal["tokens", "l1"],
        Help("tokens (256 bins in the vocabulary) or l1 (continuous actions as in OpenVLA-OFT)", option="--head"),
    ] = "tokens"
    decoding: Annotated[
        Literal["autoregressive", "parallel"],
        Help(
            "openvla: token by token, or the whole chunk in one bidirectional pass; l1 is always parallel",
            option="--decoding",
        ),
    ] = "autoregressive"


@dataclass(frozen=True)
class FlamingoSettings:
    """Settings that only RoboFlamingo reads; the released code's values by default."""

    head: Annotated[Literal["mlp", "gpt", "lstm"], Help("policy head over the window's features", option="--head")] = (
        "lstm"
    )
    history: Annotated[bool, Help("MLP head: use the whole window instead of the current step only")] = True
    pose_loss: Annotated[Literal["huber", "mse"], Help("pose loss: huber (released code) or mse (paper)")] = "huber"
    gripper_weight: Annotated[float, Ge(0), Help("factor of the gripper's cross-entropy")] = 0.01
    train_embeddings: Annotated[bool, Help("train the input embeddings of the language model")] = True
    cache_vision: Annotated[bool, Help("compute the frozen vision features once per frame and reuse them")] = False
    cache_gib: Annotated[
        float,
        Gt(0),
        Help("disk space for cached features in the run folder; ViT-L/14 in bf16 takes 0.5 MiB per frame"),
    ] = 64


@dataclass(frozen=True)
class TrainSettings:
    """A training run. Defaults are OpenVLA's; `FAMILY_DEFAULTS` has those of the other families."""

    data: Annotated[str, Help("Mixture folder written by tokenize", metavar="MIXTURE")]
    base: Annotated[str, Help("Base model folder", metavar="DIR")]
    run: Annotated[str, Help("Run folder, for checkpoints and results", metavar="DIR")]
    model: Annotated[FamilyName, Help("Model family")] = "openvla"
    adapter: Annotated[
        AdapterKind, Help("lora; qlora and int8 (LoRA on an NF4 or int8 language model); none (tune the weights)")
    ] = "lora"
    tune: Annotated[
        Tuning | None,
        Help(
            "Weights to train with --adapter none: full; last-layer (last block, token embedding, output head); "
            "frozen-vision (all but the vision encoder); sandwich (last-layer, vision encoder and projector)",
            default="full",
        ),
    ] = None
    lora: LoraSettings = LoraSettings()
    openvla: OpenVLASettings = OpenVLASettings()
    flamingo: FlamingoSettings = FlamingoSettings()
    steps: Annotated[int | None, Ge(1), Help("Optimizer steps", default="one epoch")] = None
    epochs: Annotated[float | None, Gt(0), Help("Epochs to train, instead of --steps", default="1")] = None
    batch_size: Annotated[int, Ge(1), Help("Samples per GPU and forward pass")] = 16
    accumulation: Annotated[int, Ge(1), Help("Forward passes per optimizer step")] = 1
    optimizer: Annotated[
        OptimizerKind, Help("adamw, or bitsandbytes' adamw8bit (2 instead of 8 bytes of moments per trained weight)")
    ] = "adamw"
    learning_rate: Annotated[float, Gt(0), Help("Learning rate")] = 5e-4
    schedule: Annotated[Literal["constant", "cosine", "linear"], Help("Learning-rate schedule after the warm-up")] = (
        "constant"
    )
    warmup: Annotated[int, Ge(0), Help("Steps of rising learning rate")] = 0
    weight_decay: Annotated[float | None, Ge(0), Help("Weight decay", default="the model family's")] = None
    clip: Annotated[float | None, Gt(0), Help("Maximum gradient norm; --set clip=null turns clipping off")] = 1.0
    seed: Annotated[int, Ge(0), Lt(2**31), Help("Seed of sample order, augmentation and new weights")] = 0
    dtype: Annotated[Literal["bf16", "fp32"], Help("Type of weights and activations")] = "bf16"
    checkpointing: Annotated[bool, Help("Recompute activations in the backward pass to save memory")] = False
    compile: Annotated[bool, Help("Use torch.compile: slower start, faster steps")] = False
    cameras: Annotated[
        tuple[str, ...] | None, Help("Camera to use", default="the mixture's", option="--camera", metavar="ROLE")
    ] = None
    proprio: Annotated[bool, Help("Add the robot state (proprio) to the input")] = False
    chunk: Annotated[int | None, Ge(1), Help("Actions predicted at once", default="the mixture's")] = None
    augment: Annotated[bool, Help("Random crop and color changes, as in OpenVLA's training")] = True
    text_factor: Annotated[float, Ge(0), Help("Factor of the language loss on image-text rows")] = 1.0
    source: Annotated[
        str | None,
        Help(
            "Folder with the data sets that a mixture by reference refers to, if they have moved",
            default="as tokenize read them",
            metavar="ROOT",
        ),
    ] = None
    workers: Annotated[int | None, Ge(1), Help("Decoding threads", default="one per core, 2 to 8")] = None
    log: Annotated[Literal["tensorboard", "wandb", "none"], Help("Where to log, in addition to log.jsonl")] = (
        "tensorboard"
    )
    log_every: Annotated[int, Ge(1), Help("Steps between log lines")] = 10
    eval_every: Annotated[int | None, Ge(1), Help("Steps between validations", default="at the end only")] = None
    eval_samples: Annotated[int, Ge(0), Help("Held-out samples per validation; 0 turns validation off")] = 512
    save_every: Annotated[int | None, Ge(1), Help("Steps between checkpoints", default="at the end only")] = None
    keep: Annotated[int, Ge(1), Help("Checkpoints to keep")] = 2
    shard: Annotated[Literal["ddp", "fsdp"], Help("Several GPUs: copy the model to each (ddp) or divide it (fsdp)")] = (
        "ddp"
    )


@dataclass(frozen=True)
class Setting:
    """One row of the table.

    Attributes:
        key: as in a YAML file, "lora.rank" inside a section.
        hint: type, without None and without metadata.
        default: of the field; None for a required one.
        help: for the command line.
        minimum: smallest value that is allowed, where the limit is inclusive.
        option: name on the command line; None: reachable by `--set` only.
    """

    key: str
    hint: Any
    default: Any
    help: Help
    minimum: Any
    option: str | None

    @property
    def section(self) -> str | None:
        """The section of the key, None for a key of the run itself."""
        return self.key.rpartition(".")[0] or None

    def described(self) -> str:
        """The help text with the default of each family, for `--help`."""
        own = [] if self.default is None else [_shown(self.default)]
        own = [self.help.default] if self.help.default is not None else own
        other = [
            f"{family}: {_shown(defaults[self.key])}"
            for family, defaults in FAMILY_DEFAULTS.items()
            if self.key in defaults
        ]
        return f"{self.help.text} (default: {'; '.join(own + other)})" if own + other else self.help.text


def settings(of: type = TrainSettings, prefix: str = "") -> Iterator[Setting]:
    """Every setting of a run in the order of the fields, those of sections included."""
    hints = get_type_hints(of, include_extras=True)
    for field in fields(of):
        hint = hints[field.name]
        if isinstance(hint, type):
            yield from settings(hint, f"{field.name}.")
            continue
        kind, *metadata = get_args(hint)
        shown = next(one for one in metadata if isinstance(one, Help))
        plain = tuple(one for one in get_args(kind) if one is not type(None))
        optional = type(None) in get_args(kind)
        yield Setting(
            key=prefix + field.name,
            hint=plain[0] if optional and len(plain) == 1 else kind,
            default=None if field.default is MISSING else field.default,
            help=shown,
            minimum=next((one.ge for one in metadata if isinstance(one, Ge)), None),
            option=shown.option or (None if prefix else f"--{field.name.replace('_', '-')}"),
        )


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)
