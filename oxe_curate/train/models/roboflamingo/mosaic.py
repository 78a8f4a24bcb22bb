"""MPT-1B, the decoder of OpenFlamingo-3B: "mosaic_gpt", the first MPT, whose code current transformers cannot run.

It is an MPT with norms on queries and keys and other layer names. Its code returns the input of its last layer as the
last hidden states instead of the output of the final norm, and the released RoboFlamingo heads were trained on these.
So the last layer and its cross-attention do not take part in the policy; see `Flamingo.early`.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from oxe_curate.errors import ConfigError
from oxe_curate.inputs import load_json
from oxe_curate.train.models.roboflamingo.names import read_weights

_MODEL_TYPE = "mosaic_gpt"


def read_mosaic_config(folder: Path) -> dict[str, Any] | None:
    """Convert the configuration of a folder with a "mosaic_gpt" to transformers' MPT; None for other models.

    Raises:
        ConfigError: a variant that OpenFlamingo does not use.
    """
    where = folder / "config.json"
    if not where.is_file():
        return None
    data = load_json(where, constants=True)
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected a JSON object")
    if data.get("model_type") != _MODEL_TYPE:
        return None
    supported = {"alibi": True, "no_bias": True, "prefix_lm": False, "mlp_ratio": 4, "embedding_fraction": 1}
    other = {key: data[key] for key, value in supported.items() if key in data and data[key] != value}
    if other:
        raise ConfigError(f"{where}: unsupported mosaic_gpt with {other}; expected {supported}")
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
    """Its weights under the names of a Flamingo checkpoint.

    Raises:
        ConfigError: no weights.
    """
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise ConfigError(f"{folder}: no *.safetensors or pytorch_model*.bin found")
    return {f"lang_encoder.{name}": value for file in files for name, value in read_weights(file).items()}


def add_norms(language: nn.Module) -> None:
    """Add the norms on queries and keys to an MPT with qk_ln, which transformers ignores."""
    settings: Any = getattr(language.config, "attn_config", None)
    if not getattr(settings, "qk_ln", False):
        return
    if settings.clip_qkv:
        raise ConfigError("an MPT with both clip_qkv and qk_ln is not supported")
    weight = language.get_input_embeddings().weight
    for block in language.transformer.blocks:
        attention = block.attn
        for name in ("q_ln", "k_ln"):
            norm = nn.LayerNorm(language.config.hidden_size, bias=False, dtype=weight.dtype, device=weight.device)
            attention.add_module(name, norm)
        # not a hook on the projection, which quantization and LoRA replace
        attention.forward = types.MethodType(_attend, attention)


def _attend(
    self: Any, hidden_states: Tensor, position_bias: Tensor, attention_mask: Tensor | None = None, **_: Any
) -> tuple[Tensor, None]:
    """MPT's attention with queries and keys normalized over the full width; without a cache."""
    q, k, v = self.Wqkv(hidden_states).chunk(3, -1)
    heads = (self.q_ln(q).to(v.dtype), self.k_ln(k).to(v.dtype), v)
    q, k, v = (part.unflatten(-1, (self.n_heads, self.head_dim)).transpose(1, 2) for part in heads)
    bias = position_bias[..., -k.shape[2] :].to(q.dtype)
    if attention_mask is not None:  # True for masked positions
        bias = bias.masked_fill(attention_mask, torch.finfo(q.dtype).min)
    out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.softmax_scale)
    return self.out_proj(out.transpose(1, 2).flatten(2)), None


def is_early(data: Mapping[str, Any], folder: Path) -> bool:
    """Whether the policy uses the input of the last layer: key "features", default True for mosaic_gpt."""
    given = data.get("features")
    if given not in (None, "final", "last-input"):
        raise ConfigError(f'{folder}: features: expected "final" or "last-input", got {given!r}')
    return given == "last-input" if given else read_mosaic_config(folder) is not None
