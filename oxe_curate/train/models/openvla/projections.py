"""Fuse linear layers with the same input into one product: at batch 1 kernel launches dominate the cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn


class Projection:
    """Several linear layers with the same input; their outputs are concatenated.

    Plain layers become one product. Their parameters keep names, shapes and values, but become slices of one block of
    memory, so nothing is stored twice. Quantized layers are called one by one. Unmerged LoRA updates are two more
    products for all layers together, in the type of the input; they are copies, so later training has no effect.

    Args:
        layers: nn.Linear, bitsandbytes' linear layers, or PEFT's LoRA layers around them.
        dtype: of the input; plain weights of another type are copied.

    Attributes:
        plain: whether `weight` (sum of out, in) and `bias` ((sum of out,) or None) describe the whole projection.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, layers: Sequence[nn.Module], dtype: torch.dtype) -> None:
        parts = [_split(layer) for layer in layers]
        self._bases = [base for base, _ in parts]
        self._fused = all(type(base) is nn.Linear for base in self._bases)
        if self._fused:
            self.weight = _side_by_side([base.weight for base in self._bases], dtype)
            self.bias = _bias(self._bases, dtype)
        self._low: tuple[torch.Tensor, torch.Tensor] | None = None
        if any(low is not None for _, low in parts):
            widths = [base.out_features for base in self._bases]
            self._low = _low_rank([low for _, low in parts], widths, dtype)
        self.plain = self._fused and self._low is None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(n, in) -> (n, sum of out), new memory."""
        if self._fused:
            y = F.linear(x, self.weight, self.bias)
        else:
            outputs = [_int8(base, x) if type(base).__name__ == "Linear8bitLt" else base(x) for base in self._bases]
            y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
        if self._low is not None:
            down, up = self._low
            y = torch.addmm(y, x @ down.t(), up.t())
        return y


_LowRank = tuple[torch.Tensor, torch.Tensor]


def _int8(base: Any, x: torch.Tensor) -> torch.Tensor:
    """A bitsandbytes int8 layer without quantizing its input.

    bitsandbytes searches the input for outlier columns in each call, which a CUDA graph cannot record; for few tokens
    the cost is reading the weights.
    """
    # the first forward pass of the layer moves the scales from the weight to the state
    scale = base.state.SCB if base.weight.SCB is None else base.weight.SCB
    y = F.linear(x, base.weight.data.to(x.dtype)) * (scale / 127).to(x.dtype)
    return y if base.bias is None else y + base.bias.to(x.dtype)


def _split(layer: Any) -> tuple[Any, _LowRank | None]:
    """The frozen layer, and (A, scale * B) of an unmerged adapter.

    For other adapters (DoRA, several active ones, a bias) the layer itself is returned and called.
    """
    if not hasattr(layer, "lora_A"):
        return layer, None
    base = layer.get_base_layer()
    if layer.merged or layer.disable_adapters:
        return (layer, None) if layer.merged and layer.disable_adapters else (base, None)
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if not names:
        return base, None
    if len(names) > 1 or names[0] in getattr(layer, "lora_variant", {}) or layer.lora_bias.get(names[0], False):
        return layer, None
    a, b = layer.lora_A[names[0]].weight, layer.lora_B[names[0]].weight
    return base, (a.detach(), b.detach() * layer.scaling[names[0]])


def _side_by_side(weights: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """Stack (out_i, in) weights and make each parameter a slice of the stack."""
    first = weights[0]
    if any(weight.dtype != dtype for weight in weights):
        return torch.cat([weight.detach().to(dtype) for weight in weights])
    if len(weights) == 1:
        return first.detach()
    rows = sum(len(weight) for weight in weights)
    if _adjacent(weights):  # stacked by an earlier call
        return first.detach().as_strided((rows, first.shape[1]), (first.shape[1], 1))
    stack = torch.cat([weight.detach() for weight in weights])
    start = 0
    for weight in weights:
        end = start + len(weight)
        weight.data = stack[start:end]
        start = end
    if stack.is_cuda:
        torch.cuda.empty_cache()  # the freed pieces are too small for the next stack
    return stack


def _adjacent(weights: Sequence[torch.Tensor]) -> bool:
    """Whether the weights are consecutive slices of the same memory."""
    address = weights[0].data_ptr()
    for weight in weights:
        same = weight.untyped_storage().data_ptr() == weights[0].untyped_storage().data_ptr()
        if not same or not weight.is_contiguous() or weight.data_ptr() != address:
            return False
        address += weight.numel() * weight.element_size()
    return True


def _bias(bases: Sequence[Any], dtype: torch.dtype) -> torch.Tensor | None:
    if all(base.bias is None for base in bases):
        return None
    zeros = [base.weight.new_zeros(base.out_features) for base in bases]
    return torch.cat([z if b.bias is None else b.bias.detach() for z, b in zip(zeros, bases, strict=True)]).to(dtype)


def _low_rank(parts: Sequence[_LowRank | None], widths: Sequence[int], dtype: torch.dtype) -> _LowRank:
    """Combine adapters: stacked A (sum of ranks, in) and block-diagonal B (sum of out, sum of ranks)."""
    downs = [low[0] for low in parts if low is not None]
    up = downs[0].new_zeros(sum(widths), sum(len(down) for down in downs))
    row = column = 0
    for low, width in zip(parts, widths, strict=True):
        if low is not None:
            rank = len(low[0])
            up[row : row + width, column : column + rank] = low[1]
            column += rank
        row += width
    return torch.cat(downs).to(dtype), up.to(dtype)


def merge_lora(net: nn.Module) -> int:
    """Merge the LoRA updates of plain layers into their weights, in place.

    Updates of quantized layers stay separate: quantizing the sum again would lose them.

    Returns:
        number of merged layers.
    """
    count = 0
    for module in net.modules():
        if not hasattr(module, "lora_A") or not hasattr(module, "merge") or module.merged or module.disable_adapters:
            continue
        if module.get_base_layer().weight.is_floating_point():
            module.merge()
            count += 1
    return count
