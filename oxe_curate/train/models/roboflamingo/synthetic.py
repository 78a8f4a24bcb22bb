"""RoboFlamingo bases of random weights, tiny or of full size, for tests and measurements."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch

from oxe_curate.train.models.roboflamingo.clip_vit import ClipShape, ClipViT
from oxe_curate.train.models.roboflamingo.config import CONFIG, END, IMAGE, LANGUAGE, MODEL_TYPE, WEIGHTS, HeadSpec
from oxe_curate.train.models.roboflamingo.net import Flamingo

FlamingoSize = Literal["tiny", "3b", "9b"]
DecoderName = Literal["mpt", "llama", "gpt_neox", "opt"]

_WORDS = (
    "put move pick up lift place drawer open close pot cup in on from into the a red blue green what is short answer"
)


def vision_shape(size: FlamingoSize) -> ClipShape:
    """ViT-L/14 at 224 pixels, or a tower of two blocks at 28."""
    return ClipShape(width=32, layers=2, heads=2, image_size=28, mlp_width=64) if size == "tiny" else ClipShape()


def language_config(size: FlamingoSize, decoder: DecoderName = "mpt", vocabulary: int | None = None) -> dict[str, Any]:
    """Return a decoder's configuration: MPT-1B's ("3b") or MPT-7B's ("9b") shape, or a tiny one of any kind.

    Args:
        size: of the whole model, as OpenFlamingo names them.
        decoder: "3b" and "9b" are MPTs.
        vocabulary: rows of the embedding; 50280 (both MPTs' tokenizer with Flamingo's tokens) or 64.
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
    """Cross-attention before every that-many-th layer, as in OpenFlamingo's 3B (1) and 9B (4)."""
    return {"tiny": 2, "3b": 1, "9b": 4}[size]


def random_model(
    size: FlamingoSize,
    device: torch.device | str,
    dtype: torch.dtype,
    head: HeadSpec | None = None,
    decoder: DecoderName = "mpt",
) -> Flamingo:
    """Make a network of random weights straight on a device; its gates are open a little, so that gradients flow.

    Args:
        size: "3b": CLIP ViT-L/14 and an MPT-1B; "9b": with an MPT-7B; or "tiny".
        device: where it is made.
        dtype: of all weights.
        head: default the released LSTM.
        decoder: of a tiny one.
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
                ClipViT(vision_shape(size)), language, made, interval(size), media, head.window,
                *((2, 4) if size == "tiny" else (6, 64)), history=head.history and head.kind == "mlp",
            )  # fmt: skip
    finally:
        torch.set_default_dtype(before)
    for layer in net.layers:
        if layer.gated_cross_attn_layer is not None:
            layer.gated_cross_attn_layer.attn_gate.data.fill_(0.3)
            layer.gated_cross_attn_layer.ff_gate.data.fill_(0.3)
    return net


def write_base(
    folder: str | Path,
    *,
    decoder: DecoderName = "mpt",
    words: Iterable[str] = (),
    head: HeadSpec | None = None,
    whole: bool = False,
    seed: int = 0,
) -> Path:
    """Write a tiny base folder of random weights, as `flamingo.py` describes it.

    Args:
        folder: made if need be.
        decoder: the language model's kind.
        words: more words for the tokenizer; unknown ones become "<unk>".
        head: sizes of the head, by default small ones; trained heads start anew.
        whole: one file with all weights, its head included, and no vision/; else a CLIP folder, a language model's
            folder and OpenFlamingo's part.
        seed: of the weights.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    head = head or HeadSpec(window=4, hidden=32, layers=2, heads=4)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = random_model("tiny", "cpu", torch.float32, head, decoder)
    (folder / LANGUAGE).mkdir(parents=True, exist_ok=True)
    _write_tokenizer(folder / LANGUAGE, words)
    told: dict[str, Any] = {
        "model_type": MODEL_TYPE,
        "cross_attn_every_n_layers": interval("tiny"),
        "window": head.window,
        "head": {key: value for key, value in asdict(head).items() if value is not None},
    }
    shape = vision_shape("tiny")
    weights = {n: p.detach() for n, p in net.named_parameters()}
    if whole:
        told |= {"vision": asdict(shape), "language": language_config("tiny", decoder)}
    else:
        vision = {"model_type": "clip_vision_model", "hidden_size": shape.width, "num_hidden_layers": shape.layers}
        vision |= {"num_attention_heads": shape.heads, "patch_size": shape.patch, "image_size": shape.image_size}
        vision |= {"intermediate_size": shape.mlp_width, "hidden_act": "quick_gelu"}
        (folder / "vision").mkdir(exist_ok=True)
        (folder / "vision" / CONFIG).write_text(json.dumps(vision, indent=2) + "\n")
        save_file(_as_transformers(net.vision_encoder.visual), folder / "vision" / "model.safetensors")
        language = net.lang_encoder
        for index, layer in enumerate(net.layers):
            net.layers[index] = layer.decoder_layer
        language.save_pretrained(folder / LANGUAGE)
        part = ("perceiver.", "lm_head.", "frame_embs")
        embeddings = next(n for n, m in net.named_modules() if m is language.get_input_embeddings())
        weights = {
            name: value
            for name, value in weights.items()
            if name.startswith((*part[:1], embeddings)) or ".gated_cross_attn_layer." in name
        }
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(told, indent=2) + "\n")
    return folder


def _as_transformers(tower: ClipViT) -> dict[str, torch.Tensor]:
    """A tower's weights by transformers' names: what `from_transformers` undoes."""
    state = {name: value.detach() for name, value in tower.state_dict().items()}
    out = {
        "vision_model.embeddings.class_embedding": state["class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": state["conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": state["positional_embedding"],
        "vision_model.pre_layrnorm.weight": state["ln_pre.weight"],
        "vision_model.pre_layrnorm.bias": state["ln_pre.bias"],
    }
    names = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj"}
    names |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    for index in range(tower.shape.layers):
        ours, theirs = f"transformer.resblocks.{index}.", f"vision_model.encoder.layers.{index}."
        for kind in ("weight", "bias"):
            for name, other in names.items():
                out[f"{theirs}{other}.{kind}"] = state[f"{ours}{name}.{kind}"]
            for letter, part in zip("qkv", state[f"{ours}attn.in_proj_{kind}"].chunk(3), strict=True):
                out[f"{theirs}self_attn.{letter}_proj.{kind}"] = part.contiguous()
    return {name: value.contiguous() for name, value in out.items()}


def _write_tokenizer(folder: Path, words: Iterable[str]) -> None:
    """A tokenizer of whole words, 64 ids at most with Flamingo's tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokens = [*["<pad>", "<s>", "</s>", "<unk>", ":", *dict.fromkeys([*_WORDS.split(), *words])][:62], END, IMAGE]
    made = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens([END, IMAGE, "<pad>", "<s>", "</s>"])
    made.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "additional_special_tokens": [END, IMAGE],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
