"""Perceiver resampler and gated cross-attention, with OpenFlamingo's parameter names.

Alayrac et al. 2022, "Flamingo", sections 2.1 and 2.2. The resampler maps any number of image tokens to 64 latents; in
gated blocks before language layers text attends to them. Gates start closed (tanh of zero).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

HEADS, HEAD_WIDTH = 8, 64
INNER = HEADS * HEAD_WIDTH


def feed_forward(width: int) -> nn.Sequential:
    """LayerNorm, width -> 4 width, exact GELU, -> width; no biases."""
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, 4 * width, bias=False), nn.GELU(), nn.Linear(4 * width, width, bias=False)
    )


def _attend(q: Tensor, kv: Tensor) -> Tensor:
    """q (n, a, 512), kv (n, b, 1024) -> (n, a, 512), eight heads, no mask."""
    q = q.unflatten(-1, (HEADS, HEAD_WIDTH)).transpose(1, 2)
    k, v = kv.unflatten(-1, (2, HEADS, HEAD_WIDTH)).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class PerceiverAttention(nn.Module):
    """Latents attend to image tokens and to each other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_media, self.norm_latents = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q = nn.Linear(width, INNER, bias=False)
        self.to_kv = nn.Linear(width, 2 * INNER, bias=False)
        self.to_out = nn.Linear(INNER, width, bias=False)

    def forward(self, media: Tensor, latents: Tensor) -> Tensor:
        """media (n, v, width), latents (n, m, width) -> (n, m, width)."""
        latents = self.norm_latents(latents)
        seen = torch.cat([self.norm_media(media), latents], 1)
        return self.to_out(_attend(self.to_q(latents), self.to_kv(seen)))


class ResamplerLayer(nn.ModuleList):
    """Attention and a feed-forward layer: a list for parameter names, a block for compilation and FSDP."""

    def __init__(self, width: int) -> None:
        super().__init__([PerceiverAttention(width), feed_forward(width)])

    def forward(self, media: Tensor, latents: Tensor) -> Tensor:
        """media (n, v, width), latents (n, m, width) -> (n, m, width)."""
        attention, forward = self
        latents = latents + attention(media, latents)
        return latents + forward(latents)


class PerceiverResampler(nn.Module):
    """Any number of image tokens -> a fixed number of latents with the same width."""

    def __init__(self, width: int, depth: int = 6, latents: int = 64) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(latents, width))
        self.layers = nn.ModuleList(ResamplerLayer(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, media: Tensor) -> Tensor:
        """media (n, v, width) -> (n, latents, width)."""
        latents = self.latents.to(media.dtype).expand(media.shape[0], -1, -1)
        for layer in self.layers:
            latents = layer(media, latents)
        return self.norm(latents)


class CrossAttention(nn.Module):
    """Text attends to the latents of its image."""

    def __init__(self, width: int, media_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, INNER, bias=False)
        self.to_kv = nn.Linear(media_width, 2 * INNER, bias=False)
        self.to_out = nn.Linear(INNER, width, bias=False)

    def forward(self, x: Tensor, media: Tensor, sees: Tensor) -> Tensor:
        """x (n, L, width), media (n, m, media_width), sees bool (n, L) -> (n, L, width), zero if not `sees`."""
        out = _attend(self.to_q(self.norm(x)), self.to_kv(media))
        return self.to_out(out * sees.unsqueeze(-1).to(out.dtype))


class GatedCrossAttention(nn.Module):
    """Cross-attention and a feed-forward layer, each with a learned tanh gate that starts closed."""

    def __init__(self, width: int, media_width: int) -> None:
        super().__init__()
        self.attn = CrossAttention(width, media_width)
        self.attn_gate = nn.Parameter(torch.zeros(1))
        self.ff = feed_forward(width)
        self.ff_gate = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, media: Tensor, sees: Tensor) -> Tensor:
        """x (n, L, width), media (n, m, media_width), sees bool (n, L): text at or after its image -> like x."""
        x = x + (self.attn(x, media, sees) * self.attn_gate.tanh()).to(x.dtype)
        return x + (self.ff(x) * self.ff_gate.tanh()).to(x.dtype)
