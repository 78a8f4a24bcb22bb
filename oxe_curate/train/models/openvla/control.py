"""OpenVLA at control time, batch 1: picture to action with no Python between the kernels.

One control step is a few CUDA graphs, recorded for the first prompt of a length (rounded up to 16 tokens): the vision
towers, side by side on two streams; then either the prompt and K * 7 - 1 single-token steps over a static key-value
cache, or one pass over all slots (`parallel`). Without CUDA the same functions run as they are.
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
from oxe_curate.train.models.openvla.cuda_graph import Inlet, Recorder
from oxe_curate.train.models.openvla.kv_cache import Decoder, build_decoder
from oxe_curate.train.models.openvla.model import OpenVLA
from oxe_curate.train.models.openvla.parallel import (
    additive,
    gather_slots,
    likeliest_action_ids,
    parallel_mask,
    slot_embeddings,
)
from oxe_curate.train.models.openvla.projections import merge_lora
from oxe_curate.train.models.pixels import PixelNormalizer

_TILE = 16  # sequences are padded to multiples: attention with a mask wants 16 bytes, and few graphs serve all prompts
_PROMPTS = 1000  # whose ids are kept
_ROOM = 64  # tokens of an instruction to make room for at first


@dataclass(frozen=True)
class Control:
    """What a controller needs beside the network.

    Attributes:
        prompt: instruction -> token ids, BOS first.
        pixels: the checkpoint's normalisations.
        values: token ids, int64 (K, 7) -> normalised actions, float32 (K, 7); unused with a `head`.
        token_ids: the ids that stand for actions; parallel decoding chooses among these.
        cameras, image_size, proprio, chunk: see `PolicySpec`.
        head: from the hidden states at the slots to actions, None for action tokens.
        parallel: all slots in one pass; a head needs it.
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
    """A network at fixed addresses; shares the network's weights, and calls must not overlap with its training.

    Token by token it gives the ids that Hugging Face's greedy `generate` gives, without an end at a stop token.

    Args:
        net: in evaluation mode, on its device, plain, quantised or with adapters. Layers that read the same input are
            laid side by side in memory (`Projection`); the parameters stay what they are. Where nothing of it is
            being trained (no parameter requires a gradient), adapters are merged into plain weights for good.
        control: the rest.
    """

    def __init__(self, net: OpenVLA, control: Control) -> None:
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
        self._recorder = Recorder(self._device)
        self._lock = threading.Lock()
        self._prompts: dict[str, NDArray[np.int64]] = {}
        self._spoken: str | None = None

        size = (control.cameras, control.image_size, control.image_size, 3)
        self._images = Inlet(size, torch.uint8, self._device)
        self._mean, self._std = (
            torch.tensor(rows, device=self._device).view(1, -1, 1, 1)
            for rows in (control.pixels.means, control.pixels.stds)
        )
        self._white = torch.full((1,), 255.0, device=self._device)
        self._proprio = Inlet((1, control.proprio), torch.float32, self._device) if control.proprio else None
        self._length = Inlet((1,), torch.int64, self._device)  # of the sequence up to the prompt's end
        self._token_ids = torch.tensor(control.token_ids, dtype=torch.int64, device=self._device)
        self._seen = torch.zeros(self._patches, weight.shape[1], dtype=self._dtype, device=self._device)
        shape, kind = ((control.chunk, ACTION_WIDTH), torch.float32) if control.head else ((self._slots,), torch.int64)
        self._out = torch.zeros(shape, dtype=kind, device=self._device)
        self._token = torch.zeros(1, dtype=torch.int64, device=self._device)
        self._position, self._index = torch.zeros_like(self._token), torch.zeros_like(self._token)
        self._look: Callable[[], None] | None = None
        self._grow(_ROOM)

    def act(
        self, images: NDArray[np.uint8], instruction: str, proprio: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """See `Controller`. Safe to call from several threads, one after another.

        Raises:
            DataError: images or a state of another shape than the model takes.
        """
        out = self.decode(images, instruction, proprio)
        if self._control.head is not None:
            return out.astype(np.float32)
        return self._control.values(out.reshape(self._control.chunk, ACTION_WIDTH))

    def decode(
        self, images: NDArray[np.uint8], instruction: str, proprio: NDArray[np.float32] | None = None
    ) -> NDArray[Any]:
        """What the network says: int64 (K * 7,), token ids, or the head's float32 (K, 7). Arguments as for `act`."""
        self._check(images, proprio)
        with self._lock, torch.no_grad(), torch.autocast(self._device.type, enabled=False):
            look, read, step = self._programs(self._say(instruction))
            self._images.put(images)
            if self._proprio is not None:
                self._proprio.put(proprio)
            look()
            read()
            if not self._control.parallel:
                for _ in range(self._slots - 1):
                    step()
            out: NDArray[Any] = self._out.to("cpu", copy=True).numpy()  # waits for the device
            return out

    def _check(self, images: NDArray[np.uint8], proprio: NDArray[np.float32] | None) -> None:
        wanted = tuple(self._images.tensor.shape)
        if images.shape != wanted or images.dtype != np.uint8:
            raise DataError(f"images: expected uint8 {wanted}, got {images.dtype} {images.shape}")
        given = 0 if proprio is None else proprio.size
        if given != self._control.proprio:
            raise DataError(f"proprio: the model takes {self._control.proprio} numbers, got {given}")

    def _say(self, instruction: str) -> int:
        """Put the prompt in place; returns the padded length of the sequence that is read."""
        ids = self._prompts.get(instruction)
        if ids is None:
            if len(self._prompts) > _PROMPTS:
                self._prompts.clear()
            ids = self._prompts[instruction] = np.asarray(self._control.prompt(instruction), np.int64)
        after = self._slots - 1 if self._control.parallel else 0
        width = _tiled(self._patches + len(ids) + after)
        if _tiled(width + self._slots) > self._decoder.capacity:
            self._grow(len(ids))
        if instruction != self._spoken:
            padded = np.zeros(self._ids.tensor.shape, np.int64)
            padded[: len(ids)] = ids
            self._ids.put(padded)
            self._length.put(self._patches + len(ids))
            self._spoken = instruction
        return width

    def _grow(self, tokens: int) -> None:
        """Make room for instructions of so many tokens; graphs of the old room are dropped."""
        capacity = _tiled(self._patches + tokens + self._slots) + _tiled(self._slots)
        self._ids = Inlet((capacity - self._patches,), torch.int64, self._device)
        self._spoken = None
        self._recorded: dict[int, tuple[Callable[[], None], Callable[[], None], Callable[[], None]]] = {}
        self._decoder: Decoder = build_decoder(self._net.language_model, capacity, self._control.kernels)

    def _programs(self, width: int) -> tuple[Callable[[], None], Callable[[], None], Callable[[], None]]:
        """(look, read, step), recorded at the first use of a length."""
        if self._look is None:
            self._look = self._recorder.record(self._look_at_images)
        if width not in self._recorded:
            if self._control.parallel:
                read = self._recorder.record(lambda: self._read_slots(width))
                step = read
            else:
                read = self._recorder.record(lambda: self._read_prompt(width))
                step = self._recorder.record(lambda: self._next_token(width))
            self._recorded[width] = self._look, read, step
        return self._recorded[width]

    def _look_at_images(self) -> None:
        net = self._net
        towers = net.vision_backbone.towers
        # PixelNormalizer's arithmetic; its constants come from the host, which a graph cannot wait for
        scaled = self._images.tensor.movedim(-1, -3).float() / self._white
        parts = ((scaled.repeat(1, len(towers), 1, 1) - self._mean) / self._std).split(3, dim=1)
        parts = [part.to(tower.pos_embed.dtype) for part, tower in zip(parts, towers, strict=True)]
        calls = [lambda tower=tower, part=part: tower(part) for tower, part in zip(towers, parts, strict=True)]
        patches = torch.cat(self._recorder.at_once(calls), 2)
        seen = net.projector(patches.to(net.projector.fc1.weight.dtype)).flatten(0, 1)
        if self._proprio is not None:
            seen = torch.cat([seen, net.proprio_projector(self._proprio.tensor)[0].to(seen.dtype)])
        self._seen.copy_(seen)

    def _sequence(self, width: int) -> torch.Tensor:
        """(width, D): BOS, what was seen, the prompt, padding."""
        text = self._embedding(self._ids.tensor[: width - self._patches])
        return torch.cat([text[:1], self._seen, text[1:]])

    def _read_prompt(self, width: int) -> None:
        # padding lies behind all that is read, and the tokens to come overwrite its keys before they look at them
        states = self._decoder.read(self._sequence(width))
        self._index.zero_()
        self._position.copy_(self._length.tensor)
        self._emit(states.index_select(0, self._length.tensor - 1))

    def _next_token(self, width: int) -> None:
        state = self._decoder.step(self._embedding(self._token), self._position, _tiled(width + self._slots))
        self._position.add_(1)
        self._emit(state)

    def _emit(self, state: torch.Tensor) -> None:
        """The likeliest token of the whole vocabulary, from one hidden state (1, D)."""
        self._token.copy_(self._net.head(state).argmax(-1))
        self._out.index_copy_(0, self._index, self._token)
        self._index.add_(1)

    def _read_slots(self, width: int) -> None:
        length = self._length.tensor + self._slots - 1
        x = slot_embeddings(self._sequence(width)[None], length, self._slots)[0]
        mask = additive(parallel_mask(length, self._slots, width)[0, 0], self._dtype)
        states = gather_slots(self._decoder.whole(x, mask)[None], length, self._slots)
        head = self._control.head
        if head is not None:
            self._out.copy_(head(states.to(next(head.parameters()).dtype))[0])
        else:
            self._out.copy_(likeliest_action_ids(self._net.head(states)[0], self._token_ids))


def _tiled(length: int) -> int:
    return -(-length // _TILE) * _TILE
