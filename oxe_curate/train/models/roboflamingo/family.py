"""RoboFlamingo as a family: windows of frames to continuous actions, with image-text co-training.

As in the released code, the gated cross-attention, resampler, policy head and (unless frozen) the decoder's input
embeddings are trained, in float32. The tower and the decoder are frozen, in `config.dtype`; the decoder may be NF4
(adapter qlora) or int8, with LoRA on its linear layers (none with `lora.targets: []`).
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from oxe_curate.errors import ConfigError
from oxe_curate.tokenize.folder import MixtureFolder
from oxe_curate.train.config import TrainConfig
from oxe_curate.train.data.augment import augment
from oxe_curate.train.data.batch import IGNORE, Batch
from oxe_curate.train.models import adapters
from oxe_curate.train.models.adapter_files import load_trained, save_trained
from oxe_curate.train.models.base import Family, PolicySpec
from oxe_curate.train.models.roboflamingo import export as flamingo_export
from oxe_curate.train.models.roboflamingo.collate import FlamingoCollator, FlamingoPrompter
from oxe_curate.train.models.roboflamingo.config import FlamingoSpec, HeadSpec
from oxe_curate.train.models.roboflamingo.control import FlamingoController, as_actions
from oxe_curate.train.models.roboflamingo.heads import POSE
from oxe_curate.train.models.roboflamingo.model import EMBEDDINGS, build_flamingo
from oxe_curate.train.models.roboflamingo.net import Flamingo
from oxe_curate.train.models.roboflamingo.policy_loss import policy_losses
from oxe_curate.train.models.roboflamingo.vision_cache import VisionCache
from oxe_curate.train.models.roboflamingo.vit import MEAN, STD, normalize_images

_WEIGHT_DECAY = 0.1
"""Weight decay of the cross-attention's matrices; other parameters have none."""
_CACHE = "vision-cache"


