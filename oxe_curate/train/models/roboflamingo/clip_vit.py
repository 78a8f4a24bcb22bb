"""The vision tower of CLIP, with open_clip's parameter names: what OpenFlamingo looks through.

Only what the features need: no final norm, no projection (they act on the pooled token, which Flamingo does not use).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's normalisation of RGB in [0, 1]."""


@dataclass(frozen=True)
class ClipShape:
    """A tower's shape; ViT-L/14 of OpenAI by default."""

    width: int = 1024
    layers: int = 24
    heads: int = 16
    patch: int = 14
    image_size: int = 224
    mlp_width: int = 4096
    act: Literal["quick_gelu", "gelu"] = "quick_gelu"

    @property
    def tokens(self) -> int:
        """Patches of an image."""
        return (self.image_size // self.patch) ** 2


class _Attention(nn.Module):
    """torch's fused projection by name, on scaled_dot_product_attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width).normal_(std=width**-0.5))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _MLP(nn.Module):
    def __init__(self, shape: ClipShape) -> None:
        super().__init__()
        self.quick = shape.act == "quick_gelu"
        self.c_fc = nn.Linear(shape.width, shape.mlp_width)
        self.c_proj = nn.Linear(shape.mlp_width, shape.width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_fc(x)
        return self.c_proj(x * torch.sigmoid(1.702 * x) if self.quick else F.gelu(x))


class _Block(nn.Module):
    def __init__(self, shape: ClipShape) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(shape.width), nn.LayerNorm(shape.width)
        self.attn = _Attention(shape.width, shape.heads)
        self.mlp = _MLP(shape)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class _Transformer(nn.Module):
    def __init__(self, shape: ClipShape) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(_Block(shape) for _ in range(shape.layers))


class ClipViT(nn.Module):
    """CLIP's vision transformer up to the last block's patch tokens."""

    def __init__(self, shape: ClipShape) -> None:
        super().__init__()
        self.shape = shape
        self.conv1 = nn.Conv2d(3, shape.width, shape.patch, shape.patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(shape.width).normal_(std=shape.width**-0.5))
        self.positional_embedding = nn.Parameter(
            torch.empty(1 + shape.tokens, shape.width).normal_(std=shape.width**-0.5)
        )
        self.ln_pre = nn.LayerNorm(shape.width)
        self.transformer = _Transformer(shape)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (n, 3, S, S) -> patch tokens (n, tokens, width)."""
        x = self.conv1(pixels.to(self.conv1.weight.dtype)).flatten(2).transpose(1, 2)
        first = self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
        x = self.ln_pre(torch.cat([first, x], 1) + self.positional_embedding.to(x.dtype))
        for block in self.transformer.resblocks:
            x = block(x)
        return x[:, 1:]


def normalise(images: Tensor) -> Tensor:
    """uint8 (n, S, S, 3) RGB -> float32 (n, 3, S, S) in CLIP's normalisation."""
    mean = torch.tensor(MEAN, device=images.device)
    std = torch.tensor(STD, device=images.device)
    return ((images.float() / 255 - mean) / std).permute(0, 3, 1, 2)


_HF_BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_HF_TOP = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "pre_layrnorm.weight": "ln_pre.weight",
    "pre_layrnorm.bias": "ln_pre.bias",
}


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of transformers' CLIPVisionModel or CLIPModel, renamed for `ClipViT`; others (text, pooled) left out."""
    start = "vision_model."
    vision = {name[len(start) :]: value for name, value in state.items() if name.startswith(start)} or dict(state)
    out: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in vision.items():
        if name in _HF_TOP:
            out[_HF_TOP[name]] = value
        elif name.startswith("encoder.layers."):
            index, _, rest = name[len("encoder.layers.") :].partition(".")
            stem, _, kind = rest.rpartition(".")
            block = f"transformer.resblocks.{index}."
            if stem in _HF_BLOCK:
                out[f"{block}{_HF_BLOCK[stem]}.{kind}"] = value
            else:  # self_attn.{q,k,v}_proj
                parts.setdefault(f"{block}attn.in_proj_{kind}", {})[stem[-6]] = value
    out.update({name: torch.cat([some[c] for c in "qkv"]) for name, some in parts.items()})
    return out


def shape_of_transformers(config: Mapping[str, Any]) -> ClipShape:
    """The shape that a transformers CLIP configuration (`config.json`, whole or its vision part) tells."""
    vision = {**config, **config.get("vision_config", {})}
    return ClipShape(
        width=vision["hidden_size"],
        layers=vision["num_hidden_layers"],
        heads=vision["num_attention_heads"],
        patch=vision["patch_size"],
        image_size=vision["image_size"],
        mlp_width=vision["intermediate_size"],
        act="quick_gelu" if vision.get("hidden_act", "quick_gelu") == "quick_gelu" else "gelu",
    )
