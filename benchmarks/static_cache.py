"""What transformers and torch offer for decoding token by token at batch 1: `StaticCache` with `torch.compile`.

Two contenders of `benchmarks.control`:

- `CompiledStaticCache`: vision, prompt and single-token step, each one function under `torch.compile` with
  mode="reduce-overhead" (Inductor's kernels inside CUDA graphs).
- `StaticCacheDecoder`: transformers' layers and cache inside this project's own CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import StaticCache

from oxe_curate.train.models.openvla.kv_cache import Decoder, cache_keyword
from oxe_curate.train.models.openvla.model import OpenVLA
from oxe_curate.train.models.openvla.parallel import additive

_TILE = 16


def static_cache(language_model: Any, capacity: int) -> StaticCache:
    """An empty cache for one sequence at fixed addresses."""
    config = language_model.config
    weight = language_model.get_input_embeddings().weight
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cache = StaticCache(config=config, max_cache_len=capacity)
    cache.early_initialization(1, config.num_key_value_heads, width, weight.dtype, weight.device)
    return cache


def rewind(cache: StaticCache, length: torch.Tensor | int) -> None:
    """Let the next token be written at position `length`; later entries stay, masked."""
    for layer in cache.layers:
        if isinstance(length, int):
            layer.cumulative_length.fill_(length)
        else:
            layer.cumulative_length.copy_(length.view_as(layer.cumulative_length))


class CompiledStaticCache:
    """Greedy decoding of a fixed number of tokens after a fixed prompt.

    Args:
        net: in evaluation mode, without gradients.
        normalize: uint8 images (1, S, S, 3) on the device -> pixels, as `PixelNormalizer`.
        ids: of the prompt, BOS first.
        count: tokens to generate.
    """

    def __init__(
        self, net: OpenVLA, normalize: Callable[[torch.Tensor], torch.Tensor], ids: Sequence[int], count: int
    ) -> None:
        self._net, self._normalize, self._count = net, normalize, count
        weight = net.language_model.get_input_embeddings().weight
        self._device = weight.device
        self._prompt = torch.tensor([ids], device=self._device)
        self._length = net.prefix_tokens() + len(ids)
        capacity = -(-(self._length + count) // _TILE) * _TILE
        self._cache = static_cache(net.language_model, capacity)
        self._keyword = cache_keyword(net.decoder)
        self._places = torch.arange(capacity, device=self._device)
        self._embeds = torch.zeros(1, self._length, weight.shape[1], dtype=weight.dtype, device=self._device)
        self._token = torch.zeros(1, dtype=torch.long, device=self._device)
        self._pixels: torch.Tensor | None = None
        self._see, self._prefill, self._step = (self._compile(part) for part in (self._vision, self._read, self._next))

    def decode(self, images: Any, _: str = "") -> list[int]:
        """Token ids for one uint8 image (1, S, S, 3); the prompt is fixed."""
        with torch.no_grad():
            self._pixels = self._normalize(torch.from_numpy(images).to(self._device))
            self.vision()
            self.read()
            tokens = [self._token.clone()]
            for made in range(1, self._count):
                self.step(made)
                tokens.append(self._token.clone())
            found: list[int] = torch.cat(tokens).tolist()
            return found

    def vision(self) -> None:
        """Encode the image of the last call of `decode`."""
        self._embeds.copy_(self._call(self._see, self._pixels))

    def read(self) -> None:
        """Run the prompt, and choose the first token."""
        rewind(self._cache, 0)
        self._token.copy_(self._call(self._prefill, self._embeds, self._places[None, : self._length]))

    def step(self, made: int = 1) -> None:
        """Choose the token after `made` tokens."""
        position = self._places[None, self._length + made - 1 : self._length + made]
        self._token.copy_(self._call(self._step, self._token, position))

    def _compile(self, function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        options: dict[str, Any] = {"mode": "reduce-overhead"}
        if self._device.type != "cuda":
            options = {"backend": "eager"}  # only checks that the function is one graph
        compiled: Callable[..., torch.Tensor] = torch.compile(function, fullgraph=True, dynamic=False, **options)
        return compiled

    def _call(self, function: Callable[..., torch.Tensor], *args: Any) -> torch.Tensor:
        # outputs are copied at once, so each call may reuse the memory of the last one
        torch.compiler.cudagraph_mark_step_begin()
        return function(*args)

    def _vision(self, pixels: torch.Tensor) -> torch.Tensor:
        return self._net.embed(self._prompt, None, pixels)[0]

    def _read(self, embeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return self._decode(embeds, positions)

    def _next(self, token: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        return self._decode(self._net.language_model.get_input_embeddings()(token)[None], position)

    def _decode(self, embeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        cache = {self._keyword: self._cache}
        out = self._net.decoder(inputs_embeds=embeds, position_ids=positions, use_cache=True, **cache)
        return self._net.head(out.last_hidden_state[:, -1]).argmax(-1)


class StaticCacheDecoder(Decoder):
    """transformers' layers over its own `StaticCache`, for `OpenVLAController`.

    Args:
        language_model: any causal language model of transformers.
        capacity: tokens that the cache holds.
    """

    def __init__(self, language_model: Any, capacity: int) -> None:
        self.capacity = capacity
        self._model = language_model.base_model
        self._keyword = cache_keyword(self._model)
        self._cache = static_cache(language_model, capacity)
        self._places = torch.arange(capacity, device=language_model.get_input_embeddings().weight.device)

    def prefill(self, x: torch.Tensor) -> torch.Tensor:
        """See `Decoder`."""
        rewind(self._cache, 0)
        places = self._places[: len(x)]
        return self._run(x, places)

    def decode_token(self, x: torch.Tensor, position: torch.Tensor, visible: int) -> torch.Tensor:
        """See `Decoder`."""
        rewind(self._cache, position)
        return self._run(x, position)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """See `Decoder`; not measured."""
        raise NotImplementedError

    def _run(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        mask = additive(self._places[None] <= positions[:, None], x.dtype)
        out: torch.Tensor = self._model(
            inputs_embeds=x[None],
            attention_mask=mask[None, None],
            position_ids=positions[None],
            use_cache=True,
            **{self._keyword: self._cache},
        ).last_hidden_state
        return out[0]
