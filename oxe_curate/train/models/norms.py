"""Normalization layers that do not keep float32 copies of their input while training.

Under autocast torch runs layer norms in float32, and transformers' RMS norms always cast to float32: each keeps a copy
of its input at twice the size. torch's fused kernels compute in float32 internally and round once.
"""

from __future__ import annotations

import types
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn


class LayerNorm(nn.LayerNorm):
    """Layer norm in the type of its input, also under autocast."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., width) -> the same."""
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
            return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


def fuse_rms_norms(module: nn.Module) -> int:
    """Use torch's kernel for the RMS norms of a transformers model in training; inference stays bit-identical.

    Supports norms that compute `weight * normalized` with `variance_epsilon`, as in Llama, Mistral and Qwen.

    Returns:
        number of replaced norms.
    """
    count = 0
    for layer in module.modules():
        if type(layer).__name__ in _PLAIN and hasattr(layer, "variance_epsilon"):
            # an instance attribute keeps class, state and names unchanged
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
