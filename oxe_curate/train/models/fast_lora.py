"""Fused LoRA for PEFT's layers: the update is accumulated into the output of the frozen layer.

PEFT casts the input to the adapter's float32, keeps the copy for the backward pass, and adds the update in separate
passes over the output. Here `addmm` accumulates the update, so a layer reads each activation once and keeps only its
input. Results differ from PEFT's by rounding only.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import nn


def _apply(x: Any, weight: Any, bias: Any, a: Any, b: Any, scale: float) -> tuple[Any, Any]:
    """y = x W' + b + scale (x A') B', and x A': x (n, in), frozen W (out, in), A (r, in), B (out, r), of one dtype."""
    y = torch.mm(x, weight.t()) if bias is None else torch.addmm(bias, x, weight.t())
    low = torch.mm(x, a.t())
    return y.addmm_(low, b.t(), alpha=scale), low


def _gradients(dy: Any, x: Any, weight: Any, low: Any, a: Any, b: Any, scale: float) -> tuple[Any, Any, Any]:
    """Gradients of x, A and B; the weight and bias are frozen."""
    dlow = torch.mm(dy, b).mul_(scale)
    dx = torch.mm(dy, weight).addmm_(dlow, a)
    return dx, torch.mm(dlow.t(), x), torch.mm(dy.t(), low).mul_(scale)


# Custom operators, so that torch.compile keeps the sums in place: otherwise it copies each output first (and Dynamo of
# torch 2.11 loses all gradients of an autograd.Function that changes its output in place).
_library = torch.library.Library("oxe_curate", "DEF")
_library.define(
    "lora_linear(Tensor x, Tensor weight, Tensor? bias, Tensor a, Tensor b, float scale) -> (Tensor, Tensor)"
)
_library.define(
    "lora_gradients(Tensor dy, Tensor x, Tensor weight, Tensor low, Tensor a, Tensor b, float scale)"
    " -> (Tensor, Tensor, Tensor)"
)
_library.impl("lora_linear", _apply, "CompositeExplicitAutograd")
_library.impl("lora_gradients", _gradients, "CompositeExplicitAutograd")


@torch.library.register_fake("oxe_curate::lora_linear", lib=_library)
def _(x: Any, weight: Any, bias: Any, a: Any, b: Any, scale: float) -> Any:
    return x.new_empty(len(x), len(weight)), x.new_empty(len(x), len(a))


@torch.library.register_fake("oxe_curate::lora_gradients", lib=_library)
def _(dy: Any, x: Any, weight: Any, low: Any, a: Any, b: Any, scale: float) -> Any:
    return x.new_empty(x.shape), a.new_empty(a.shape), b.new_empty(b.shape)


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, _, a, b, ctx.scale = inputs
    ctx.save_for_backward(x, weight, output[1], a, b)


def _differentiate(ctx: Any, dy: Any, _: Any) -> Any:
    dx, da, db = torch.ops.oxe_curate.lora_gradients(dy, *ctx.saved_tensors, ctx.scale)
    return dx, None, None, da, db, None


torch.library.register_autograd("oxe_curate::lora_linear", _differentiate, setup_context=_keep, lib=_library)


class _LoraLinear(torch.autograd.Function):
    """The same for eager mode, with less call overhead."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, a: Any, b: Any, scale: float) -> Any:
        y, low = _apply(x, weight, bias, a, b, scale)
        ctx.save_for_backward(x, weight, low, a, b)
        ctx.scale = scale
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, weight, low, a, b = ctx.saved_tensors
        dx, da, db = _gradients(grads[0], x, weight, low, a, b, ctx.scale)
        return dx, None, None, da, db, None


class _QuantizedLoraLinear(torch.autograd.Function):
    """The same with a quantized W, which is dequantized temporarily in each pass."""

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
    """Use the fused computation in the LoRA layers of a PEFT model that it supports.

    PEFT still handles dropout, several active adapters, variants such as DoRA, a trained bias or base, merged or
    disabled adapters (checked at each call), int8 layers, which quantize their input too, and layers that are not
    linear.

    Returns:
        number of fused layers.
    """
    from peft.tuners.lora import LoraLayer

    count = 0
    for module in net.modules():
        if isinstance(module, LoraLayer) and _plain(module):
            (name,) = module.active_adapters
            parts = (module.get_base_layer(), module.lora_A[name], module.lora_B[name], float(module.scaling[name]))
            # instance attributes keep class, state and names unchanged; looked up once because PEFT's properties cost
            # more than launching the products
            module.__dict__["fused_parts"] = parts
            module.__dict__["forward"] = types.MethodType(_forward, module)
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
    if module._disable_adapters or module.merged_adapters or args or kwargs:
        return type(module).forward(module, x, *args, **kwargs)
    base, down, up, scale = module.fused_parts
    weight, bias = base.weight, base.bias
    dtype = _dtype(weight, x)  # autocast's type if enabled, so that no product below is cast again
    a, b = down.weight.to(dtype), up.weight.to(dtype)
    if bias is not None and bias.dtype != dtype:
        bias = bias.to(dtype)
    flat = x.reshape(-1, x.shape[-1]).to(dtype)
    if type(base) is not nn.Linear and not torch.is_grad_enabled():
        y = torch.addmm(_packed_product(flat, weight, bias), torch.mm(flat, a.t()), b.t(), alpha=scale)
    elif type(base) is not nn.Linear:
        y = _QuantizedLoraLinear.apply(flat, weight, bias, a, b, scale)
    elif torch.compiler.is_compiling():
        y, _ = torch.ops.oxe_curate.lora_linear(flat, weight.to(dtype), bias, a, b, scale)
    else:
        y = _LoraLinear.apply(flat, weight.to(dtype), bias, a, b, scale)
    return y.view(*x.shape[:-1], y.shape[-1])


def _dtype(weight: Any, x: Any) -> Any:
    """Compute type of the layer: autocast's, or that of the frozen weight."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return weight.dtype if weight.dtype.is_floating_point else x.dtype


def _whole(packed: Any, dtype: Any) -> Any:
    """The dequantized weight (out, in) of a bitsandbytes 4-bit parameter."""
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(packed.data, packed.quant_state).to(dtype)


def _packed_product(x: Any, packed: Any, bias: Any) -> Any:
    """x W' + b with bitsandbytes' kernels, which do not store the dequantized weight for single rows."""
    from bitsandbytes import matmul_4bit

    return matmul_4bit(x, packed.t(), packed.quant_state, bias=bias)


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
