"""MPT-1B as OpenFlamingo-3B uses it: "mosaic_gpt", the first MPT, whose own code transformers cannot run any more.

It is today's MPT with a norm on queries and keys and other names for its layers. One thing differs in use: its code
reports as last hidden states the input of its last layer, not the output of its final norm, and the released
RoboFlamingo takes what is reported. So its heads were trained on that, its last layer and the cross-attention before
it have no part in a policy, and `Flamingo.early` says so here.
"""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from oxe_curate.errors import ConfigError
from oxe_curate.train.models.roboflamingo.names import read_weights

_MODEL_TYPE = "mosaic_gpt"


def read_mosaic_config(folder: Path) -> dict[str, Any] | None:
    """Today's MPT configuration of a folder with a "mosaic_gpt" in it; None for a folder with anything else.

    Raises:
        ConfigError: a model of that kind that OpenFlamingo never used.
    """
    where = folder / "config.json"
    if not where.is_file():
        return None
    data = json.loads(where.read_text(encoding="utf-8"))
    if data.get("model_type") != _MODEL_TYPE:
        return None
    told = {"alibi": True, "no_bias": True, "prefix_lm": False, "mlp_ratio": 4, "embedding_fraction": 1}
    other = {key: data[key] for key, value in told.items() if key in data and data[key] != value}
    if other:
        raise ConfigError(f"{where}: {other}: only MPT-1B's kind of mosaic_gpt is known, with {told}")
    return {
        "model_type": "mpt",
        "vocab_size": data["vocab_size"],
        **{key: data[key] for key in ("d_model", "n_heads", "n_layers", "max_seq_len")},
        "attn_config": {
            "qk_ln": bool(data.get("attn_qk_ln", False)),
            "clip_qkv": data.get("attn_clip_qkv"),
            "softmax_scale": data.get("softmax_scale"),
            "alibi_bias_max": int(data.get("alibi_bias_max", 8)),
        },
    }


def read_language(folder: Path) -> dict[str, Tensor]:
    """Its weights as a Flamingo checkpoint names them.

    Raises:
        ConfigError: no weights.
    """
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise ConfigError(f"{folder}: holds no *.safetensors and no pytorch_model*.bin")
    return {f"lang_encoder.{name}": value for file in files for name, value in read_weights(file).items()}


def add_norms(language: nn.Module) -> None:
    """Give an MPT whose configuration asks for it the norm on queries and keys, which transformers leaves out."""
    settings: Any = getattr(language.config, "attn_config", None)
    if not getattr(settings, "qk_ln", False):
        return
    if settings.clip_qkv:
        raise ConfigError("an MPT that both clips and normalises its queries is not supported")
    weight = language.get_input_embeddings().weight
    for block in language.transformer.blocks:
        attention = block.attn
        for name in ("q_ln", "k_ln"):
            norm = nn.LayerNorm(language.config.hidden_size, bias=False, dtype=weight.dtype, device=weight.device)
            attention.add_module(name, norm)
        # not a hook on the projection: quantisation and LoRA put other modules in its place
        attention.forward = types.MethodType(_attend, attention)


def _attend(
    self: Any, hidden_states: Tensor, position_bias: Tensor, attention_mask: Tensor | None = None, **_: Any
) -> tuple[Tensor, None]:
    """MPT's attention with normalised queries and keys, each over the whole width; no cache of keys."""
    q, k, v = self.Wqkv(hidden_states).chunk(3, -1)
    heads = (self.q_ln(q).to(v.dtype), self.k_ln(k).to(v.dtype), v)
    q, k, v = (part.unflatten(-1, (self.n_heads, self.head_dim)).transpose(1, 2) for part in heads)
    bias = position_bias[..., -k.shape[2] :].to(q.dtype)
    if attention_mask is not None:  # True where nothing may be seen
        bias = bias.masked_fill(attention_mask, torch.finfo(q.dtype).min)
    out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.softmax_scale)
    return self.out_proj(out.transpose(1, 2).flatten(2)), None


def is_early(data: Mapping[str, Any], folder: Path) -> bool:
    """Whether the policy reads the last layer's input: said by "features", or by what language/ holds."""
    told = data.get("features")
    if told not in (None, "final", "last-input"):
        raise ConfigError(f'{folder}: features: {told!r} is not known. Known: "final", "last-input".')
    return told == "last-input" if told else read_mosaic_config(folder) is not None
