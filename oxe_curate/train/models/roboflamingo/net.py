"""RoboFlamingo's network: frozen CLIP tower, frozen decoder, trained cross-attention between them, a policy head.

Li et al. 2023, "Vision-Language Foundation Models as Effective Robot Imitators". Any Hugging Face decoder serves: each
of its layers is put into a `FlamingoLayer`, which is how OpenFlamingo names them in its checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from oxe_curate.errors import ConfigError
from oxe_curate.train.models.roboflamingo.heads import POSE, Head
from oxe_curate.train.models.roboflamingo.policy_loss import policy_losses
from oxe_curate.train.models.roboflamingo.resampler import GatedCrossAttention, PerceiverResampler
from oxe_curate.train.models.roboflamingo.vit import ClipTower

LAYERS = ("transformer.blocks", "gpt_neox.layers", "model.decoder.layers", "model.layers", "transformer.h")
"""Where decoders keep their layers: MPT, GPT-NeoX (RedPajama, Pythia), OPT, Llama and its kin, GPT-J."""


def layers_path(language: nn.Module) -> str:
    """Name of the list of a decoder's layers.

    Raises:
        ConfigError: a decoder that keeps them elsewhere.
    """
    for path in LAYERS:
        try:
            if isinstance(language.get_submodule(path), nn.ModuleList):
                return path
        except AttributeError:
            continue
    raise ConfigError(
        f"{type(language).__name__}: no list of decoder layers at {', '.join(LAYERS)}; this decoder is not supported"
    )


@dataclass
class Seen:
    """What the text of the current pass sees; one object, shared by all layers of a decoder.

    Attributes:
        latents: (n, m, media width), None to look at nothing.
        after: bool (n, L): text at or after its image.
        first: int64 (t,): of each distinct text, a row that holds it; None: layers before the first cross-attention
            are not shared among rows.
        owner: int64 (n,): which of the distinct texts each row holds.
        stop: leave the last layer out, and keep its input in `stopped`.
    """

    latents: Tensor | None = None
    after: Tensor | None = None
    first: Tensor | None = None
    owner: Tensor | None = None
    stop: bool = False
    stopped: Tensor | None = None


class FlamingoLayer(nn.Module):
    """A decoder layer with, before it, a gated look at the image (or none)."""

    def __init__(
        self, decoder_layer: nn.Module, gated: GatedCrossAttention | None, blind: bool, last: bool, seen: Seen
    ) -> None:
        super().__init__()
        self.register_module("gated_cross_attn_layer", gated)  # None too, so that all layers look alike to a compiler
        self.decoder_layer = decoder_layer
        self.blind = blind  # no cross-attention so far: the same for equal texts
        self.last = last
        self.checkpointing = False
        self._seen = seen
        if hasattr(decoder_layer, "attention_type"):  # Qwen's, Gemma's: the decoder asks each layer which mask it wants
            self.attention_type = decoder_layer.attention_type

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The layer's own arguments and results."""
        seen = self._seen
        if self.last and seen.stop:
            seen.stopped = hidden_states
            return hidden_states, None
        if self.blind and seen.first is not None and not any(isinstance(value, Tensor) for value in args):
            kwargs = {name: _rows(kwargs[name], seen.first) if name in _BY_ROW else kwargs[name] for name in kwargs}
            out = self._run(None, None, hidden_states[seen.first], *args, **kwargs)
            return (out[0][seen.owner], *out[1:]) if isinstance(out, tuple) else out[seen.owner]
        inputs = (seen.latents, seen.after, hidden_states)
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(self._run, *inputs, *args, use_reentrant=False, **kwargs)
        return self._run(*inputs, *args, **kwargs)

    def _run(self, latents: Tensor | None, after: Tensor | None, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.gated_cross_attn_layer is not None and latents is not None:
            x = self.gated_cross_attn_layer(x, latents, after)
        return self.decoder_layer(x, *args, **kwargs)


_BY_ROW = ("attention_mask", "position_ids", "position_embeddings")
"""Arguments of decoder layers that have a row for each text (or one for all)."""


def _rows(value: Any, which: Tensor) -> Any:
    if isinstance(value, tuple):
        return tuple(_rows(item, which) for item in value)
    return value[which] if isinstance(value, Tensor) and value.shape[0] > 1 else value


class FlamingoOutput(dict[str, Tensor]):
    """A pass's results by name, also as attributes: clip_tokens, latents, last_hidden, pose, gripper, losses."""

    def __getattr__(self, name: str) -> Tensor:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Flamingo(nn.Module):
    """The network.

    Args:
        vision: CLIP's tower. language: a Hugging Face causal language model; its layers are wrapped in place.
        head: policy head on the decoder's last hidden states.
        every: cross-attention before every that-many-th layer, counted from the first (4: layers 3, 7, ...).
        media_token: id of "<image>". resampler_depth, latents: of the resampler.
        history: the MLP head's memory in the paper: a learned embedding of the step is added to each frame's tokens,
            and the text looks at all frames of the window at once; the decoder then runs once a window.
        early: the head reads the last layer's input, as the released code does with MPT-1B; see `flamingo_mosaic`.
        window: steps of a window, for `history` and for `forward`.
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
        self._seen = Seen()
        self._wrap(width)

    def _wrap(self, width: int) -> None:
        layers = self.layers
        text_width = self.lang_encoder.config.hidden_size
        for index, layer in enumerate(layers):
            gated = GatedCrossAttention(text_width, width) if (index + 1) % self.every == 0 else None
            layers[index] = FlamingoLayer(layer, gated, index + 1 < self.every, index + 1 == len(layers), self._seen)

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder's layers, wrapped."""
        return self.lang_encoder.get_submodule(layers_path(self.lang_encoder))

    def enable_checkpointing(self, on: bool = True) -> None:
        """Compute activations of the trained parts and of the decoder's layers again in the backward pass."""
        self.checkpointing = on
        for layer in self.layers:
            layer.checkpointing = on

    @torch.no_grad()
    def look(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (n, 3, S, S) -> tokens (n, v, width) of the frozen tower."""
        tokens: Tensor = self.vision_encoder(pixels)
        return tokens

    def resample(self, tokens: Tensor) -> Tensor:
        """Tokens (n, C, v, width) of C cameras -> latents (n, C * m, width), camera by camera."""
        n, cameras = tokens.shape[:2]
        flat = tokens.flatten(0, 1)
        if self.checkpointing and self.training:
            latents = checkpoint(self.perceiver, flat, use_reentrant=False)
        else:
            latents = self.perceiver(flat)
        return latents.unflatten(0, (n, cameras)).flatten(1, 2)

    def read(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        latents: Tensor,
        owner: Tensor | None = None,
        early: bool = False,
    ) -> Tensor:
        """Read texts while looking at latents: the decoder's last hidden states, after its final norm.

        Args:
            input_ids: (t, L); tokens before the first `media_token` see nothing.
            attention_mask: (t, L), True or 1 for real tokens, padding on the right.
            latents: (n, m, width).
            owner: int64 (n,), which text each of the latents is read with; every text has one. None: in order, t = n.
            early: give the last layer's input instead.

        Returns:
            (n, L, text width).
        """
        seen = self._seen
        if owner is not None:
            rows = torch.arange(len(owner), device=owner.device)
            seen.first = rows.new_empty(len(input_ids)).scatter_(0, owner, rows)
            seen.owner = owner
            input_ids, attention_mask = input_ids[owner], attention_mask[owner]
        embeds = self.lang_encoder.get_input_embeddings()(input_ids).to(self.text_dtype)
        seen.latents, seen.after = latents, (input_ids == self.media_token).cumsum(1) > 0
        seen.stop = early
        try:
            out = self.lang_encoder.base_model(
                inputs_embeds=embeds, attention_mask=attention_mask.long(), use_cache=False
            )
            stopped = seen.stopped
        finally:
            seen.latents = seen.after = seen.first = seen.owner = seen.stopped = None
            seen.stop = False
        if stopped is not None:
            return stopped
        return out.last_hidden_state

    @property
    def text_dtype(self) -> torch.dtype:
        """Type of the decoder's hidden states: that of its first norm, which no quantisation touches."""
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
            input_ids: (n, L), one text a window.
            attention_mask: (n, L).
            frames: int64 (n, W): which of `tokens` each step shows; None: all of them, in order.

        Returns:
            (n, W, L, text width); with `history` (n, 1, L, text width).
        """
        n = input_ids.shape[0]
        if self.history:
            index = torch.arange(tokens.shape[0], device=tokens.device).view(n, -1) if frames is None else frames
            window = tokens[index] + self.frame_embs[-index.shape[1] :, None, None].to(tokens.dtype)
            latents = self.resample(window.flatten(0, 1)).unflatten(0, (n, -1)).flatten(1, 2)
            return self.read(input_ids, attention_mask, latents, early=self.early).unsqueeze(1)
        latents = self.resample(tokens)
        rows = torch.arange(n, device=latents.device)
        if frames is None:
            steps = latents.shape[0] // n
            hidden = self.read(input_ids, attention_mask, latents, rows.repeat_interleave(steps), self.early)
            return hidden.unflatten(0, (n, steps))
        owner = rows.new_empty(latents.shape[0])
        owner[frames.flatten()] = rows.repeat_interleave(frames.shape[1])
        return self.read(input_ids, attention_mask, latents, owner, self.early)[frames]

    def forward(
        self,
        vision_x: Tensor,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        vision_gripper: Tensor | None = None,
        actions: Tensor | None = None,
        lang_x: Tensor | None = None,
        gripper_weight: float = 0.01,
    ) -> FlamingoOutput:
        """A pass as the released code makes it: every token pooled, padding included, every step shown.

        Args:
            vision_x: normalised pixels (n * W, 1, 1, 3, S, S) or (n * W, 3, S, S).
            input_ids: (n, L), or (n * W, L) repeated for each step.
            attention_mask: like `input_ids`.
            vision_gripper: like `vision_x`, of the second camera.
            actions: (n, W, 7) or (n, W, K, 7), the gripper -1 or 1; adds the losses.
            lang_x: the released name of `input_ids`.
            gripper_weight: of the gripper's loss.

        Returns:
            clip_tokens (n * W, v, width) and latents (n * W, 1, m, width) of the static camera, last_hidden
            (n * W, L, text width), pose (n, W, 6 * K), gripper (n, W, K), and with actions loss_num (Huber on the
            pose), loss_bin (cross-entropy of the gripper) and loss = loss_num + gripper_weight * loss_bin.
        """
        ids = input_ids if input_ids is not None else lang_x
        if ids is None or attention_mask is None:
            raise TypeError("forward needs input_ids (or lang_x) and attention_mask")
        views = [view.flatten(0, -4) for view in (vision_x, vision_gripper) if view is not None]
        tokens = torch.stack([self.look(view) for view in views], 1)
        if self.window > 1 and ids.shape[0] == tokens.shape[0]:
            ids, attention_mask = ids[:: self.window], attention_mask[:: self.window]
        hidden = self.features(tokens, ids, attention_mask)
        pose, logits = self.lm_head(hidden, logits=True)
        out = FlamingoOutput(
            clip_tokens=tokens[:, 0],
            latents=self.perceiver(tokens[:, 0]).unsqueeze(1),
            last_hidden=hidden.flatten(0, 1),
            pose=pose,
            gripper=logits.sigmoid(),
        )
        if actions is not None:
            chunk = self.lm_head.chunk
            target = actions.unflatten(-1, (1, 7)) if actions.dim() == 3 else actions
            target = torch.cat([target[..., :POSE], (target[..., POSE:] + 1) / 2], -1)
            numbers, binary = policy_losses(pose.unflatten(-1, (chunk, POSE)), logits.unsqueeze(-1), target)
            out.update(loss_num=numbers.mean(), loss_bin=binary.mean())
            out["loss"] = out["loss_num"] + gripper_weight * out["loss_bin"]
        return out

    def trained_names(self, embeddings: bool) -> list[str]:
        """Names of the modules and parameters that are trained; everything else stays frozen."""
        names = [name for name, module in self.named_modules() if isinstance(module, GatedCrossAttention)]
        names += ["perceiver", "lm_head"]
        if embeddings:
            table = self.lang_encoder.get_input_embeddings()
            names += [name for name, module in self.named_modules() if module is table]
        return names


def freeze(net: Flamingo, embeddings: bool) -> None:
    """Train the cross-attention, the resampler, the head and, if asked, the input embeddings; freeze the rest."""
    net.requires_grad_(False)
    for name in net.trained_names(embeddings):
        net.get_submodule(name).requires_grad_(True)
    if net.history:
        net.frame_embs.requires_grad_(True)
