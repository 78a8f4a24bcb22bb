"""RoboFlamingo networks with random weights, tiny or full size, for benchmarks and tests."""

from __future__ import annotations

from typing import Any, Literal

import torch

from oxe_curate.train.models.roboflamingo.config import HeadSpec
from oxe_curate.train.models.roboflamingo.net import Flamingo
from oxe_curate.train.models.roboflamingo.vit import ClipShape, ClipTower

FlamingoSize = Literal["tiny", "3b", "9b"]
DecoderName = Literal["mpt", "llama", "gpt_neox", "opt"]


def vision_shape(size: FlamingoSize) -> ClipShape:
    """ViT-L/14 at 224 px, or a tower with two blocks at 28 px."""
    return ClipShape(width=32, layers=2, heads=2, image_size=28, mlp_width=64) if size == "tiny" else ClipShape()


def language_config(size: FlamingoSize, decoder: DecoderName = "mpt", vocabulary: int | None = None) -> dict[str, Any]:
    """Configuration of a decoder: MPT-1B ("3b"), MPT-7B ("9b"), or a tiny one of any kind.

    Args:
        size: of the whole model, with OpenFlamingo's names.
        decoder: kind of a tiny decoder.
        vocabulary: rows of the embedding; default 50280 (MPT's tokenizer with Flamingo's tokens) or 64.
    """
    rows = vocabulary or (64 if size == "tiny" else 50280)
    if size != "tiny":
        width, layers, heads = (2048, 24, 16) if size == "3b" else (4096, 32, 32)
        shape = {"d_model": width, "n_layers": layers, "n_heads": heads, "max_seq_len": 2048}
        return {"model_type": "mpt", "vocab_size": rows, **shape}
    ids = {"vocab_size": rows, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if decoder == "mpt":
        return {"model_type": "mpt", "d_model": 32, "n_layers": 4, "n_heads": 2, "max_seq_len": 64, **ids}
    shape = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "max_position_embeddings": 64}
    wide = {"ffn_dim": 64, "word_embed_proj_dim": 32} if decoder == "opt" else {"intermediate_size": 64}
    return {"model_type": decoder, **shape, **wide, **ids}


def interval(size: FlamingoSize) -> int:
    """Interval of layers with cross-attention: 1 in OpenFlamingo-3B, 4 in 9B."""
    return {"tiny": 2, "3b": 1, "9b": 4}[size]


def random_flamingo(
    size: FlamingoSize,
    device: torch.device | str,
    dtype: torch.dtype,
    head: HeadSpec | None = None,
    decoder: DecoderName = "mpt",
) -> Flamingo:
    """Make a network with random weights on a device; gates are slightly open, so that gradients flow.

    Args:
        size: "3b": CLIP ViT-L/14 and an MPT-1B; "9b": with an MPT-7B; or "tiny".
        device: of the weights.
        dtype: of the weights.
        head: default: the released LSTM.
        decoder: kind of a tiny decoder.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = language_config(size, decoder)
    media = settings["vocab_size"] - 1
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    head = head or HeadSpec()
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            language = AutoModelForCausalLM.from_config(config, dtype=dtype)
            made = head.build(config.hidden_size)
            net = Flamingo(
                ClipTower(vision_shape(size)), language, made, interval(size), media, head.window,
                *((2, 4) if size == "tiny" else (6, 64)), history=head.history and head.kind == "mlp",
            )  # fmt: skip
    finally:
        torch.set_default_dtype(before)
    for layer in net.layers:
        if layer.gated_cross_attn_layer is not None:
            layer.gated_cross_attn_layer.attn_gate.data.fill_(0.3)
            layer.gated_cross_attn_layer.ff_gate.data.fill_(0.3)
    return net
