"""RoboFlamingo's network: frozen CLIP tower, frozen decoder, trained cross-attention between them, policy head.

Li et al. 2023, "Vision-Language Foundation Models as Effective Robot Imitators". Works with any transformers decoder:
each of its layers is wrapped in a `FlamingoLayer`, with the parameter names of OpenFlamingo's checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from oxe_curate.errors import ConfigError
from oxe_curate.train.models.roboflamingo.heads import Head
from oxe_curate.train.models.roboflamingo.resampler import GatedCrossAttention, PerceiverResampler
from oxe_curate.train.models.roboflamingo.vit import ClipTower

_LAYERS = ("transformer.blocks", "gpt_neox.layers", "model.decoder.layers", "model.layers", "transformer.h")
"""Layer lists of decoders: MPT, GPT-NeoX (RedPajama, Pythia), OPT, Llama and its relatives, GPT-J."""


def layers_path(language: nn.Module) -> str:
    """Name of the module list that holds a decoder's layers.

    Raises:
        ConfigError: unsupported decoder.
    """
    for path in _LAYERS:
        try:
            if isinstance(language.get_submodule(path), nn.ModuleList):
                return path
        except AttributeError:
            continue
    raise ConfigError(
        f"{type(language).__name__}: unsupported decoder; expected its layers at one of {', '.join(_LAYERS)}"
    )


@dataclass
class _Conditioning:
    """Image conditioning of the current pass, shared by all layers of a decoder.

    Attributes:
        latents: (n, m, media width), None for text without images.
        after: bool (n, L), True for tokens at or after the image token.
        first: int64 (t,): for each distinct text, a row that holds it; None: run layers before the first
            cross-attention for every row.
        owner: int64 (n,): index of each row's text among the distinct texts.
        stop: skip the last layer and store its input in `stopped`.
    """

    latents: Tensor | None = None
    after: Tensor | None = None
    first: Tensor | None = None
    owner: Tensor | None = None
    stop: bool = False
    stopped: Tensor | None = None


class FlamingoLayer(nn.Module):
    """A decoder layer, preceded by gated cross-attention to the image in some layers."""

    def __init__(
        self,
        decoder_layer: nn.Module,
        gated: GatedCrossAttention | None,
        before_cross_attention: bool,
        last: bool,
        conditioning: _Conditioning,
    ) -> None:
        super().__init__()
        self.register_module("gated_cross_attn_layer", gated)  # None too, so that all layers compile alike
        self.decoder_layer = decoder_layer
        self.before_cross_attention = before_cross_attention  # output depends on the text only
        self.last = last
        self.checkpointing = False
        self._conditioning = conditioning
        if hasattr(decoder_layer, "attention_type"):  # Qwen and Gemma choose the mask by this attribute
            self.attention_type = decoder_layer.attention_type

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Same arguments and results as the wrapped layer."""
        given = self._conditioning
        if self.last and given.stop:
            given.stopped = hidden_states
            return hidden_states, None
        shared = self.before_cross_attention and given.first is not None
        if shared and not any(isinstance(value, Tensor) for value in args):
            kwargs = {name: _rows(kwargs[name], given.first) if name in _BY_ROW else kwargs[name] for name in kwargs}
            out = self._run(None, None, hidden_states[given.first], *args, **kwargs)
            return (out[0][given.owner], *out[1:]) if isinstance(out, tuple) else out[given.owner]
        inputs = (given.latents, given.after, hidden_states)
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(self._run, *inputs, *args, use_reentrant=False, **kwargs)
        return self._run(*inputs, *args, **kwargs)

    def _run(self, latents: Tensor | None, after: Tensor | None, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.gated_cross_attn_layer is not None and latents is not None:
            x = self.gated_cross_attn_layer(x, latents, after)
        return self.decoder_layer(x, *args, **kwargs)


_BY_ROW = ("attention_mask", "position_ids", "position_embeddings")
"""Arguments of decoder layers with one row for each text, or one for all."""


def _rows(value: Any, which: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_rows(item, which) for item in value)
    return value[which] if isinstance(value, Tensor) and value.shape[0] > 1 else value


class Flamingo(nn.Module):
    """The network.

    Args:
        vision: CLIP's tower. language: a transformers causal language model; its layers are wrapped in place.
        head: policy head on the decoder's last hidden states.
        every: interval of layers with cross-attention before them (4: layers 3, 7, ...).
        media_token: id of "<image>". resampler_depth, latents: of the resampler.
        history: memory of the paper's MLP head: a learned embedding of the step is added to each frame's tokens, the
            text attends to all frames of the window, and the decoder runs once for each window.
        early: the head takes the input of the last layer, as in the released code with MPT-1B; see mosaic.py.
        window: steps of a window.
    """

    def __init__(
        self,
        vision: ClipTower,
        language: nn.Module,
        head: Head,
        every: int,
        media_token: int,
        window: int,
        resampler_depth: int = 6,
        latents: int = 64,
        history: bool = False,
        early: bool = False,
    ) -> None:
        super().__init__()
        width = vision.shape.width
        self.vision_encoder = vision
        self.perceiver = PerceiverResampler(width, resampler_depth, latents)
        self.lang_encoder = language
        self.lm_head = head
        self.every, self.media_token, self.window = every, media_token, window
        self.history, self.early = history, early
        if history:
            self.frame_embs = nn.Parameter(torch.randn(window, width))
        self.checkpointing = False
        self._conditioning = _Conditioning()
        self._wrap(width)

    def _wrap(self, width: int) -> None:
        layers = self.layers
        text_width = self.lang_encoder.config.hidden_size
        for index, layer in enumerate(layers):
            gated = GatedCrossAttention(text_width, width) if (index + 1) % self.every == 0 else None
            layers[index] = FlamingoLayer(
                layer, gated, index + 1 < self.every, index + 1 == len(layers), self._conditioning
            )

    @property
    def layers(self) -> nn.ModuleList:
        """The wrapped layers of the decoder."""
        return self.lang_encoder.get_submodule(layers_path(self.lang_encoder))

    def enable_checkpointing(self, on: bool = True) -> None:
        """Recompute activations of the resampler and of the decoder's layers in the backward pass."""
        self.checkpointing = on
        for layer in self.layers:
            layer.checkpointing = on

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Normalized pixels (n, 3, S, S) -> tokens (n, v, width) of the frozen tower."""
        tokens: Tensor = self.vision_encoder(pixels)
        return tokens

    def resample(self, tokens: Tensor) -> Tensor:
        """Tokens (n, C, v, width) of C cameras -> latents (n, C * m, width), ordered by camera."""
        n, cameras = tokens.shape[:2]
        flat = tokens.flatten(0, 1)
        if self.checkpointing and self.training:
            latents = checkpoint(self.perceiver, flat, use_reentrant=False)
        else:
            latents = self.perceiver(flat)
        return latents.unflatten(0, (n, cameras)).flatten(1, 2)

    def run_decoder(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        latents: Tensor,
        owner: Tensor | None = None,
        early: bool = False,
    ) -> Tensor:
        """Run the decoder on texts that attend to latents; returns its last hidden states, after the final norm.

        Args:
            input_ids: (t, L); tokens before the first `media_token` do not attend to latents.
            attention_mask: (t, L), True or 1 for real tokens, padding on the right.
            latents: (n, m, width).
            owner: int64 (n,): index of the text of each row of latents; every text has one. None: in order, t = n.
            early: return the input of the last layer instead.

        Returns:
            (n, L, text width).
        """
        given = self._conditioning
        if owner is not None:
            rows = torch.arange(len(owner), device=owner.device)
            given.first = rows.new_empty(len(input_ids)).scatter_(0, owner, rows)
            given.owner = owner
            input_ids, attention_mask = input_ids[owner], attention_mask[owner]
        embeds = self.lang_encoder.get_input_embeddings()(input_ids).to(self.text_dtype)
        given.latents, given.after = latents, (input_ids == self.media_token).cumsum(1) > 0
        given.stop = early
        try:
            out = self.lang_encoder.base_model(
                inputs_embeds=embeds, attention_mask=attention_mask.long(), use_cache=False
            )
            stopped = given.stopped
        finally:
            given.latents = given.after = given.first = given.owner = given.stopped = None
            given.stop = False
        if stopped is not None:
            return stopped
        return out.last_hidden_state

    @property
    def text_dtype(self) -> torch.dtype:
        """Type of the decoder's hidden states: that of its first norm, which is never quantized."""
        for name, parameter in self.layers[0].decoder_layer.named_parameters():
            if "norm" in name or "ln_" in name:
                return parameter.dtype
        return next(self.perceiver.parameters()).dtype

    def features(
        self, tokens: Tensor, input_ids: Tensor, attention_mask: Tensor, frames: Tensor | None = None
    ) -> Tensor:
        """The decoder's last hidden states for windows of frames.

        Args:
            tokens: (n * W or fewer, C, v, width): the tower's tokens of each distinct frame.
            input_ids: (n, L), one text for each window.
            attention_mask: (n, L).
            frames: int64 (n, W): index into `tokens` of each step; None: in order.

        Returns:
            (n, W, L, text width); with `history` (n, 1, L, text width).
        """
        n = input_ids.shape[0]
        if self.history:
            index = torch.arange(tokens.shape[0], device=tokens.device).view(n, -1) if frames is None else frames
            window = tokens[index] + self.frame_embs[-index.shape[1] :, None, None].to(tokens.dtype)
            latents = self.resample(window.flatten(0, 1)).unflatten(0, (n, -1)).flatten(1, 2)
            return self.run_decoder(input_ids, attention_mask, latents, early=self.early).unsqueeze(1)
        latents = self.resample(tokens)
        rows = torch.arange(n, device=latents.device)
        if frames is None:
            steps = latents.shape[0] // n
            hidden = self.run_decoder(input_ids, attention_mask, latents, rows.repeat_interleave(steps), self.early)
            return hidden.unflatten(0, (n, steps))
        owner = rows.new_empty(latents.shape[0])
        owner[frames.flatten()] = rows.repeat_interleave(frames.shape[1])
        return self.run_decoder(input_ids, attention_mask, latents, owner, self.early)[frames]

    def trained_names(self, embeddings: bool) -> list[str]:
        """Names of the modules that are trained; everything else stays frozen."""
        names = [name for name, module in self.named_modules() if isinstance(module, GatedCrossAttention)]
        names += ["perceiver", "lm_head"]
        if embeddings:
            table = self.lang_encoder.get_input_embeddings()
            names += [name for name, module in self.named_modules() if module is table]
        return names

    def train_parts(self, embeddings: bool) -> None:
        """Require gradients of the cross-attention, resampler and head, and optionally of the input embeddings."""
        for name in self.trained_names(embeddings):
            self.get_submodule(name).requires_grad_(True)
        if self.history:
            self.frame_embs.requires_grad_(True)
