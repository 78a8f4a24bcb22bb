"""OpenVLA inference at batch 1: from images to actions with transformers' `StaticCache` and torch.compile.

A control step runs the vision towers, then either the prompt and K * 7 - 1 single-token steps over the cache, or one
pass over all action slots (`parallel`). On CUDA each of these is compiled with mode="reduce-overhead". Prompts are
padded to a multiple of 64 tokens, so that ordinary instructions share one compilation.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import nn
from transformers import StaticCache
from transformers.cache_utils import StaticLayer

from oxe_curate.errors import DataError
from oxe_curate.train.data.rows import ACTION_WIDTH
from oxe_curate.train.models.base import Controller
from oxe_curate.train.models.compiling import compile_with_graphs, run_on_graph_thread
from oxe_curate.train.models.fast_lora import merge_lora
from oxe_curate.train.models.openvla.greedy import cache_keyword
from oxe_curate.train.models.openvla.model import OpenVLA
from oxe_curate.train.models.openvla.parallel import (
    additive,
    best_action_ids,
    gather_slots,
    parallel_mask,
    slot_embeddings,
)
from oxe_curate.train.models.pixels import PixelNormalizer

_ROOM = 64  # tokens: prompts are padded to a multiple
_TILE = 16  # tokens: masked attention requires aligned lengths
_CACHED_PROMPTS = 1000
_RECORDING_CALLS = 3  # the first compiles, the second records CUDA graphs, the third replays them

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True)
class ControlSettings:
    """Everything that a controller needs besides the network.

    Attributes:
        prompt: instruction -> token ids, BOS first.
        pixels: the checkpoint's normalization.
        values: token ids, int64 (K, 7) -> normalized actions, float32 (K, 7); unused with a `head`.
        token_ids: ids of action tokens; parallel decoding chooses among these.
        cameras, image_size, proprio, chunk: see `PolicySpec`.
        head: maps hidden states at the slots to actions; None for action tokens.
        parallel: decode all slots in one pass; required by a head.
        compile: use torch.compile on CUDA. The first step then takes minutes (less once torch has cached the code on
            disk), and later steps are about four times as fast.
    """

    prompt: Callable[[str], Sequence[int]]
    pixels: PixelNormalizer
    values: Callable[[NDArray[np.int64]], NDArray[np.float32]]
    token_ids: Sequence[int]
    cameras: int
    image_size: int
    proprio: int = 0
    chunk: int = 1
    head: nn.Module | None = None
    parallel: bool = False
    compile: bool = True


class OpenVLAController(Controller):
    """Runs a network at batch 1; shares its weights, so do not call it during a training step.

    Token-by-token decoding gives the same ids as transformers' greedy `generate`, without stopping at a stop token.
    Where torch.compile does not work, the controller logs a warning and runs eagerly.

    Args:
        net: in evaluation mode, on its device; plain, quantized or with adapters. If no parameter requires a gradient,
            adapters over plain weights are merged into them permanently, and plain weights of the language model take
            the type of its embeddings.
        control: settings.
    """

    def __init__(self, net: OpenVLA, control: ControlSettings) -> None:
        if control.head is not None and not control.parallel:
            raise ValueError("a continuous head needs parallel decoding")
        self._control, self._programs = control, Programs(net, control)
        self._device = self._programs.device
        self._autocast = _prepare(net)
        self._lock = threading.Lock()
        self._prompts: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._caches: dict[int, StaticCache | None] = {}  # room -> cache
        self._use(lambda function: function)
        obstacle = _obstacle(net, self._device) if control.compile else None
        self.compiled = control.compile and obstacle is None
        if obstacle is not None and self._device.type == "cuda":
            _warn(obstacle)
        if self.compiled:
            fullgraph = not _has_layers(net, "Linear4bit")
            self._use(lambda function: compile_with_graphs(function, fullgraph=fullgraph))

    def act(
        self, images: NDArray[np.uint8], instruction: str, proprio: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """See `Controller`. Thread-safe; concurrent calls wait for each other.

        Raises:
            DataError: wrong shape or type of images or proprio.
        """
        out = self.decode(images, instruction, proprio)
        if self._control.head is not None:
            return out.astype(np.float32)
        return self._control.values(out.reshape(self._control.chunk, ACTION_WIDTH))

    def decode(
        self, images: NDArray[np.uint8], instruction: str, proprio: NDArray[np.float32] | None = None
    ) -> NDArray[Any]:
        """Token ids, int64 (K * 7,), or the head's actions, float32 (K, 7). Arguments as for `act`."""
        self._check(images, proprio)
        with self._lock:
            ids, length = self._prompt(instruction)
            if self.compiled:
                try:
                    return self.run(lambda: self._step(images, ids, length, proprio))
                except Exception as error:  # of many types, depending on what a machine lacks
                    first = (str(error).strip().splitlines() or [""])[0]
                    _warn(f"{type(error).__name__}: {first}")
                    self.compiled = False
                    self._caches.clear()
                    self._use(lambda function: function)
            return self.run(lambda: self._step(images, ids, length, proprio))

    def run(self, work: Callable[[], _T]) -> _T:
        """Call a function as control steps are run: without gradients, and on the thread of the CUDA graphs."""

        def inside() -> _T:
            kind, dtype = self._device.type, self._autocast
            device = torch.cuda.device(self._device) if kind == "cuda" else nullcontext()
            with device, torch.no_grad(), torch.autocast(kind, dtype, enabled=dtype is not None):
                return work()

        return run_on_graph_thread(inside) if self.compiled else inside()

    def encode(self, images: NDArray[np.uint8], proprio: NDArray[np.float32] | None) -> torch.Tensor:
        """Embeddings (1, N, D) of images and proprio."""
        # copied, because torch accepts neither flipped nor read-only arrays
        pixels = self._control.pixels(torch.from_numpy(images.copy()).to(self._device))
        state = None if proprio is None else torch.from_numpy(np.array(proprio, np.float32).reshape(1, -1))
        return self._encode(pixels, None if state is None else state.to(self._device))

    def read(self, prefix: torch.Tensor, ids: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        """The first token, int64 (1,), or in parallel decoding the result of `decode`. Arguments as for `Programs`."""
        if self._control.parallel:
            return self._read_slots(prefix, ids, length)
        return self._read(self._caches[ids.shape[1]], prefix, ids, length)

    def next(self, ids: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        """The token, int64 (1,), after `token`."""
        return self._next(self._caches[ids.shape[1]], token)

    def _use(self, wrap: Callable[[Callable[..., torch.Tensor]], Callable[..., torch.Tensor]]) -> None:
        programs = self._programs
        self._encode, self._read_slots = wrap(programs.encode), wrap(programs.read_slots)
        self._read, self._next = wrap(programs.read), wrap(programs.next)

    def _check(self, images: NDArray[np.uint8], proprio: NDArray[np.float32] | None) -> None:
        control = self._control
        expected = (control.cameras, control.image_size, control.image_size, 3)
        if images.shape != expected or images.dtype != np.uint8:
            raise DataError(f"images: expected uint8 {expected}, got {images.dtype} {images.shape}")
        given = 0 if proprio is None else proprio.size
        if given != control.proprio:
            raise DataError(f"proprio: expected {control.proprio} numbers, got {given}")

    def _prompt(self, instruction: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Padded ids, int64 (1, room), and the number of positions up to the end of the prompt, int64 (1,)."""
        if instruction not in self._prompts:
            if len(self._prompts) >= _CACHED_PROMPTS:
                self._prompts.clear()
            ids = list(self._control.prompt(instruction))
            padded = torch.zeros(1, _round_up(len(ids), _ROOM), dtype=torch.int64)
            padded[0, : len(ids)] = torch.tensor(ids)
            length = torch.tensor([self._programs.patches + len(ids)])
            self._prompts[instruction] = padded.to(self._device), length.to(self._device)
        return self._prompts[instruction]

    def _step(
        self, images: NDArray[np.uint8], ids: torch.Tensor, length: torch.Tensor, proprio: NDArray[np.float32] | None
    ) -> NDArray[Any]:
        room = ids.shape[1]
        calls = 1
        if room not in self._caches:
            self._caches[room] = None if self._control.parallel else self._programs.cache(room)
            if self.compiled:
                calls = _RECORDING_CALLS
                _log.info("compiling control for prompts of up to %d tokens; this can take minutes", room)
        for _ in range(calls):
            out = self.read(self.encode(images, proprio), ids, length)
            if not self._control.parallel:
                tokens = [out]
                for _ in range(self._programs.slots - 1):
                    tokens.append(self.next(ids, tokens[-1]))
                out = torch.cat(tokens)
        found: NDArray[Any] = out.cpu().numpy()  # waits for the device
        return found


class Programs:
    """The functions of a control step, on tensors of fixed shapes.

    Args:
        net, control: see `OpenVLAController`.

    Attributes:
        device: of the weights.
        patches: number of positions between BOS and the rest of the prompt. slots: K * 7.
    """

    def __init__(self, net: OpenVLA, control: ControlSettings) -> None:
        self._net, self._head = net, control.head
        self._keyword = cache_keyword(net.decoder)
        weight = net.language_model.get_input_embeddings().weight
        self.device, self._dtype, self._width = weight.device, weight.dtype, weight.shape[1]
        self.patches, self.slots = net.prefix_tokens(control.cameras), control.chunk * ACTION_WIDTH
        self._token_ids = torch.tensor(control.token_ids, dtype=torch.int64, device=self.device)

    def cache(self, room: int) -> StaticCache:
        """An empty cache for a prompt of `room` tokens and the answer."""
        capacity = _round_up(self.patches + room + self.slots, _TILE)
        cache = StaticCache(config=self._net.language_model.config, max_cache_len=capacity)
        # sliding windows are left to the attention mask: `_rewind` does not suit the ring buffers of such layers
        cache.layers = [
            StaticLayer(max_cache_len=capacity) if getattr(layer, "is_sliding", False) else layer
            for layer in cache.layers
        ]
        # the first use allocates memory, which must not happen in a compiled function
        self._states(cache, torch.zeros(1, 1, self._width, dtype=self._dtype, device=self.device))
        return cache

    def encode(self, pixels: torch.Tensor, proprio: torch.Tensor | None) -> torch.Tensor:
        """Normalized images (cameras, 3 * towers, S, S) and proprio (1, P) or None -> embeddings (1, N, D)."""
        net = self._net
        patches = torch.cat(net.vision_backbone.patches(pixels), 2)
        projected = net.projector(patches.to(net.projector.fc1.weight.dtype)).flatten(0, 1)
        return net.prefix(projected[None], proprio).to(self._dtype)

    def read(self, cache: StaticCache, prefix: torch.Tensor, ids: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        """Start a sequence.

        Args:
            cache: of `cache`.
            prefix: (1, N, D), of `encode`.
            ids: int64 (1, room), padded on the right.
            length: int64 (1,), of the sequence without padding.

        Returns:
            int64 (1,), the next token.
        """
        embeds, _ = self._net.insert_prefix(ids, None, prefix)
        _rewind(cache, torch.zeros_like(length))
        states = self._states(cache, embeds)
        # causal attention hides the padding, and generated tokens overwrite its keys before they attend to them
        _rewind(cache, length)
        return self._token(states.index_select(1, length - 1)[:, 0])

    def next(self, cache: StaticCache, token: torch.Tensor) -> torch.Tensor:
        """Append a token, int64 (1,); returns the next one."""
        embeds = self._net.language_model.get_input_embeddings()(token)[None]
        return self._token(self._states(cache, embeds)[:, 0])

    def read_slots(self, prefix: torch.Tensor, ids: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        """All slots at once; arguments as for `read`. Returns ids, int64 (K * 7,), or actions, float32 (K, 7)."""
        after = _round_up(prefix.shape[1] + ids.shape[1] + self.slots - 1, _TILE) - prefix.shape[1] - ids.shape[1]
        blank = F.pad(ids, (0, after))
        embeds, _ = self._net.insert_prefix(blank, None, prefix)
        end = length + self.slots - 1
        embeds = slot_embeddings(embeds, end, self.slots)
        mask = additive(parallel_mask(end, self.slots, embeds.shape[1]), embeds.dtype)
        states = gather_slots(self._net.last_hidden(embeds, mask), end, self.slots)
        if self._head is not None:
            actions: torch.Tensor = self._head(states.to(next(self._head.parameters()).dtype))[0].float()
            return actions
        return best_action_ids(self._net.head(states)[0], self._token_ids)

    def _states(self, cache: StaticCache, embeds: torch.Tensor) -> torch.Tensor:
        """Append embeddings (1, T, D) to the cache; returns their hidden states."""
        return self._net.last_hidden(embeds, None, use_cache=True, **{self._keyword: cache})

    def _token(self, state: torch.Tensor) -> torch.Tensor:
        return self._net.head(state).argmax(-1)


def _rewind(cache: StaticCache, length: torch.Tensor) -> None:
    """Let the next token be written at position `length` (1,); later entries stay, masked."""
    for layer in cache.layers:
        layer.cumulative_length.copy_(length[0])


def _prepare(net: OpenVLA) -> torch.dtype | None:
    """Merge adapters and unify types where nothing is trained; returns the type for autocast, None without."""
    training = any(parameter.requires_grad for parameter in net.parameters())
    if not training:
        merge_lora(net)
    dtype = net.language_model.get_input_embeddings().weight.dtype
    others = [
        parameter
        for name, parameter in net.language_model.named_parameters()
        if parameter.is_floating_point() and parameter.dtype != dtype and "lora_" not in name
    ]
    if others and training:
        return torch.bfloat16
    for parameter in others:
        parameter.data = parameter.data.to(dtype)
    return None


def _warn(why: str) -> None:
    _log.warning("control runs without torch.compile, several times slower than with it: %s", why)


def _obstacle(net: OpenVLA, device: torch.device) -> str | None:
    """Why control cannot be compiled, None if it can."""
    if device.type != "cuda":
        return f"it needs CUDA, and the model is on {device.type}"
    if _has_layers(net, "Linear8bitLt"):  # they look for outliers, whose number depends on the data, in each call
        return "it does not support int8 layers (NF4 is faster)"
    return None


def _has_layers(net: OpenVLA, name: str) -> bool:
    """Whether a network has layers of a class of bitsandbytes."""
    return any(type(module).__name__ == name for module in net.modules())


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