class FlamingoFamily(Family):
    """See the module."""

    name = "roboflamingo"

    def __init__(self, net: Any, config: TrainConfig, spec: PolicySpec, texts: bool, cache: VisionCache | None) -> None:
        """Wrap a network; use `build` or `restore` to make one."""
        super().__init__()
        self.net, self.spec, self._config, self._texts, self._cache = net, spec, config, texts, cache
        self._prompter = FlamingoPrompter(Path(config.base))

    @classmethod
    def build(cls, config: TrainConfig, mixture: MixtureFolder, device: torch.device) -> FlamingoFamily:
        """See `Family.build`."""
        base = FlamingoSpec.read(Path(config.base))
        spec = _policy_spec(config, mixture, base)
        net = _assemble(config, spec, base, device, trained_head=False)
        cache = None
        if config.flamingo.cache_vision:
            world = int(os.environ.get("WORLD_SIZE", "1"))
            limit = int(config.flamingo.cache_gib * 2**30)
            cache = VisionCache.open(Path(config.run) / _CACHE, _plain(net).vision_encoder, limit, world)
        return cls(net, config, spec, bool(mixture.shards("text")), cache)

    @classmethod
    def restore(
        cls, config: TrainConfig, spec: PolicySpec, folder: Path | None, device: torch.device
    ) -> FlamingoFamily:
        """See `Family.restore`; without a folder the base contains the trained weights."""
        base = FlamingoSpec.read(Path(config.base))
        net = _assemble(config, spec, base, device, trained_head=folder is None)
        family = cls(net, config, spec, False, None)
        if folder is not None:
            family.load(folder)
        return family

    @property
    def flamingo(self) -> Flamingo:
        """The network without the PEFT wrapper."""
        net: Flamingo = _plain(self.net)
        return net

    @property
    def collator(self) -> FlamingoCollator:
        """See `Family.collator`."""
        return FlamingoCollator(self._prompter, self._cache)

    def forward(self, **batch: Any) -> dict[str, Tensor]:
        """See `Family.forward`; also returns pose loss, gripper loss, gripper accuracy and text loss.

        A scalar is NaN if a batch has no such rows, so that all processes have the same names.
        """
        robots, texts = len(batch["actions"]), len(batch.get("text_ids", ()))
        with self._autocast():
            total = self._untouched(robots > 0, texts > 0)
            nothing = total.new_full((), float("nan"))
            if robots:
                losses, scalars = self._robot_losses(batch)
                total = total + losses.sum()
            else:
                scalars = dict.fromkeys(("pose_loss", "gripper_loss", "gripper_accuracy"), nothing)
            if self._texts and self.training:  # same names in every process; there are no held-out texts
                scalars["text_loss"] = nothing
            if texts:
                text_losses = self._text_losses(batch)
                total = total + (text_losses * batch["text_factor"]).sum()
                scalars["text_loss"] = text_losses.mean().detach()
        return {"loss": total / max(robots + texts, 1), **scalars}

    def predict(self, batch: Batch) -> Tensor:
        """See `Family.predict`; the gripper is 0 or 1."""
        if not len(batch["actions"]):
            return torch.zeros((0, self.spec.chunk, 7), device=self._device)
        with self._autocast():
            pose, gripper = self._policy(batch)
        return as_actions(pose[:, -1], gripper[:, -1], self.spec.chunk)

    def parameter_groups(self, weight_decay: float | None) -> list[dict[str, Any]]:
        """Weight decay on the cross-attention's matrices only, as in the released code."""
        decay = _WEIGHT_DECAY if weight_decay is None else weight_decay
        groups: dict[bool, list[Any]] = {True: [], False: []}
        for name, parameter in self.net.named_parameters():
            if parameter.requires_grad:
                groups["gated_cross_attn_layer" in name and parameter.dim() > 1].append(parameter)
        return [
            {"params": params, "weight_decay": decay if decayed else 0.0}
            for decayed, params in groups.items()
            if params
        ]

    def save(self, folder: Path) -> None:
        """See `Family.save`."""
        save_trained(self.net, folder, self._config.base)

    def load(self, folder: Path) -> None:
        """See `Family.load`."""
        load_trained(self.net, folder)

    def controller(self, compile: bool = True) -> FlamingoController:
        """See `Family.controller`; `compile` is ignored."""
        return FlamingoController(self.flamingo, self._prompter, self._autocast)

    def export(self, folder: Path, merge: bool) -> None:
        """See `Family.export` and `export_flamingo`."""
        flamingo_export.export_flamingo(self.net, self.flamingo, self._config, self.spec, folder, merge)

    def _robot_losses(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        settings, chunk = self._config.flamingo, self.spec.chunk
        pose, gripper = self._policy(batch, logits=True)
        steps = pose.shape[1]  # the MLP head with history predicts the last step only
        target, mask = batch["actions"][:, -steps:], batch["action_mask"][:, -steps:]
        opened = gripper.unsqueeze(-1)  # a logit
        numbers, binary = policy_losses(pose.unflatten(-1, (chunk, POSE)), opened, target, mask, settings.pose_loss)
        right = (((opened > 0) == (target[..., POSE:] > 0.5)).squeeze(-1) & mask).sum() / mask.sum().clamp(min=1)
        scalars = {"pose_loss": numbers.mean(), "gripper_loss": binary.mean(), "gripper_accuracy": right}
        return numbers + settings.gripper_weight * binary, {key: value.detach() for key, value in scalars.items()}

    def _untouched(self, robots: bool, texts: bool) -> Tensor:
        """Zero with a gradient to the weights that this batch does not use: data-parallel training requires one."""
        net, unused = self.flamingo, []
        if not robots:
            unused += [*net.lm_head.parameters(), *net.parameters(recurse=False)]
        if net.early and not texts:
            unused += [*net.layers[-1].parameters()]
        zero = torch.zeros((), device=self._device)
        return sum((p.float().sum() * 0.0 for p in unused if p.requires_grad), zero)

    def _policy(self, batch: Batch, logits: bool = False) -> tuple[Tensor, Tensor]:
        """Pose (n, W, 6 K) and gripper (n, W, K) of a batch, the gripper a probability or a logit."""
        net = self.flamingo
        tokens = self._tokens(batch)
        hidden = net.features(tokens, batch["input_ids"], batch["attention_mask"], batch["frames"])
        seen = None if net.history else batch["observation_mask"]
        pose, gripper = net.lm_head(hidden, batch["attention_mask"], seen, logits)
        return pose, gripper

    def _tokens(self, batch: Batch) -> Tensor:
        """The tower's tokens (U, C, v, width) of the batch's distinct frames, cached or computed."""
        cameras = len(self.spec.cameras)
        computed = None
        if len(batch["images"]):
            computed = self.flamingo.encode_images(
                self._pixels(batch["images"], batch["random"], batch["image_sample"])
            )
            if self._cache is not None:
                keys = [bytes(key) for key in batch["image_key"].cpu().numpy()]
                self._cache.write(keys, computed)
        if "cached" not in batch or not len(batch["cached"]):
            assert computed is not None
            return computed.unflatten(0, (-1, cameras))
        held = batch["cached"]
        count = len(held) + len(batch["images"])
        tokens = held.new_empty((count, *held.shape[1:]))
        tokens[batch["cached_place"]] = held
        if computed is not None:
            tokens[batch["image_place"]] = computed.to(held.dtype)
        return tokens.unflatten(0, (-1, cameras))

    def _pixels(self, images: Tensor, random: Tensor, sample: Tensor) -> Tensor:
        """Normalized pixels; augmented in training, equally for all frames of a window."""
        if not (self.training and self._config.augment):
            return normalize_images(images)
        mean, std = (torch.tensor(x, device=images.device)[:, None, None] for x in (MEAN, STD))
        return (augment(images, random[sample]) - mean) / std

    def _text_losses(self, batch: Batch) -> Tensor:
        """float32 (m,): each image-text sample's mean cross-entropy over its learned tokens."""
        net = self.flamingo
        # not augmented: captions describe colors and positions
        latents = net.resample(net.encode_images(normalize_images(batch["text_images"])).unsqueeze(1))
        hidden = net.run_decoder(batch["text_ids"], batch["text_mask"], latents)
        labels = batch["text_labels"][:, 1:]
        row, place = (labels != IGNORE).nonzero(as_tuple=True)
        logits = net.lang_encoder.get_output_embeddings()(hidden[row, place])
        losses = F.cross_entropy(logits.float(), labels[row, place], reduction="none")
        count = torch.bincount(row, minlength=len(labels)).clamp(min=1)
        return losses.new_zeros(len(labels)).index_add(0, row, losses) / count

    @property
    def _device(self) -> torch.device:
        device: torch.device = self.flamingo.perceiver.latents.device
        return device

    def _autocast(self) -> Any:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._config.dtype == "bf16")


