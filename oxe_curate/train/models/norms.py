"""Normalisation layers that neither widen nor copy their input while training.

Under autocast torch runs layer norms in float32, and Hugging Face's RMS norms always spell float32 out: each then keeps
a copy of its input in twice the size. torch's own kernels compute in float32 inside, and round once.
"""

from __future__ import annotations

import types
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn


class LayerNorm(nn.LayerNorm):
    """Layer norm in its input's own type, under autocast too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., width) -> the same."""
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
            return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


def fuse_rms_norms(module: nn.Module) -> int:
    """Let the RMS norms of a Hugging Face model use torch's kernel in training; inference stays as it is, bit for bit.

    Only plain ones: a weight, `variance_epsilon`, and `weight * normalised` as in Llama, Mistral and Qwen.

    Returns:
        how many it took over.
    """
    count = 0
    for layer in module.modules():
        if type(layer).__name__ in _PLAIN and hasattr(layer, "variance_epsilon"):
            # an instance attribute, so that class, state and names stay what they are
            layer.forward = types.MethodType(_forward, layer)
            count += 1
    return count


_PLAIN = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")


def _forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    if not layer.training or layer.weight.dtype != x.dtype:
        plain: torch.Tensor = type(layer).forward(layer, x)
        return plain
    with torch.autocast(x.device.type, enabled=False):
        return F.rms_norm(x, layer.weight.shape, layer.weight, layer.variance_epsilon)
