# ruff: noqa: N803 (Triton's constants are upper case)
"""A decoder block for one token in five Triton launches; such a step is bound by reading the weights.

Norms, rotary positions, the gate and residual sums are fused into the matrix products. Sums are float32 and rounded
once, whereas torch rounds after each operation, so results differ from the plain path by rounding only.
"""

from __future__ import annotations

from typing import Any

import torch
import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]


@triton.jit
def _product_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    weight_ptr,
    bias_ptr,
    gain_ptr,
    residual_ptr,
    out_ptr,
    rows,
    epsilon,
    WIDTH: tl.constexpr,
    NORM: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out = W norm(x) + bias + residual, or silu(W1 norm(x)) * (W2 norm(x)) with W1 above W2; W has WIDTH columns."""
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    inside = row < rows
    place = row.to(tl.int64)[:, None] * WIDTH
    total = tl.zeros((BLOCK_ROWS, BLOCK), tl.float32)
    total2 = tl.zeros((BLOCK_ROWS, BLOCK), tl.float32)
    squares = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, WIDTH, BLOCK):
        column = start + tl.arange(0, BLOCK)
        valid = column < WIDTH
        x = tl.load(x_ptr + column, mask=valid, other=0.0).to(tl.float32)
        if NORM:
            squares += x * x
            x *= tl.load(gain_ptr + column, mask=valid, other=0.0).to(tl.float32)
        both = inside[:, None] & valid[None, :]
        weight = tl.load(weight_ptr + place + column[None, :], mask=both, other=0.0)
        total += weight.to(tl.float32) * x[None, :]
        if GATED:
            below = weight_ptr + rows.to(tl.int64) * WIDTH
            weight2 = tl.load(below + place + column[None, :], mask=both, other=0.0)
            total2 += weight2.to(tl.float32) * x[None, :]
    y = tl.sum(total, 1)
    scale = 1.0
    if NORM:
        # the norm's factor is a scalar, so it can be applied last
        scale = 1.0 / tl.sqrt(tl.sum(squares, 0) / WIDTH + epsilon)
        y *= scale
    if GATED:
        y = y / (1.0 + tl.exp(-y)) * (tl.sum(total2, 1) * scale)
    if BIAS:
        y += tl.load(bias_ptr + row, mask=inside, other=0.0).to(tl.float32)
    if RESIDUAL:
        y += tl.load(residual_ptr + row, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + row, y.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _attention_kernel(  # type: ignore[no-untyped-def]
    qkv_ptr,
    cos_ptr,
    sin_ptr,
    position_ptr,
    cache_ptr,
    out_ptr,
    capacity,
    scale,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One head: rotate query and key, store key and value, attend to all positions up to this one."""
    head = tl.program_id(0)
    group = head // (HEADS // GROUPS)
    position = tl.load(position_ptr)
    width = tl.arange(0, WIDTH)
    rotated = (width + WIDTH // 2) % WIDTH
    cos = tl.load(cos_ptr + position * WIDTH + width).to(tl.float32)
    sin = tl.load(sin_ptr + position * WIDTH + width).to(tl.float32)
    query_ptr = qkv_ptr + head * WIDTH
    key_ptr = qkv_ptr + (HEADS + group) * WIDTH
    query = tl.load(query_ptr + width).to(tl.float32) * cos + tl.load(query_ptr + rotated).to(tl.float32) * sin
    key = tl.load(key_ptr + width).to(tl.float32) * cos + tl.load(key_ptr + rotated).to(tl.float32) * sin
    value = tl.load(qkv_ptr + (HEADS + GROUPS + group) * WIDTH + width)
    keys = cache_ptr + group.to(tl.int64) * capacity * WIDTH
    values = keys + GROUPS * capacity * WIDTH
    if head % (HEADS // GROUPS) == 0:
        tl.store(keys + position * WIDTH + width, key.to(cache_ptr.dtype.element_ty))
        tl.store(values + position * WIDTH + width, value)
    # rounded to the type of the cache, so that this step and later ones use the same key
    key = key.to(cache_ptr.dtype.element_ty).to(tl.float32)
    query = query.to(cache_ptr.dtype.element_ty).to(tl.float32) * scale
    # this token's key comes from registers: other programs may not have written it yet
    largest = tl.sum(query * key, 0)
    total = tl.full((), 1.0, tl.float32)
    out = value.to(tl.float32)
    for start in range(0, position, BLOCK):
        place = start + tl.arange(0, BLOCK)
        before = place < position
        at = place[:, None] * WIDTH + width[None, :]
        tile = tl.load(keys + at, mask=before[:, None], other=0.0).to(tl.float32)
        score = tl.where(before, tl.sum(tile * query[None, :], 1), float("-inf"))
        peak = tl.maximum(largest, tl.max(score, 0))
        weight = tl.exp(score - peak)
        shrink = tl.exp(largest - peak)
        tile = tl.load(values + at, mask=before[:, None], other=0.0).to(tl.float32)
        out = out * shrink + tl.sum(tile * weight[:, None], 0)
        total = total * shrink + tl.sum(weight, 0)
        largest = peak
    tl.store(out_ptr + head * WIDTH + width, (out / total).to(out_ptr.dtype.element_ty))


def product(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    norm: tuple[torch.Tensor, float] | None = None,
    residual: torch.Tensor | None = None,
    gated: bool = False,
) -> torch.Tensor:
    """W norm(x) + bias + residual for one token, or silu(W1 norm(x)) * (W2 norm(x)) with W = [W1; W2].

    Args:
        x: (1, in).
        weight: (out, in), contiguous.
        bias: (out,).
        norm: gain (in,) and epsilon of a root mean square norm.
        residual: (1, out).
        gated: the second form; without bias and residual.

    Returns:
        (1, out), or (1, out / 2) where gated.
    """
    rows, width = weight.shape
    rows //= 2 if gated else 1
    out = torch.empty(1, rows, dtype=x.dtype, device=x.device)
    block_rows, block = (2 if gated else 4), min(1024, triton.next_power_of_2(width))
    gain, epsilon = norm or (x, 0.0)
    _product_kernel[(triton.cdiv(rows, block_rows),)](
        x,
        weight,
        x if bias is None else bias,
        gain,
        x if residual is None else residual,
        out,
        rows,
        epsilon,
        WIDTH=width,
        NORM=norm is not None,
        BIAS=bias is not None,
        RESIDUAL=residual is not None,
        GATED=gated,
        BLOCK_ROWS=block_rows,
        BLOCK=block,
        num_warps=4,
    )
    return out


def attention(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    position: torch.Tensor,
    stored: torch.Tensor,
    heads: int,
) -> torch.Tensor:
    """Attention of one token over the cache; stores its key and value there.

    Args:
        qkv: (1, (heads + 2 groups) * width): query, key and value before rotary positions.
        cos: (capacity, 1, width), for every position.
        sin: the same; the first half is negated.
        position: int64 (1,), of the token, which attends to this and all earlier positions.
        stored: (2, groups, capacity, width), contiguous: keys and values.
        heads: of the queries.

    Returns:
        (1, heads * width).
    """
    _, groups, capacity, width = stored.shape
    out = torch.empty(1, heads * width, dtype=qkv.dtype, device=qkv.device)
    _attention_kernel[(heads,)](
        qkv,
        cos,
        sin,
        position,
        stored,
        out,
        capacity,
        width**-0.5,
        HEADS=heads,
        GROUPS=groups,
        WIDTH=width,
        BLOCK=64,
        num_warps=8,
    )
    return out


def decoder_block(layer: Any, x: torch.Tensor, position: torch.Tensor, cos: Any, sin: Any, stored: torch.Tensor) -> Any:
    """One decoder block for one token, (1, D) -> (1, D); see `kv_cache.FusedDecoder` for `layer`."""
    qkv = product(x, layer.qkv.weight, layer.qkv.bias, norm=layer.norm1.parts)
    seen = attention(qkv, cos, sin, position, stored, layer.heads)
    x = product(seen, layer.out.weight, layer.out.bias, residual=x)
    inner = product(x, layer.gate_up.weight, norm=layer.norm2.parts, gated=True)
    return product(inner, layer.down.weight, layer.down.bias, residual=x)


def supports(layer: Any) -> bool:
    """Whether `decoder_block` supports a layer: plain weights, no norms per head, head width a power of two."""
    parts = (layer.qkv, layer.out, layer.gate_up, layer.down)
    return (
        all(part.plain and part.weight.is_contiguous() for part in parts)
        and layer.gate_up.bias is None
        and layer.head_norms is None
        and layer.width & (layer.width - 1) == 0
    )