def _plain(net: Any) -> Any:
    return net.get_base_model() if hasattr(net, "get_base_model") else net


def _is_trained(name: str, config: TrainConfig) -> bool:
    """Whether a weight other than LoRA's is trained."""
    if name.startswith(("perceiver.", "lm_head.", "frame_embs")) or ".gated_cross_attn_layer." in name:
        return True
    return config.flamingo.train_embeddings and name.startswith("lang_encoder.") and name.endswith(EMBEDDINGS)


def _policy_spec(config: TrainConfig, mixture: MixtureFolder, base: FlamingoSpec) -> PolicySpec:
    """Spec of the run. Raises ConfigError if mixture or configuration do not suit RoboFlamingo."""
    settings, form = config.flamingo, mixture.mixture
    if config.proprio:
        raise ConfigError("proprio: RoboFlamingo does not support proprioception; remove the key")
    if config.tune is not None:
        raise ConfigError(
            "tune: not supported by RoboFlamingo, which trains its cross-attention, resampler, head and embeddings; "
            "remove the key (adapter: lora also trains the decoder)"
        )
    if settings.cache_vision and config.augment:
        raise ConfigError("flamingo.cache_vision: augmented frames cannot be cached; set augment: false")
    if config.shard == "fsdp" and mixture.shards("text"):
        raise ConfigError(
            "shard: fsdp requires all processes to run the same layers, but image-text rows are not in every batch; "
            "use ddp, or a mixture without texts"
        )
    needs_window = settings.head in ("gpt", "lstm") or settings.history
    if form.window == 1 and needs_window:
        what = f"the {settings.head} head" + (" with history" if settings.head == "mlp" else "")
        raise ConfigError(
            f"{mixture.folder}: {what} requires windows of observations, but each row has one observation. Run "
            "tokenize again with window: 12 in the mixture, or use the MLP head without history (flamingo.head: mlp, "
            "flamingo.history: false)."
        )
    chunk = config.chunk or form.chunk
    if chunk > form.chunk:
        raise ConfigError(f"chunk: {chunk} is larger than the chunk of {mixture.folder} ({form.chunk})")
    return PolicySpec(
        cameras=tuple(config.cameras or form.image.cameras),
        window=form.window,
        chunk=chunk,
        image_size=base.vision.image_size,
        proprio=0,
        statistics=mixture.statistics_json,
        tokens=None,
        bins=form.bins,
        hashes=mixture.hashes,
        resize=config.resize,
    )


def _assemble(
    config: TrainConfig, spec: PolicySpec, base: FlamingoSpec, device: torch.device, trained_head: bool
) -> Any:
    """Build the network on its device: quantize, adapt, freeze and cast."""
    adapters.check_quantization(config.adapter, device)
    settings = config.flamingo
    head = replace(
        base.head or HeadSpec(),
        kind=settings.head,
        window=spec.window,
        chunk=spec.chunk,
        history=settings.head == "mlp" and settings.history,
    )
    dtype = torch.bfloat16 if config.dtype == "bf16" else torch.float32
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # same initial weights in every process
        net = build_flamingo(Path(config.base), base, head, dtype, trained_head, lambda name: _is_trained(name, config))
    whole = tuple(net.trained_names(settings.train_embeddings))
    if config.adapter in ("qlora", "int8"):
        names = [n for n in adapters.needs_quantized(net, "lang_encoder") if ".gated_cross_attn_layer." not in n]
        adapters.quantize(net, names, config.adapter, device)
    net.to(device)
    parts = adapters.Parts("lang_encoder", ("vision_encoder",), whole, ("lang_encoder",), ("vision_encoder",))
    wrapped: Any = net
    if config.adapter != "none" and config.lora.targets:
        wrapped = adapters.attach(net, config, parts)
    else:
        net.requires_grad_(False)
    net.train_parts(settings.train_embeddings)
    for parameter in net.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()
    if config.checkpointing:
        net.enable_checkpointing()
    if config.compile:  # three kinds of layers and shapes of robot and text rows: more than dynamo's default of 8
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    return wrapped
