"""OpenVLA's vision transformers, DINOv2 and SigLIP, with the parameter names of the published checkpoints.

OpenVLA uses the patches after the second-to-last block. The last block, the final norm and SigLIP's attention pool are
in the checkpoints but unused, so they are not parameters here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.utils.checkpoint import checkpoint

from oxe_curate.errors import ConfigError, did_you_mean
from oxe_curate.train.models.norms import LayerNorm


@dataclass(frozen=True)
class VitConfig:
    """Shape of a vision transformer, with timm's names.

    Attributes:
        embed_dim: width. depth: blocks in the checkpoint, of which the last is not run. num_heads: of attention.
        patch_size: side of a patch in pixels.
        mlp_ratio: hidden width of the MLP over `embed_dim`, rounded down.
        init_values: if not None, each branch is scaled (LayerScale).
        class_token, reg_tokens: tokens before the patches, without positions.
        no_embed_class: must be True if there is a class token.
        global_pool: "map" if the checkpoint has an (unused) attention pool.
    """

    embed_dim: int
    depth: int
    num_heads: int
    patch_size: int = 14
    mlp_ratio: float = 4.0
    init_values: float | None = None
    class_token: bool = True
    reg_tokens: int = 0
    no_embed_class: bool = False
    global_pool: str = "token"

    def __post_init__(self) -> None:
        if self.embed_dim % self.num_heads or self.depth < 2:
            raise ConfigError(f"vision transformer: width {self.embed_dim} is not divisible by {self.num_heads} heads")
        if self.class_token and not self.no_embed_class:
            raise ConfigError("vision transformer: a position for the class token is not supported")

    @classmethod
    def of(cls, settings: dict[str, Any]) -> VitConfig:
        """Read timm's keyword arguments. Raises ConfigError for an unknown one."""
        known = cls.__dataclass_fields__
        for key in settings:
            if key not in known:
                raise ConfigError(f"vision transformer: unknown key {key!r}. {did_you_mean(key, known)}")
        return cls(**settings)

    @property
    def prefix_tokens(self) -> int:
        """Number of tokens before the patches."""
        return self.class_token + self.reg_tokens


_DINOV2 = VitConfig(1024, 24, 16, init_values=1e-5, reg_tokens=4, no_embed_class=True)
_SIGLIP = VitConfig(1152, 27, 16, mlp_ratio=3.7362, class_token=False, global_pool="map")

PUBLISHED = {
    "vit_large_patch14_reg4_dinov2.lvd142m": _DINOV2,
    "vit_large_patch14_reg4_dinov2": _DINOV2,
    "vit_so400m_patch14_siglip_224": _SIGLIP,
    "vit_so400m_patch14_siglip_384": _SIGLIP,
}
"""timm's identifiers in published config.json files -> shape; the image size is a separate key."""


class LayerScale(nn.Module):
    """One factor per channel; `scale_factor` in the published weights, `gamma` in timm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., width) -> same shape."""
        return x * self.scale_factor


class Attention(nn.Module):
    """Self-attention with one fused projection for query, key and value."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, N, width) -> same shape."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(query, key, value)
        return self.proj(out.transpose(1, 2).reshape(batch, tokens, width))


class Mlp(nn.Module):
    """Two layers with the exact GELU; the tanh approximation is off by up to 0.0024."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., width) -> same shape."""
        return self.fc2(F.gelu(self.fc1(x)))


class ViTBlock(nn.Module):
    """Pre-norm block."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        width, scaled = config.embed_dim, config.init_values is not None
        self.norm1 = LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, config.num_heads)
        self.ls1 = LayerScale(width) if scaled else nn.Identity()
        self.norm2 = LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, int(width * config.mlp_ratio))
        self.ls2 = LayerScale(width) if scaled else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, N, width) -> same shape."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """Pixels to patches in row-major order."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, patches, width)."""
        return self.proj(x).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """A vision transformer up to its second-to-last block.

    Attributes:
        checkpointing: recompute the activations of each block in the backward pass.
    """

    def __init__(self, config: VitConfig, image_size: int) -> None:
        super().__init__()
        if image_size % config.patch_size:
            raise ConfigError(f"image size {image_size} is not divisible by patch size {config.patch_size}")
        self.config, self.image_size, self.checkpointing = config, image_size, False
        width = config.embed_dim
        self.num_patches = (image_size // config.patch_size) ** 2
        self.patch_embed = PatchEmbed(width, config.patch_size)
        if config.class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        if config.reg_tokens:
            self.reg_token = nn.Parameter(torch.zeros(1, config.reg_tokens, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.num_patches, width))
        self.blocks = nn.ModuleList(ViTBlock(config) for _ in range(config.depth - 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Patch features without a final norm.

        Args:
            pixels: (B, 3, image_size, image_size), normalized.

        Returns:
            (B, patches, embed_dim).
        """
        x = self.patch_embed(pixels) + self.pos_embed
        prefix = [self.cls_token] if self.config.class_token else []
        prefix += [self.reg_token] if self.config.reg_tokens else []
        x = torch.cat([*(token.to(x.dtype).expand(len(x), -1, -1) for token in prefix), x], 1) if prefix else x
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointing and self.training else block(x)
        return x[:, self.config.prefix_tokens :]

    def unused(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of unused tensors of the checkpoint, relative to this module."""
        width, hidden = self.config.embed_dim, int(self.config.embed_dim * self.config.mlp_ratio)
        last = {name: tuple(p.shape) for name, p in self.blocks[0].named_parameters()}
        shapes: dict[str, tuple[int, ...]] = {f"blocks.{self.config.depth - 1}.{n}": s for n, s in last.items()}
        shapes |= {"norm.weight": (width,), "norm.bias": (width,)}
        if self.config.global_pool == "map":
            linears = {"q": (width, width), "kv": (2 * width, width), "proj": (width, width)}
            linears |= {"mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)}
            for name, shape in linears.items():
                shapes |= {f"attn_pool.{name}.weight": shape, f"attn_pool.{name}.bias": shape[:1]}
            shapes["attn_pool.latent"] = (1, 1, width)
            shapes |= {"attn_pool.norm.weight": (width,), "attn_pool.norm.bias": (width,)}
        return shapes
