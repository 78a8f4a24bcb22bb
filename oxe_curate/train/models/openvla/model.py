"""OpenVLA's network: two vision transformers, a projector and a causal language model, with published parameter names.

`load_model(folder)` loads a checkpoint; `compose.compose_checkpoint` makes one from a language model and vision towers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from oxe_curate.train.data.batch import IGNORE
from oxe_curate.train.models.norms import fuse_rms_norms
from oxe_curate.train.models.openvla.action_head import L1Head
from oxe_curate.train.models.openvla.config import Architecture
from oxe_curate.train.models.openvla.projector import Projector, ProprioProjector
from oxe_curate.train.models.openvla.vit import VisionTransformer
from oxe_curate.train.models.weights import (
    Checkpoint,
    QuantizationRule,
    StoredTensor,
    load_into,
    persistent_buffers,
    plan_files,
    skeleton,
    write_weights,
)

MAX_FILE_BYTES = 5_000_000_000
"""Size limit of a safetensors file."""


class VisionBackbone(nn.Module):
    """One or two vision transformers for the same image, each with its own normalization."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        towers = [
            VisionTransformer(v, size) for v, size in zip(architecture.vits, architecture.image_sizes, strict=True)
        ]
        self.featurizer = towers[0]
        if len(towers) == 2:
            self.fused_featurizer = towers[1]

    @property
    def towers(self) -> list[VisionTransformer]:
        """DINOv2 and SigLIP, or SigLIP only."""
        return list(self.children())

    @property
    def num_patches(self) -> int:
        """Number of patches per image."""
        return int(self.featurizer.num_patches)

    def patches(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(B, 3 * towers, H, W) -> (B, patches, width) of each tower."""
        parts = pixel_values.to(self.featurizer.pos_embed.dtype).split(3, dim=1)
        return tuple(tower(part) for tower, part in zip(self.towers, parts, strict=True))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, 3 * towers, H, W) -> (B, patches, sum of widths)."""
        return torch.cat(self.patches(pixel_values), dim=2)


@dataclass
class Output:
    """Result of a forward pass.

    Attributes:
        loss: mean cross-entropy over all labelled tokens, None without labels.
        last_hidden: (B, L + prefix, width) after the final norm; image patches and proprio token follow BOS.
        projector_features: (B, images * patches, width). patches: (B * images, patches, width) of each tower.
        head: hidden states -> logits.
    """

    loss: torch.Tensor | None
    last_hidden: torch.Tensor
    projector_features: torch.Tensor
    patches: tuple[torch.Tensor, ...]
    head: Callable[[torch.Tensor], torch.Tensor]

    @property
    def logits(self) -> torch.Tensor:
        """(B, L + prefix, vocabulary), computed at each access, since the loss needs labelled positions only."""
        return self.head(self.last_hidden)

    @property
    def hidden_states(self) -> tuple[torch.Tensor]:
        """`last_hidden` in the form of transformers' outputs."""
        return (self.last_hidden,)

    @property
    def dino_patches(self) -> torch.Tensor:
        """(B * images, patches, width) of the first tower."""
        return self.patches[0]

    @property
    def siglip_patches(self) -> torch.Tensor:
        """(B * images, patches, width) of the last tower."""
        return self.patches[-1]


class OpenVLA(nn.Module):
    """The network.

    Attributes:
        architecture: content of config.json.
        proprio: width of the proprio state, which becomes one token; 0 for none. `proprio_projector` (if any) and
            `action_head` (for continuous actions) have parameters that published checkpoints do not contain.
        checkpoint: the checkpoint it was loaded from; None for random weights.
        unused: tensors of the checkpoint that no forward pass uses, kept for `save`.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture, self.proprio = architecture, architecture.proprio
        self.vision_backbone = VisionBackbone(architecture)
        width = architecture.width
        vision = sum(vit.embed_dim for vit in architecture.vits)
        self.projector = Projector(vision, width, fused=len(architecture.vits) == 2)
        self.language_model = architecture.build_language_model()
        fuse_rms_norms(self.language_model)
        if self.proprio:
            self.proprio_projector = ProprioProjector(self.proprio, width)
        if architecture.action_head:
            self.action_head = L1Head(width)
        self.checkpoint: Checkpoint | None = None
        self.unused: dict[str, torch.Tensor] = {}

    @property
    def decoder(self) -> nn.Module:
        """The language model without its head; accepts inputs_embeds, attention_mask, a cache, ..."""
        decoder: nn.Module = self.language_model.base_model
        return decoder

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states after the final norm (..., width) -> logits (..., vocabulary)."""
        return self.language_model.get_output_embeddings()(hidden)

    def prefix_tokens(self, images: int = 1) -> int:
        """Number of positions that `embed` inserts after BOS."""
        return images * self.vision_backbone.num_patches + (1 if self.proprio else 0)

    def features(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Projected patches.

        Args:
            pixel_values: (B, 3 * towers, H, W), or (B, images, 3 * towers, H, W).

        Returns:
            (B, images * patches, width) in the order of the images, and each tower's patches.
        """
        batch = len(pixel_values)
        patches = self.vision_backbone.patches(pixel_values.flatten(0, -4) if pixel_values.ndim == 5 else pixel_values)
        projected = self.projector(torch.cat(patches, dim=2))
        return projected.reshape(batch, -1, projected.shape[-1]), patches

    def embed(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        pixel_values: torch.Tensor,
        proprio: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Embed text and insert image patches and proprio token after BOS.

        Args:
            input_ids: (B, L), BOS first.
            attention_mask: (B, L), 0 or False for padding; None if there is no padding or it does not matter.
            pixel_values: see `features`.
            proprio: (B, proprio), normalized; given exactly if the model has proprio.

        Returns:
            (B, L + prefix, width) and the mask of the same length, or None.
        """
        return self.insert_prefix(input_ids, attention_mask, self.prefix(self.features(pixel_values)[0], proprio))

    def prefix(self, projected: torch.Tensor, proprio: torch.Tensor | None) -> torch.Tensor:
        """Embeddings between BOS and text: projected patches (B, N, width), followed by the proprio token."""
        if (proprio is not None) != bool(self.proprio):
            raise ValueError("give proprio exactly if the model was built with it")
        if proprio is None:
            return projected
        return torch.cat([projected, self.proprio_projector(proprio).to(projected.dtype)], dim=1)

    def insert_prefix(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, prefix: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Embed text (B, L) and insert `prefix` after its first token; see `embed`."""
        text = self.language_model.get_input_embeddings()(input_ids)
        embeds = torch.cat([text[:, :1], prefix.to(text.dtype), text[:, 1:]], dim=1)
        if attention_mask is None:
            return embeds, None
        ones = attention_mask.new_ones(prefix.shape[:2])
        return embeds, torch.cat([attention_mask[:, :1], ones, attention_mask[:, 1:]], dim=1)

    def last_hidden(
        self, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor | None, **kwargs: Any
    ) -> torch.Tensor:
        """(B, N, width) after the final norm; the mask is (B, N), or (B, 1, N, N) if attention is not causal."""
        kwargs.setdefault("use_cache", False)
        out = self.decoder(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **kwargs)
        hidden: torch.Tensor = out.last_hidden_state
        return hidden

    def forward(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        proprio: torch.Tensor | None = None,
    ) -> Output:
        """Forward pass.

        Args:
            pixel_values: see `features`.
            input_ids: (B, L), BOS first.
            attention_mask: see `embed`.
            labels: (B, L), -100 for no loss; position i is predicted from all earlier positions.
            proprio: see `embed`.
        """
        features, patches = self.features(pixel_values)
        embeds, mask = self.insert_prefix(input_ids, attention_mask, self.prefix(features, proprio))
        hidden = self.last_hidden(embeds, mask)
        loss = None
        if labels is not None:
            labelled = labels[:, 1:] != IGNORE
            before = hidden[:, embeds.shape[1] - labels.shape[1] : -1]
            loss = F.cross_entropy(self.head(before[labelled]).float(), labels[:, 1:][labelled])
        return Output(loss, hidden, features, patches, self.head)

    def checkpoint_activations(self, on: bool = True) -> None:
        """Recompute the activations of each block in the backward pass."""
        for tower in self.vision_backbone.towers:
            tower.checkpointing = on
        # transformers 5.23 renamed the method and warns about the old name, which 5.17 needs
        verb = "enable" if on else "disable"
        new = getattr(self.language_model, f"activation_checkpointing_{verb}", None)
        switch = new or getattr(self.language_model, f"gradient_checkpointing_{verb}")
        switch(*([{"use_reentrant": False}] if on and new is None else []))

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write a checkpoint folder: config.json and all weights, unused ones included.

        A loaded model keeps the files, names, shapes and dtypes of its checkpoint; `dtype` overrides the latter.
        Weights must not be quantized.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.architecture.write(folder)
        tensors = {**dict(self.named_parameters()), **persistent_buffers(self), **self.unused}
        stored = self.checkpoint.tensors if self.checkpoint else {}
        kinds = {
            name: dtype
            if dtype and tensor.is_floating_point()
            else stored[name].dtype
            if name in stored
            else tensor.dtype
            for name, tensor in tensors.items()
        }
        if self.checkpoint and set(stored) == set(tensors):
            layout, index = self.checkpoint.layout, self.checkpoint.index
        else:
            layout = plan_files(
                {n: StoredTensor("", tuple(t.shape), kinds[n]) for n, t in tensors.items()}, MAX_FILE_BYTES
            )
            index = None
        write_weights(folder, layout, lambda name: tensors[name].to(kinds[name]), index)


def load_model(
    folder: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    quantize: QuantizationRule | None = None,
    proprio: int | None = None,
    action_head: bool | None = None,
) -> OpenVLA:
    """Load a checkpoint in the published layout (config.json, safetensors) in evaluation mode.

    Loading is strict: tensors and parameters must match, except for tensors that are known to be unused.

    Args:
        folder: the checkpoint, or a folder with one `*config.json` and one `*.safetensors` file.
        device: of the weights.
        dtype: of weights that are not quantized.
        quantize: see `weights.load_into`.
        proprio: width of the proprio state, 0 for none; None: as in the checkpoint.
        action_head: whether to add a head for continuous actions; None: as in the checkpoint. The head and the proprio
            projector get random weights from torch's generator if the checkpoint does not contain them.

    Raises:
        ConfigError: not a checkpoint, or its weights do not match its configuration.
    """
    architecture = Architecture.read(folder).with_parts(proprio, action_head)
    checkpoint = Checkpoint.open(folder)
    model = skeleton(lambda: OpenVLA(architecture))
    assert isinstance(model, OpenVLA)
    model.language_model.tie_weights()
    makers: dict[str, Callable[[], nn.Module]] = {
        "proprio_projector": lambda: ProprioProjector(architecture.proprio, architecture.width),
        "action_head": lambda: L1Head(architecture.width),
    }
    fresh = [name for name in makers if hasattr(model, name) and not _holds(checkpoint, name)]
    for name in fresh:
        delattr(model, name)
    unused = {
        f"vision_backbone.{name}.{tensor}"
        for name, tower in model.vision_backbone.named_children()
        for tensor in tower.unused()
    }
    model.unused = load_into(model, checkpoint, device, dtype, quantize, unused=unused)
    model.language_model.tie_weights()
    for name in fresh:
        setattr(model, name, makers[name]().to(device, dtype))
    model.checkpoint = checkpoint
    model.eval()
    return model


def _holds(checkpoint: Checkpoint, part: str) -> bool:
    return any(name.startswith(f"{part}.") for name in checkpoint.tensors)
