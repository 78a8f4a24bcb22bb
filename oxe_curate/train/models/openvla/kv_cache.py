"""Language models with a static key-value cache at batch 1, which CUDA graphs can record.

`FusedDecoder` runs Llama, Mistral, Qwen 2 and Qwen 3 with few kernel launches for each token; `PlainDecoder` runs any
other transformers model through its own code.
"""

from __future__ import annotations

import abc
import importlib.util
import inspect
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from oxe_curate.train.models.openvla.parallel import additive
from oxe_curate.train.models.openvla.projections import Projection

_log = logging.getLogger(__name__)


class Decoder(abc.ABC):
    """A language model without its output head, for one sequence. Hidden states are taken after the final norm.

    Attributes:
        capacity: number of tokens that the cache holds.
    """

    capacity: int

    @abc.abstractmethod
    def prefill(self, x: torch.Tensor) -> torch.Tensor:
        """Start a sequence: (T, D) embeddings -> (T, D) states with causal attention; fills the cache."""

    @abc.abstractmethod
    def decode_token(self, x: torch.Tensor, position: torch.Tensor, visible: int) -> torch.Tensor:
        """Append a token, which attends to all positions up to its own.

        Args:
            x: (1, D), its embedding.
            position: int64 (1,); the cache entry at this position is overwritten.
            visible: upper bound of the positions that are attended to.

        Returns:
            (1, D).
        """

    @abc.abstractmethod
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(T, D) embeddings -> (T, D) states without a cache; `mask` (T, T) is added to the attention scores."""


def build_decoder(language_model: Any, capacity: int, kernels: bool = True) -> Decoder:
    """The fastest decoder for a transformers causal language model; arguments as for the two classes."""
    if fusable(language_model.config):
        return FusedDecoder(language_model, capacity, kernels)
    return PlainDecoder(language_model, capacity)


def cache_keyword(decoder: nn.Module) -> str:
    """Name of a transformers decoder's cache argument: `cache` since transformers 5.24."""
    return "cache" if "cache" in inspect.signature(decoder.forward).parameters else "past_key_values"


def fusable(config: Any) -> bool:
    """Whether `FusedDecoder` supports this model: no sliding windows, rotary angles that depend on position only."""
    rope = getattr(config, "rope_parameters", None) or {}
    return (
        config.model_type in ("llama", "mistral", "qwen2", "qwen3")
        and rope.get("rope_type", "default") in ("default", "linear", "llama3")
        and rope.get("partial_rotary_factor", 1.0) == 1.0
        and config.hidden_act in ("silu", "swish")
        and _no_window(config)
    )


def _no_window(config: Any) -> bool:
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return all(kind == "full_attention" for kind in kinds)
    return getattr(config, "sliding_window", None) is None


