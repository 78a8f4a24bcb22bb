"""OpenVLA inference at batch 1: from images to actions in a few CUDA graphs.

A control step runs the vision towers on two parallel streams, then either the prompt and K * 7 - 1 single-token steps
over a static key-value cache, or one pass over all action slots (`parallel`). Graphs are recorded once for each prompt
length, rounded up to 16 tokens. Without CUDA the same functions run eagerly.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from oxe_curate.errors import DataError
from oxe_curate.train.data.rows import ACTION_WIDTH
from oxe_curate.train.models.base import Controller
from oxe_curate.train.models.openvla.cuda_graph import GraphRecorder, PinnedInput
from oxe_curate.train.models.openvla.kv_cache import Decoder, build_decoder
from oxe_curate.train.models.openvla.model import OpenVLA
from oxe_curate.train.models.openvla.parallel import (
    additive,
    best_action_ids,
    gather_slots,
    parallel_mask,
    slot_embeddings,
)
from oxe_curate.train.models.openvla.projections import merge_lora
from oxe_curate.train.models.pixels import PixelNormalizer

_TILE = 16  # pad sequences to a multiple: masked attention needs 16-byte alignment, and few graphs serve all prompts
_CACHED_PROMPTS = 1000
_INITIAL_TOKENS = 64  # prompt length that the first key-value cache has room for


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
        kernels: see `FusedDecoder`.
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
    kernels: bool = True


class OpenVLAController(Controller):
    """Runs a network on tensors at fixed addresses; shares its weights, so do not call it during a training step.

    Token-by-token decoding gives the same ids as transformers' greedy `generate`, without stopping at a stop token.

    Args:
        net: in evaluation mode, on its device; plain, quantized or with adapters. The weights of layers with the same
            input are moved into one block of memory (`Projection`); parameters keep their names and values. If no
            parameter requires a gradient, adapters over plain weights are merged into them permanently.
        control: settings.
    """

    def __init__(self, net: OpenVLA, control: ControlSettings) -> None:
        if control.head is not None and not control.parallel:
            raise ValueError("a continuous head needs parallel decoding")
        self._net, self._control = net, control
        if not any(parameter.requires_grad for parameter in net.parameters()):
            merge_lora(net)
        self._embedding = net.language_model.get_input_embeddings()
        weight = self._embedding.weight
        self._device, self._dtype = weight.device, weight.dtype
        self._slots = control.chunk * ACTION_WIDTH
        self._patches = net.prefix_tokens(control.cameras)
        self._recorder = GraphRecorder(self._device)
        self._lock = threading.Lock()
        self._prompts: dict[str, NDArray[np.int64]] = {}
        self._current: str | None = None

        size = (control.cameras, control.image_size, control.image_size, 3)
        self._images = PinnedInput(size, torch.uint8, self._device)
        self._mean, self._std = (
            torch.tensor(rows, device=self._device).view(1, -1, 1, 1)
            for rows in (control.pixels.means, control.pixels.stds)
        )
        self._white = torch.full((1,), 255.0, device=self._device)
        self._proprio = PinnedInput((1, control.proprio), torch.float32, self._device) if control.proprio else None
        self._length = PinnedInput((1,), torch.int64, self._device)  # of the sequence up to the end of the prompt
        self._token_ids = torch.tensor(control.token_ids, dtype=torch.int64, device=self._device)
        self._prefix = torch.zeros(self._patches, weight.shape[1], dtype=self._dtype, device=self._device)
        shape, kind = ((control.chunk, ACTION_WIDTH), torch.float32) if control.head else ((self._slots,), torch.int64)
        self._out = torch.zeros(shape, dtype=kind, device=self._device)
        self._token = torch.zeros(1, dtype=torch.int64, device=self._device)
        self._position, self._index = torch.zeros_like(self._token), torch.zeros_like(self._token)
        self._vision: Callable[[], None] | None = None
        self._reserve(_INITIAL_TOKENS)

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
        with self._lock, torch.no_grad(), torch.autocast(self._device.type, enabled=False):
            encode_images, prefill, decode_token = self._programs(self._set_prompt(instruction))
            self._images.put(images)
            if self._proprio is not None:
                self._proprio.put(proprio)
            encode_images()
            prefill()
            if not self._control.parallel:
                for _ in range(self._slots - 1):
                    decode_token()
            out: NDArray[Any] = self._out.to("cpu", copy=True).numpy()  # waits for the device
            return out

    def _check(self, images: NDArray[np.uint8], proprio: NDArray[np.float32] | None) -> None:
        expected = tuple(self._images.tensor.shape)
        if images.shape != expected or images.dtype != np.uint8:
            raise DataError(f"images: expected uint8 {expected}, got {images.dtype} {images.shape}")
        given = 0 if proprio is None else proprio.size
        if given != self._control.proprio:
            raise DataError(f"proprio: expected {self._control.proprio} numbers, got {given}")

    def _set_prompt(self, instruction: str) -> int:
        """Copy the prompt to the device; returns the padded length of the sequence."""
        ids = self._prompts.get(instruction)
        if ids is None:
            if len(self._prompts) > _CACHED_PROMPTS:
                self._prompts.clear()
            ids = self._prompts[instruction] = np.asarray(self._control.prompt(instruction), np.int64)
        after = self._slots - 1 if self._control.parallel else 0
        width = _tiled(self._patches + len(ids) + after)
        if _tiled(width + self._slots) > self._decoder.capacity:
            self._reserve(len(ids))
        if instruction != self._current:
            padded = np.zeros(self._ids.tensor.shape, np.int64)
            padded[: len(ids)] = ids
            self._ids.put(padded)
            self._length.put(self._patches + len(ids))
            self._current = instruction
        return width

    def _reserve(self, tokens: int) -> None:
        """Allocate a cache for prompts of up to `tokens` tokens; recorded graphs are dropped."""
        capacity = _tiled(self._patches + tokens + self._slots) + _tiled(self._slots)
        self._ids = PinnedInput((capacity - self._patches,), torch.int64, self._device)
        self._current = None
        self._recorded: dict[int, tuple[Callable[[], None], Callable[[], None], Callable[[], None]]] = {}
        self._decoder: Decoder = build_decoder(self._net.language_model, capacity, self._control.kernels)

    def _programs(self, width: int) -> tuple[Callable[[], None], Callable[[], None], Callable[[], None]]:
        """(encode images, prefill, decode a token), recorded at the first use of a length."""
        if self._vision is None:
            self._vision = self._recorder.record(self._encode_images)
        if width not in self._recorded:
            if self._control.parallel:
                prefill = decode_token = self._recorder.record(lambda: self._decode_slots(width))
            else:
                prefill = self._recorder.record(lambda: self._prefill(width))
                decode_token = self._recorder.record(lambda: self._decode_token(width))
            self._recorded[width] = self._vision, prefill, decode_token
        return self._recorded[width]

    def _encode_images(self) -> None:
        net = self._net
        towers = net.vision_backbone.towers
        # same arithmetic as PixelNormalizer, whose constants are copied from the host, which a graph cannot record
        scaled = self._images.tensor.movedim(-1, -3).float() / self._white
        parts = ((scaled.repeat(1, len(towers), 1, 1) - self._mean) / self._std).split(3, dim=1)
        parts = [part.to(tower.pos_embed.dtype) for part, tower in zip(parts, towers, strict=True)]
        calls = [lambda tower=tower, part=part: tower(part) for tower, part in zip(towers, parts, strict=True)]
        patches = torch.cat(self._recorder.run_concurrently(calls), 2)
        prefix = net.projector(patches.to(net.projector.fc1.weight.dtype)).flatten(0, 1)
        if self._proprio is not None:
            prefix = torch.cat([prefix, net.proprio_projector(self._proprio.tensor)[0].to(prefix.dtype)])
        self._prefix.copy_(prefix)

    def _sequence(self, width: int) -> torch.Tensor:
        """(width, D): BOS, image patches and proprio, prompt, padding."""
        text = self._embedding(self._ids.tensor[: width - self._patches])
        return torch.cat([text[:1], self._prefix, text[1:]])

    def _prefill(self, width: int) -> None:
        # causal attention hides the padding, and generated tokens overwrite its keys before they attend to them
        states = self._decoder.prefill(self._sequence(width))
        self._index.zero_()
        self._position.copy_(self._length.tensor)
        self._emit_token(states.index_select(0, self._length.tensor - 1))

    def _decode_token(self, width: int) -> None:
        state = self._decoder.decode_token(self._embedding(self._token), self._position, _tiled(width + self._slots))
        self._position.add_(1)
        self._emit_token(state)

    def _emit_token(self, state: torch.Tensor) -> None:
        """Store the most likely token of the whole vocabulary given a hidden state (1, D)."""
        self._token.copy_(self._net.head(state).argmax(-1))
        self._out.index_copy_(0, self._index, self._token)
        self._index.add_(1)

    def _decode_slots(self, width: int) -> None:
        length = self._length.tensor + self._slots - 1
        x = slot_embeddings(self._sequence(width)[None], length, self._slots)[0]
        mask = additive(parallel_mask(length, self._slots, width)[0, 0], self._dtype)
        states = gather_slots(self._decoder.forward(x, mask)[None], length, self._slots)
        head = self._control.head
        if head is not None:
            self._out.copy_(head(states.to(next(head.parameters()).dtype))[0])
        else:
            self._out.copy_(best_action_ids(self._net.head(states)[0], self._token_ids))


def _tiled(length: int) -> int:
    return -(-length // _TILE) * _TILE
