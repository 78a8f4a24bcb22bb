"""OpenVLA as a family: action tokens decoded sequentially or in parallel, or continuous actions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from oxe_curate.errors import ConfigError
from oxe_curate.tokenize.folder import MixtureFolder
from oxe_curate.train.config import TrainConfig
from oxe_curate.train.data.augment import augment
from oxe_curate.train.data.batch import Batch, Collator
from oxe_curate.train.data.rows import ACTION_WIDTH, SampleFormat
from oxe_curate.train.models.adapter_files import load_trained, save_trained
from oxe_curate.train.models.adapters import Parts, attach, check_quantization
from oxe_curate.train.models.base import Controller, Family, PolicySpec
from oxe_curate.train.models.openvla.action_head import l1_loss
from oxe_curate.train.models.openvla.collate import OpenVLACollator, bin_tokens
from oxe_curate.train.models.openvla.config import Architecture
from oxe_curate.train.models.openvla.export import export_merged
from oxe_curate.train.models.openvla.greedy import greedy_ids
from oxe_curate.train.models.openvla.losses import gather_states, mean_over, token_loss
from oxe_curate.train.models.openvla.model import OpenVLA, load_model
from oxe_curate.train.models.openvla.parallel import (
    additive,
    best_action_ids,
    gather_slots,
    parallel_mask,
    slot_embeddings,
    slot_loss,
)
from oxe_curate.train.models.openvla.prompt import Prompter
from oxe_curate.train.models.pixels import PREPROCESSOR, PixelNormalizer
from oxe_curate.train.models.weights import Quantization

_WEIGHT_DECAY = 0.01
"""torch's default for AdamW, which OpenVLA's fine-tuning uses."""


@dataclass(frozen=True)
class _Sequences:
    """Input of the language model: embeddings (b, N, width), of which the first `robots` rows are robot samples."""

    embeds: torch.Tensor
    robots: int


class OpenVLAFamily(Family):
    """See `Family`. Images are augmented in training if configured.

    Attributes:
        config: of the run.
        vocabulary: action tokens of the bins; None for continuous actions.
        texts: whether the mixture has image-text rows, so that every training step reports their loss.
    """

    name = "openvla"

    def __init__(self, net: nn.Module, config: TrainConfig, spec: PolicySpec) -> None:
        super().__init__()
        self.net, self.config, self.spec = net, config, spec
        base = self.base
        self.prompter = Prompter.of(config.base, base.architecture.text, base.architecture.config.get("pad_token_id"))
        self.normalize = PixelNormalizer.read(config.base, len(base.architecture.vits))
        self.vocabulary = bin_tokens(spec)
        self.texts = False
        if self.vocabulary is None and not self.continuous:
            raise ConfigError("the spec of this model has no action tokens, so its actions cannot be decoded")
        if self.vocabulary is not None:
            values = self.vocabulary.decode(np.arange(base.architecture.text.vocab_size), clip=True)
            device = base.language_model.get_input_embeddings().weight.device
            self.register_buffer("_values", torch.from_numpy(values).to(device), persistent=False)
            self.register_buffer("_ids", torch.from_numpy(self.vocabulary.token_id).to(device), persistent=False)

    @property
    def base(self) -> OpenVLA:
        """The network without the PEFT wrapper."""
        found: OpenVLA = self.net.get_base_model() if hasattr(self.net, "get_base_model") else self.net
        return found

    @property
    def parallel(self) -> bool:
        """Whether all action slots are decoded in one pass."""
        return self.continuous or self.config.openvla.decoding == "parallel"

    @property
    def continuous(self) -> bool:
        """Whether actions come from the L1 head."""
        return self.config.openvla.head == "l1"

    @classmethod
    def build(cls, config: TrainConfig, mixture: MixtureFolder, device: torch.device) -> OpenVLAFamily:
        """See `Family`. The mixture's action tokens must match the base's tokenizer."""
        architecture = Architecture.read(config.base)
        form = SampleFormat.of(mixture, config.cameras, 1, config.chunk, config.proprio)
        mixture.tokens.check_tokenizer(config.base)
        spec = PolicySpec(
            cameras=form.cameras,
            window=1,
            chunk=form.chunk,
            image_size=architecture.image_size,
            proprio=form.proprio,
            statistics=mixture.statistics_json,
            tokens=None if config.openvla.head == "l1" else tuple(mixture.tokens.token_id.tolist()),
            bins=mixture.tokens.action_bins.kind,
            hashes=dict(mixture.hashes),
            resize=config.resize,
        )
        family = cls(attach(_load(config, spec, device), config, _parts(config)), config, spec)
        family.texts = bool(mixture.mixture.texts)
        if config.checkpointing:
            family.base.checkpoint_activations()
        family.train()
        return family

    @classmethod
    def restore(cls, config: TrainConfig, spec: PolicySpec, folder: Path | None, device: torch.device) -> OpenVLAFamily:
        """See `Family`."""
        net = _load(config, spec, device)
        if folder is None:
            whole = cls(net.requires_grad_(False), config, spec)
            whole.eval()
            return whole
        family = cls(attach(net, config, _parts(config)), config, spec)
        family.load(folder)
        if config.adapter == "none":  # trained in float32, but used in the type of the export
            for parameter in net.parameters():
                parameter.data = parameter.data.to(_dtype(config))
        family.eval()
        return family

    @property
    def collator(self) -> Collator:
        """See `Family`; `OpenVLACollator` documents the batch."""
        return OpenVLACollator(
            prompter=self.prompter,
            tokens=None if self.vocabulary is None else self.vocabulary.token_id,
            patches=self.base.vision_backbone.num_patches,
            prefix=self.base.prefix_tokens(len(self.spec.cameras)),
            chunk=self.spec.chunk,
            proprio=self.spec.proprio,
            parallel=self.parallel,
        )

    def forward(self, **batch: Any) -> dict[str, torch.Tensor]:
        """See `Family`.

        Returns:
            "loss"; "token_accuracy" and "l1" (mean error of the normalized actions) over the real actions;
            "text_loss" of image-text rows. NaN if a batch has no such rows.
        """
        sequences = self._embed(batch)
        n = sequences.robots
        if self.parallel:
            hidden = self._read(sequences, batch["length"])
            losses, logged = self._slot_losses(gather_slots(hidden[:n], batch["length"], self._slots), batch)
        else:
            hidden = self.base.last_hidden(sequences.embeds, None)  # padding is on the right: causality hides it
            losses, logged = self._token_losses(hidden[:n], batch)
        if "text_ids" in batch:
            text = token_loss(self.base.head(gather_states(hidden[n:], batch["text_places"])), batch["text_targets"])
            logged["text_loss"] = text.detach().mean()
            losses = torch.cat([losses, text * batch["text_factor"]])
        elif self.texts and self.training:
            logged["text_loss"] = losses.new_full((), float("nan"))
        return {"loss": losses.mean(), **logged}

    def predict(self, batch: Batch) -> torch.Tensor:
        """See `Family`."""
        robots = {key: value for key, value in batch.items() if not key.startswith("text_")}
        with torch.no_grad():
            sequences = self._embed(robots)
            if not self.parallel:
                length = robots["prompt_length"] + self.base.prefix_tokens(len(self.spec.cameras))
                ids = greedy_ids(self.base, sequences.embeds[:, : int(length.max())], length, self._slots)
                return self._values[ids].view(-1, self.spec.chunk, ACTION_WIDTH)
            hidden = self._read(sequences, robots["length"])
            states = gather_slots(hidden, robots["length"], self._slots)
            if self.continuous:
                return self.base.action_head(self._head_input(states)).float()
            ids = best_action_ids(self.base.head(states), self._ids)
            return self._values[ids].view(-1, self.spec.chunk, ACTION_WIDTH)

    def parameter_groups(self, weight_decay: float | None) -> list[dict[str, Any]]:
        """See `Family`: one group."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return [{"params": trained, "weight_decay": _WEIGHT_DECAY if weight_decay is None else weight_decay}]

    def save(self, folder: Path) -> None:
        """See `Family`."""
        save_trained(self.net, folder, self.config.base)

    def load(self, folder: Path) -> None:
        """See `Family`."""
        load_trained(self.net, folder)

    def controller(self, compile: bool = True) -> Controller:
        """See `Family`."""
        from oxe_curate.train.models.openvla.control import ControlSettings, OpenVLAController

        base, table = self.base, self.vocabulary
        control = ControlSettings(
            prompt=self.prompter.prompt,
            pixels=self.normalize,
            values=lambda ids: table.decode(ids, clip=True) if table is not None else np.zeros(ids.shape, np.float32),
            token_ids=[] if table is None else table.token_id.tolist(),
            cameras=len(self.spec.cameras),
            image_size=self.spec.image_size,
            proprio=self.spec.proprio,
            chunk=self.spec.chunk,
            head=base.action_head if self.continuous else None,
            parallel=self.parallel,
            compile=compile,
        )
        return OpenVLAController(base, control)

    def export(self, folder: Path, merge: bool) -> None:
        """See `Family`: the adapter, or a merged checkpoint in the published layout with the base's dtypes.

        Merging requires a freshly restored model: bitsandbytes repacks weights at their first use on some CPUs.
        """
        if not merge:
            self.save(folder)
            return
        export_merged(self.net, Path(self.config.base), folder, self.spec.statistics)
        if self.spec.resize != "bicubic":  # the base's
            description = self.normalize.to_json(self.spec.image_size, self.spec.resize)
            (folder / PREPROCESSOR).write_text(json.dumps(description, indent=2) + "\n")

    @property
    def _slots(self) -> int:
        return self.spec.chunk * ACTION_WIDTH

    def _embed(self, batch: Batch) -> _Sequences:
        """Embed all rows of a batch, robot samples first, padded on the right; the vision towers run once."""
        base, images = self.base, batch["images"]
        n, cameras = images.shape[:2]
        flat = images.flatten(0, 1)
        if self.training and self.config.augment:
            flat = augment(flat, _per_camera(batch["random"], cameras))
        pixels = self.normalize(flat)
        if "text_ids" in batch:
            pixels = torch.cat([pixels, self.normalize(batch["text_images"])])
        projected = base.features(pixels)[0]
        robots = projected[: n * cameras].reshape(n, cameras * projected.shape[1], projected.shape[2])
        embeds, _ = base.insert_prefix(batch["input_ids"], None, base.prefix(robots, batch.get("proprio")))
        if "text_ids" in batch:
            texts, _ = base.insert_prefix(batch["text_ids"], None, projected[n * cameras :])
            width = max(embeds.shape[1], texts.shape[1])
            embeds = torch.cat([F.pad(part, (0, 0, 0, width - part.shape[1])) for part in (embeds, texts)])
        return _Sequences(embeds, n)

    def _read(self, sequences: _Sequences, length: torch.Tensor) -> torch.Tensor:
        """Hidden states with blank slots that attend to each other in robot rows; image-text rows are causal."""
        n, embeds = sequences.robots, sequences.embeds
        width = embeds.shape[1]
        blank = torch.cat([slot_embeddings(embeds[:n], length, self._slots), embeds[n:]])
        mask = parallel_mask(length, self._slots, width)
        if len(embeds) > n:
            causal = torch.ones(width, width, dtype=torch.bool, device=embeds.device).tril()
            mask = torch.cat([mask, causal.expand(len(embeds) - n, 1, -1, -1)])
        places = torch.arange(width, device=embeds.device)[None].expand(len(embeds), -1)
        return self.base.last_hidden(blank, additive(mask, embeds.dtype), position_ids=places)

    def _token_losses(self, hidden: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        logits = self.base.head(gather_states(hidden, batch["places"]))
        chosen = logits[:, :-1].detach().argmax(-1)  # without the stop token
        return token_loss(logits, batch["targets"]), self._scores(chosen, batch)

    def _slot_losses(self, states: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        actions, mask = batch["actions"], batch["action_mask"]
        if self.continuous:
            predicted = self.base.action_head(self._head_input(states))
            losses = l1_loss(predicted, actions, mask)
            return losses, {"l1": mean_over((predicted.detach() - actions).abs(), mask[..., None])}
        logits = self.base.head(states)
        losses = slot_loss(logits, batch["action_ids"], mask)
        return losses, self._scores(best_action_ids(logits.detach(), self._ids), batch)

    def _scores(self, chosen: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        """Token accuracy and L1 error of decoded actions against the binned targets, as logged by OpenVLA."""
        truth = batch["action_ids"]
        chosen = chosen.view(truth.shape)
        mask = batch["action_mask"][..., None]
        return {
            "token_accuracy": mean_over((chosen == truth).float(), mask),
            "l1": mean_over((self._values[chosen] - self._values[truth]).abs(), mask),
        }

    def _head_input(self, states: torch.Tensor) -> torch.Tensor:
        return states.to(next(self.base.action_head.parameters()).dtype)


def _load(config: TrainConfig, spec: PolicySpec, device: torch.device) -> OpenVLA:
    """The base, quantized as the adapter requires; new parts are initialized from the seed."""
    check_quantization(config.adapter, device)
    kinds: dict[str, Quantization] = {"qlora": "nf4", "int8": "int8"}
    kind = kinds.get(config.adapter)

    def quantize(name: str) -> Quantization | None:
        return kind if name.startswith("language_model.") and not name.endswith("lm_head") else None

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        net = load_model(
            config.base,
            device,
            _dtype(config),
            quantize if kind else None,
            proprio=spec.proprio,
            action_head=config.openvla.head == "l1",
        )
    highest, rows = max(spec.tokens or (0,)), net.architecture.text.vocab_size
    if highest >= rows:
        raise ConfigError(
            f"{config.base}: action token {highest} is outside its vocabulary of {rows} tokens. "
            "Run tokenize again with this model's --tokenizer; the shards are kept."
        )
    return net


def _dtype(config: TrainConfig) -> torch.dtype:
    return torch.bfloat16 if config.dtype == "bf16" else torch.float32


def _parts(config: TrainConfig) -> Parts:
    continuous = config.openvla.head == "l1"
    whole = (*(["proprio_projector"] if config.proprio else []), *(["action_head"] if continuous else []))
    # continuous actions do not use the output head, which would get no gradient
    frozen = ("language_model.lm_head",) if continuous else ()
    return Parts("language_model", vision=("vision_backbone",), whole=whole, frozen=frozen)


def _per_camera(random: torch.Tensor, cameras: int) -> torch.Tensor:
    """(n, k) -> (n * cameras, k): a crop and colors of its own for each camera; shifted numbers stay uniform."""
    shift = torch.arange(cameras, device=random.device) * 0.6180339887
    shifted: torch.Tensor = (random[:, None] + shift[:, None]) % 1
    return shifted.flatten(0, 1)