def _sdpa() -> AbstractContextManager[None]:
    # without cuDNN, which plans attention for each new shape at a higher cost than the attention itself
    kernels: AbstractContextManager[None] = sdpa_kernel(
        [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    )
    return kernels


class FusedDecoder(Decoder):
    """Llama and its relatives: about 16 launches per layer, or 5 with Triton kernels (transformers: 45).

    Args:
        language_model: `fusable`; plain, quantized or with LoRA. Its weights are shared, see `Projection`.
        capacity: number of tokens that the cache holds.
        kernels: use token_kernels.py for single tokens if possible: on CUDA, with Triton, for plain weights.
    """

    def __init__(self, language_model: Any, capacity: int, kernels: bool = True) -> None:
        config, model = language_model.config, language_model.base_model
        embedding = language_model.get_input_embeddings().weight
        self.capacity = capacity
        self._norm = _Norm(model.norm, embedding.dtype)
        self._layers = [_Layer(block, config, embedding.dtype) for block in model.layers]
        cos, sin = model.rotary_emb(embedding, torch.arange(capacity, device=embedding.device)[None])
        half = cos.shape[-1] // 2
        self._cos = cos[0, :, None].contiguous()  # (capacity, 1, width of a head)
        # rotate_half(x) * sin = roll(x) * signed sin
        self._sin = torch.cat([-sin[0, :, :half], sin[0, :, half:]], -1)[:, None]
        self._cache: torch.Tensor | None = None
        self._kernels: Any = _token_kernels(self._layers) if kernels and embedding.is_cuda else None

    def prefill(self, x: torch.Tensor) -> torch.Tensor:
        """See `Decoder`."""
        return self._run(x, torch.arange(len(x), device=x.device), None, cache=True)

    def decode_token(self, x: torch.Tensor, position: torch.Tensor, visible: int) -> torch.Tensor:
        """See `Decoder`."""
        if self._kernels is not None:
            try:
                return self._step_with_kernels(x, position)
            except (
                Exception
            ) as error:  # Triton compiles at the first call, which needs a C compiler and a supported device
                _log.warning("Triton kernels are disabled: %s", (str(error).splitlines() or [repr(error)])[0])
                self._kernels = None
        return self._run(x, position, _causal_row(position, visible, x.dtype), cache=True)

    def _step_with_kernels(self, x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        for layer, stored in zip(self._layers, self._stored(x), strict=True):
            x = self._kernels.decoder_block(layer, x, position, self._cos, self._sin, stored)
        return self._norm(x)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """See `Decoder`."""
        return self._run(x, torch.arange(len(x), device=x.device), mask, cache=False)

    def _run(self, x: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None, *, cache: bool) -> torch.Tensor:
        cos, sin = self._cos.index_select(0, positions), self._sin.index_select(0, positions)
        caches: Sequence[torch.Tensor | None] = self._stored(x) if cache else [None] * len(self._layers)
        with _sdpa():
            for layer, stored in zip(self._layers, caches, strict=True):
                x = _block(layer, x, positions, cos, sin, mask, stored)
        return self._norm(x)

    def _stored(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        if self._cache is None:
            first = self._layers[0]
            self._cache = x.new_zeros(len(self._layers), 2, first.groups, self.capacity, first.width)
        return [self._cache[number] for number in range(len(self._layers))]


def _token_kernels(layers: Sequence[_Layer]) -> Any:
    """The module of Triton kernels, or None if it does not support these layers."""
    if importlib.util.find_spec("triton") is None:
        return None
    from oxe_curate.train.models.openvla import token_kernels

    return token_kernels if all(token_kernels.supports(layer) for layer in layers) else None


def _causal_row(position: torch.Tensor, visible: int, dtype: torch.dtype) -> torch.Tensor:
    """(1, visible), added to the attention scores of a token at `position`."""
    return additive((torch.arange(visible, device=position.device) <= position)[None], dtype)


class _Layer:
    """Weights of a block; projections with the same input are fused."""

    def __init__(self, block: Any, config: Any, dtype: torch.dtype) -> None:
        attention, mlp = block.self_attn, block.mlp
        self.heads: int = config.num_attention_heads
        self.groups: int = config.num_key_value_heads
        self.width: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.norm1, self.norm2 = _Norm(block.input_layernorm, dtype), _Norm(block.post_attention_layernorm, dtype)
        self.qkv = Projection([attention.q_proj, attention.k_proj, attention.v_proj], dtype)
        self.out = Projection([attention.o_proj], dtype)
        self.gate_up = Projection([mlp.gate_proj, mlp.up_proj], dtype)
        self.down = Projection([mlp.down_proj], dtype)
        # Qwen 3 normalizes the queries and keys of each head
        self.head_norms: tuple[_Norm, _Norm] | None = None
        if hasattr(attention, "q_norm"):
            self.head_norms = _Norm(attention.q_norm, dtype), _Norm(attention.k_norm, dtype)


class _Norm:
    """RMS norm in one launch; computed in float32 as in transformers, but rounded once instead of twice."""

    def __init__(self, norm: Any, dtype: torch.dtype) -> None:
        self.parts: tuple[torch.Tensor, float] = (norm.weight.detach().to(dtype), norm.variance_epsilon)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, x.shape[-1:], *self.parts)


def _block(
    layer: _Layer,
    x: torch.Tensor,
    positions: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    mask: torch.Tensor | None,
    stored: torch.Tensor | None,
) -> torch.Tensor:
    """One block on (T, D); cos and signed sin (T, 1, width); `stored` (2, groups, capacity, width)."""
    qkv = layer.qkv(layer.norm1(x)).view(len(x), -1, layer.width)
    rotary, value = qkv.split([layer.heads + layer.groups, layer.groups], 1)
    if layer.head_norms is not None:
        query, key = rotary.split([layer.heads, layer.groups], 1)
        rotary = torch.cat([layer.head_norms[0](query), layer.head_norms[1](key)], 1)
    rotated = torch.addcmul(rotary * cos, rotary.roll(layer.width // 2, -1), sin)
    query, key = rotated.split([layer.heads, layer.groups], 1)
    query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
    if stored is not None:
        stored[0].index_copy_(1, positions, key)
        stored[1].index_copy_(1, positions, value)
        if mask is not None:
            key, value = stored[0, :, : mask.shape[-1]], stored[1, :, : mask.shape[-1]]
    x = x + layer.out(_attend(query[None], key[None], value[None], mask))
    gate, up = layer.gate_up(layer.norm2(x)).chunk(2, -1)
    return x + layer.down(F.silu(gate) * up)


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Attention of (1, heads, T, width) to (1, groups, S, width): (T, heads * width)."""
    heads, tokens, groups = query.shape[1], query.shape[2], key.shape[1]
    if mask is None:
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=groups != heads)
    elif tokens == 1:  # the heads of a group as rows of one query
        query = query.reshape(1, groups, heads // groups, -1)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[None, None])
        return out.reshape(1, -1)
    else:
        if groups != heads:
            key, value = (x.repeat_interleave(heads // groups, 1) for x in (key, value))
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[None, None])
    return out[0].transpose(0, 1).flatten(1)


class _KeyValueCache:
    """A static cache with the interface of transformers' caches."""

    is_compileable = False

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.positions: torch.Tensor | None = None
        self.visible = capacity
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if layer not in self._layers:
            keys, values = (x.new_zeros(*x.shape[:2], self.capacity, x.shape[3]) for x in (key, value))
            self._layers[layer] = keys, values
        keys, values = self._layers[layer]
        keys.index_copy_(2, self.positions, key)
        values.index_copy_(2, self.positions, value)
        return keys[:, :, : self.visible], values[:, :, : self.visible]

    def get_seq_length(self, *_: Any) -> int:
        return 0


class PlainDecoder(Decoder):
    """Any transformers causal language model that accepts embeddings, positions and a four-dimensional mask.

    Args:
        language_model: the model. capacity: number of tokens that the cache holds.
    """

    def __init__(self, language_model: Any, capacity: int) -> None:
        self.capacity = capacity
        self._model: nn.Module = language_model.base_model
        self._keyword = cache_keyword(self._model)
        self._cache = _KeyValueCache(capacity)

    def prefill(self, x: torch.Tensor) -> torch.Tensor:
        """See `Decoder`."""
        positions = torch.arange(len(x), device=x.device)
        return self._run(x, positions, additive(positions[None] <= positions[:, None], x.dtype), cache=True)

    def decode_token(self, x: torch.Tensor, position: torch.Tensor, visible: int) -> torch.Tensor:
        """See `Decoder`."""
        return self._run(x, position, _causal_row(position, visible, x.dtype), cache=True)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """See `Decoder`."""
        return self._run(x, torch.arange(len(x), device=x.device), mask, cache=False)

    def _run(self, x: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor, *, cache: bool) -> torch.Tensor:
        self._cache.positions, self._cache.visible = positions, mask.shape[-1]
        with _sdpa():
            out: torch.Tensor = self._model(
                inputs_embeds=x[None],
                attention_mask=mask[None, None],
                position_ids=positions[None],
                use_cache=cache,
                **{self._keyword: self._cache if cache else None},
            ).last_hidden_state
        return out[0]
