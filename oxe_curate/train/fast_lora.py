"""LoRA as two skinny products added inside the big one's output, with PEFT's own modules and names.

PEFT casts the whole input to the adapter's float32, keeps that copy for the backward pass, and adds the update in
passes of its own over the output. Here the update is accumulated by the matrix product itself (`addmm` with beta 1),
so that a layer touches each activation once, and keeps only what the frozen layer's input already is. The result
differs from PEFT's by rounding alone.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import nn


@torch.library.custom_op("oxe_curate::lora_linear", mutates_args=())
def _lora_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, a: torch.Tensor, b: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """y = x W' + b + scale (x A') B', and x A', for x (n, in), frozen W (out, in), A (r, in), B (out, r) of one dtype.

    An operation of its own, so that torch.compile keeps the sum in place: written out, it copies each output first.
    """
    y = torch.mm(x, weight.t()) if bias is None else torch.addmm(bias, x, weight.t())
    low = torch.mm(x, a.t())
    return y.addmm_(low, b.t(), alpha=scale), low


@_lora_linear.register_fake
def _(x: Any, weight: Any, bias: Any, a: Any, b: Any, scale: float) -> Any:
    return x.new_empty(len(x), len(weight)), x.new_empty(len(x), len(a))


@torch.library.custom_op("oxe_curate::lora_linear_backward", mutates_args=())
def _lora_linear_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    low: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients for x, A and B."""
    dlow = torch.mm(dy, b).mul_(scale)
    dx = torch.mm(dy, weight).addmm_(dlow, a)
    return dx, torch.mm(dlow.t(), x), torch.mm(dy.t(), low).mul_(scale)


@_lora_linear_backward.register_fake
def _(dy: Any, x: Any, weight: Any, low: Any, a: Any, b: Any, scale: float) -> Any:
    return x.new_empty(x.shape), a.new_empty(a.shape), b.new_empty(b.shape)


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, _, a, b, ctx.scale = inputs
    ctx.save_for_backward(x, weight, output[1], a, b)


def _differentiate(ctx: Any, dy: Any, _: Any) -> Any:
    x, weight, low, a, b = ctx.saved_tensors
    dx, da, db = _lora_linear_backward(dy.contiguous(), x, weight, low, a, b, ctx.scale)
    return dx, None, None, da, db, None


_lora_linear.register_autograd(_differentiate, setup_context=_keep)


class _QuantizedLoraLinear(torch.autograd.Function):
    """The same over a quantised W, which is made whole for the product and let go, in each of the two passes."""

    @staticmethod
    def forward(ctx: Any, x: Any, packed: Any, bias: Any, a: Any, b: Any, scale: float) -> Any:
        weight = _whole(packed, x.dtype)
        y = torch.mm(x, weight.t()) if bias is None else torch.addmm(bias, x, weight.t())
        low = torch.mm(x, a.t())
        y = _plus(y, low, b.t(), scale)
        ctx.save_for_backward(x, low, a, b)
        ctx.scale, ctx.packed = scale, packed
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (dy,) = grads
        x, low, a, b = ctx.saved_tensors
        dlow = torch.mm(dy, b) * ctx.scale
        dx = _plus(torch.mm(dy, _whole(ctx.packed, x.dtype)), dlow, a, 1.0)
        return dx, None, None, torch.mm(dlow.t(), x), torch.mm(dy.t(), low * ctx.scale), None


def _plus(total: Any, left: Any, right: Any, scale: float) -> Any:
    """total + scale * left @ right; `total` may be overwritten."""
    if torch.compiler.is_compiling():  # Dynamo of torch 2.11 loses all gradients of an output changed in place
        return torch.addmm(total, left, right, alpha=scale)
    return total.addmm_(left, right, alpha=scale)


def fuse(net: nn.Module) -> int:
    """Let the LoRA layers of a PEFT model compute as above, where that is the same function.

    Left to PEFT: dropout, several active adapters, variants such as DoRA, a trained bias or base, merged or disabled
    adapters (looked up at each call), int8 layers, which quantise their input too, and layers that are not linear.

    Returns:
        how many layers it took over.
    """
    from peft.tuners.lora import LoraLayer

    count = 0
    for module in net.modules():
        if isinstance(module, LoraLayer) and _plain(module):
            # an instance attribute, so that the class, its state and its names stay PEFT's
            module.forward = types.MethodType(_forward, module)
            count += 1
    return count


def _plain(module: Any) -> bool:
    if list(module.lora_A) != list(module.active_adapters) or len(module.active_adapters) != 1:
        return False
    (name,) = module.active_adapters
    base = module.get_base_layer()
    return (
        (type(base) is nn.Linear or type(base).__name__ == "Linear4bit")
        and not any(p.requires_grad for p in base.parameters())
        and name not in module.lora_variant
        and isinstance(module.lora_dropout[name], nn.Identity)
        and isinstance(module.lora_A[name], nn.Linear)
        and not module.lora_bias[name]
    )


def _forward(module: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    if module.disable_adapters or module.merged or args or kwargs:
        return type(module).forward(module, x, *args, **kwargs)
    (name,) = module.active_adapters
    base = module.get_base_layer()
    dtype = _dtype(base, x)
    a, b = module.lora_A[name].weight.to(dtype), module.lora_B[name].weight.to(dtype)
    bias = None if base.bias is None else base.bias.to(dtype)
    flat = x.reshape(-1, x.shape[-1]).to(dtype)
    with torch.autocast(x.device.type, enabled=False):
        if type(base) is nn.Linear:
            y, _ = _lora_linear(flat, base.weight.to(dtype), bias, a, b, float(module.scaling[name]))
        else:
            y = _QuantizedLoraLinear.apply(flat, base.weight, bias, a, b, module.scaling[name])
    return y.view(*x.shape[:-1], y.shape[-1])


def _dtype(base: Any, x: Any) -> Any:
    """What the layer computes in: autocast's type, or the frozen weight's."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return base.weight.dtype if base.weight.dtype.is_floating_point else x.dtype


def _whole(packed: Any, dtype: Any) -> Any:
    """The dequantised weight (out, in) of a bitsandbytes 4-bit parameter."""
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(packed.data, packed.quant_state).to(dtype)
