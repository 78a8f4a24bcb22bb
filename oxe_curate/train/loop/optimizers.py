"""AdamW for a family's parameter groups: torch's in float32, or bitsandbytes' with 8-bit moments."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from oxe_curate.errors import ConfigError
from oxe_curate.train.models.weights import bitsandbytes
from oxe_curate.train.settings import OptimizerKind

MOMENT_BYTES: dict[OptimizerKind, int] = {"adamw": 8, "adamw8bit": 2}
"""Bytes of both moments of a trained weight, without adamw8bit's scales (8 bytes per 256 weights)."""


def adamw(kind: OptimizerKind, groups: list[dict[str, Any]], learning_rate: float, device: torch.device) -> Any:
    """Make an optimizer for float32 weights.

    Args:
        kind: adamw; or adamw8bit, block-wise dynamic quantization of both moments (arXiv 2110.02861), which keeps
            those of small weights (fewer than 4096 numbers) in float32.
        groups: each with "params" and "weight_decay".
        learning_rate: of all groups.
        device: of the weights.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    if kind == "adamw8bit":
        return bitsandbytes().optim.AdamW8bit(groups, lr=learning_rate)
    return torch.optim.AdamW(groups, lr=learning_rate, fused=device.type == "cuda")


def check_optimizer(kind: OptimizerKind, device: torch.device) -> None:
    """Raise ConfigError, before the model is loaded, if an optimizer does not work on this device."""
    if kind == "adamw":
        return
    version = bitsandbytes().__version__
    weight = nn.Parameter(torch.zeros(4096, device=device))
    weight.grad = torch.ones_like(weight)
    try:
        adamw(kind, [{"params": [weight]}], 1e-3, device).step()
    except Exception as error:  # bitsandbytes raises many kinds where its native library does not fit
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"--optimizer {kind}: bitsandbytes {version} does not work on {device}: {first}. "
            "Update it (pip install -U bitsandbytes) or use --optimizer adamw."
        ) from None
