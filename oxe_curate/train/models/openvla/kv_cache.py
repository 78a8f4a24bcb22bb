"""A language model over keys and values at fixed addresses, batch 1, in a form that CUDA graphs can record.

`FusedDecoder` runs Llama's kind of model (Llama, Mistral, Qwen 2 and 3) with the few launches that single-token steps
need; `PlainDecoder` runs any other Hugging Face model through its own code. Both are called alike.
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

log = logging.getLogger(__name__)


class Decoder(abc.ABC):
    """A language model without its output head, for one sequence. States are those after the final norm.

    Attributes:
        capacity: tokens that the cache holds.
    """

    capacity: int

    @abc.abstractmethod
    def read(self, x: torch.Tensor) -> torch.Tensor:
        """Begin a sequence: (T, D) embeddings -> (T, D) states, causal; the cache keeps places 0 .. T - 1."""

    @abc.abstractmethod
    def step(self, x: torch.Tensor, position: torch.Tensor, visible: int) -> torch.Tensor:
        """Go on by a token, which sees all places up to its own.

        Args:
            x: (1, D), its embedding.
            position: int64 (1,): its place; what the cache held there is overwritten.
            visible: a bound of the places seen.

        Returns:
            (1, D).
        """

    @abc.abstractmethod
    def whole(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(T, D) embeddings -> (T, D) states without the cache; mask (T, T) is added to the scores."""


def build_decoder(language_model: Any, capacity: int, kernels: bool = True) -> Decoder:
    """The fastest decoder for a Hugging Face causal language model; arguments as of the two classes."""
    if fusable(language_model.config):
        return FusedDecoder(language_model, capacity, kernels)
    return PlainDecoder(language_model, capacity)


def cache_keyword(decoder: nn.Module) -> str:
    """Name of the argument that gives a Hugging Face decoder its cache: `cache` from transformers 5.24 on."""
    return "cache" if "cache" in inspect.signature(decoder.forward).parameters else "past_key_values"


def fusable(config: Any) -> bool:
    """Whether `FusedDecoder` computes this model: no sliding windows, rotary positions that depend on place alone."""
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
    # without cuDNN's attention, whose plans are made anew for each shape and cost more than the attention
    kernels: AbstractContextManager[None] = sdpa_kernel(
        [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    )
    return kernels


class FusedDecoder(Decoder):
    """Llama's kind of model: about 16 launches a layer, against 45 through transformers; 5 where `kernels` serve.

    Args:
        language_model: `fusable`; plain, quantised or with LoRA. Its weights are shared, see `Projection`.
        capacity: tokens to make room for.
        kernels: use token_kernels.py for single tokens where it fits: on CUDA, with Triton, for plain weights.
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

    def read(self, x: torch.Tensor) -> torch.Tensor:
        """See `Decoder`."""
        return self._run(x, torch.arange(len(x), device=x.device), None, cache=True)

    def step(self, x: torch.Tensor, position: torch.Tensor, visible: int) -> torch.Tensor:
        """See `Decoder`."""
        if self._kernels is not None:
            try:
                return self._step_with_kernels(x, position)
            except Exception as error:  # Triton compiles at the first call, and needs a C compiler and a known device
                log.warning("single tokens run without Triton: %s", (str(error).splitlines() or [repr(error)])[0])
                self._kernels = None
        return self._run(x, position, _up_to(position, visible, x.dtype), cache=True)

    def _step_with_kernels(self, x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        for layer, stored in zip(self._layers, self._stored(x), strict=True):
            x = self._kernels.block(layer, x, position, self._cos, self._sin, stored)
        return self._norm(x)

    def whole(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """See `Decoder`."""
        return self._run(x, torch.arange(len(x), device=x.device), mask, cache=False)

    def _run(self, x: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None, *, cache: bool) -> torch.Tensor:
        cos, sin = self._cos.index_select(0, positions), self._sin.index_select(0, positions)
        places: Sequence[torch.Tensor | None] = self._stored(x) if cache else [None] * len(self._layers)
        with _sdpa():
            for layer, stored in zip(self._layers, places, strict=True):
                x = _block(layer, x, positions, cos, sin, mask, stored)
        return self._norm(x)

    def _stored(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        if self._cache is None:
            first = self._layers[0]
            self._cache = x.new_zeros(len(self._layers), 2, first.groups, self.capacity, first.width)
        return [self._cache[number] for number in range(len(self._layers))]


def _token_kernels(layers: Sequence[_Layer]) -> Any:
    """The module of kernels, if it can compute these layers here."""
    if importlib.util.find_spec("triton") is None:
        return None
    from oxe_curate.train.models.openvla import token_kernels

    return token_kernels if all(token_kernels.fits(layer) for layer in layers) else None


def _up_to(position: torch.Tensor, visible: int, dtype: torch.dtype) -> torch.Tensor:
    """(1, visible), added to the scores of a token at `position`."""
    return additive((torch.arange(visible, device=position.device) <= position)[None], dtype)


class _Layer:
    """What one block needs, its parallel products fused."""

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
        # Qwen 3 normalises each head's queries and keys
        self.head_norms: tuple[_Norm, _Norm] | None = None
        if hasattr(attention, "q_norm"):
            self.head_norms = _Norm(attention.q_norm, dtype), _Norm(attention.k_norm, dtype)


class _Norm:
    """Root mean square norm in one launch; computed in float32 as transformers does, rounded once instead of twice."""

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
    turning, value = qkv.split([layer.heads + layer.groups, layer.groups], 1)
    if layer.head_norms is not None:
        query, key = turning.split([layer.heads, layer.groups], 1)
        turning = torch.cat([layer.head_norms[0](query), layer.head_norms[1](key)], 1)
    turned = torch.addcmul(turning * cos, turning.roll(layer.width // 2, -1), sin)
    query, key = turned.split([layer.heads, layer.groups], 1)
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


class _Store:
    """Keys and values as a Hugging Face decoder writes and reads them."""

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
    """Any Hugging Face causal language model that takes embeddings, positions and a four-dimensional mask.

    Args:
        language_model: the model. capacity: tokens to make room for.
    """

    def __init__(self, language_model: Any, capacity: int) -> None:
        self.capacity = capacity
        self._model: nn.Module = language_model.base_model
        self._keyword = cache_keyword(self._model)
        self._store = _Store(capacity)

    def read(self, x: torch.Tensor) -> torch.Tensor:
        """See `Decoder`."""
        places = torch.arange(len(x), device=x.device)
        return self._run(x, places, additive(places[None] <= places[:, None], x.dtype), cache=True)

    def step(self, x: torch.Tensor, position: torch.Tensor, visible: int) -> torch.Tensor:
        """See `Decoder`."""
        return self._run(x, position, _up_to(position, visible, x.dtype), cache=True)

    def whole(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """See `Decoder`."""
        return self._run(x, torch.arange(len(x), device=x.device), mask, cache=False)

    def _run(self, x: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor, *, cache: bool) -> torch.Tensor:
        self._store.positions, self._store.visible = positions, mask.shape[-1]
        with _sdpa():
            out: torch.Tensor = self._model(
                inputs_embeds=x[None],
                attention_mask=mask[None, None],
                position_ids=positions[None],
                use_cache=cache,
                **{self._keyword: self._store if cache else None},
            ).last_hidden_state
        return out[0]
