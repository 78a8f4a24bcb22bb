"""CLIP's vision tower: transformers' `CLIPVisionModel`, and the names of its weights in OpenFlamingo's checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's normalization of RGB in [0, 1]."""


@dataclass(frozen=True)
class ClipShape:
    """Shape of a tower; the default is OpenAI's ViT-L/14."""

    width: int = 1024
    layers: int = 24
    heads: int = 16
    patch: int = 14
    image_size: int = 224
    mlp_width: int = 4096
    act: Literal["quick_gelu", "gelu"] = "quick_gelu"

    @property
    def tokens(self) -> int:
        """Number of patches in an image."""
        return (self.image_size // self.patch) ** 2

    @classmethod
    def from_transformers(cls, config: Mapping[str, Any]) -> ClipShape:
        """The shape in a config.json of transformers' CLIPModel or CLIPVisionModel."""
        vision = {**config, **config.get("vision_config", {})}
        return cls(
            width=vision["hidden_size"],
            layers=vision["num_hidden_layers"],
            heads=vision["num_attention_heads"],
            patch=vision["patch_size"],
            image_size=vision["image_size"],
            mlp_width=vision["intermediate_size"],
            act="quick_gelu" if vision.get("hidden_act", "quick_gelu") == "quick_gelu" else "gelu",
        )


class ClipTower(nn.Module):
    """CLIP's vision transformer without the final norm, which acts on the pooled token only.

    Attributes:
        visual: transformers' model.
        shape: its shape.
    """

    def __init__(self, shape: ClipShape) -> None:
        from transformers import CLIPVisionConfig, CLIPVisionModel

        super().__init__()
        self.shape = shape
        self.visual = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=shape.width,
                num_hidden_layers=shape.layers,
                num_attention_heads=shape.heads,
                patch_size=shape.patch,
                image_size=shape.image_size,
                intermediate_size=shape.mlp_width,
                hidden_act=shape.act,
            )
        )
        self.visual.post_layernorm = nn.Identity()

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return next(self.parameters()).dtype

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalized pixels (n, 3, S, S) -> patch tokens (n, tokens, width) of the last block."""
        tokens: Tensor = self.visual(pixel_values=pixels).last_hidden_state[:, 1:]
        return tokens


def normalize_images(images: Tensor) -> Tensor:
    """uint8 (n, S, S, 3) RGB -> float32 (n, 3, S, S) in CLIP's normalization."""
    mean = torch.tensor(MEAN, device=images.device)
    std = torch.tensor(STD, device=images.device)
    return ((images.float() / 255 - mean) / std).permute(0, 3, 1, 2)


_OPEN_CLIP = (  # transformers, open_clip
    ("embeddings.class_embedding", "class_embedding"),
    ("embeddings.patch_embedding.", "conv1."),
    ("embeddings.position_embedding.weight", "positional_embedding"),
    ("pre_layrnorm.", "ln_pre."),
    ("encoder.layers.", "transformer.resblocks."),
    (".layer_norm", ".ln_"),
    (".self_attn.", ".attn."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
)


def from_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a tower's weights from open_clip's names to those of `ClipTower.visual`; splits query, key and value."""
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        for theirs, open_clip in _OPEN_CLIP:
            name = name.replace(open_clip, theirs)
        if ".in_proj_" in name:
            out |= {name.replace("in_proj_", f"{x}_proj."): part for x, part in zip("qkv", value.chunk(3), strict=True)}
        else:
            out[name] = value
    return out


def to_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `from_open_clip`."""
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        if ".k_proj." in name or ".v_proj." in name:
            continue
        if ".q_proj." in name:
            value = torch.cat([state[name.replace(".q_proj.", f".{x}_proj.")] for x in "qkv"])
            name = name.replace(".q_proj.", ".in_proj_")
        for theirs, open_clip in _OPEN_CLIP:
            name = name.replace(theirs, open_clip)
        out[name] = value
    return out


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Select a tower's weights from those of CLIPModel or CLIPVisionModel on disk."""
    prefix = "vision_model."
    vision = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)} or state
    return {
        name: value
        for name, value in vision.items()
        if name.startswith(("embeddings.", "pre_layrnorm.", "encoder.")) and not name.endswith("position_ids")
    }
