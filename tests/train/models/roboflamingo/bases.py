"""Tiny RoboFlamingo base folders with random weights."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from oxe_curate.train.models.roboflamingo.config import CONFIG, END, IMAGE, LANGUAGE, MODEL_TYPE, WEIGHTS, HeadSpec
from oxe_curate.train.models.roboflamingo.names import to_published
from oxe_curate.train.models.roboflamingo.synthetic import (
    DecoderName,
    interval,
    language_config,
    random_flamingo,
    vision_shape,
)

_WORDS = (
    "put move pick up lift place drawer open close pot cup in on from into the a red blue green what is short answer"
)


def write_base(
    folder: str | Path,
    *,
    decoder: DecoderName = "mpt",
    words: Iterable[str] = (),
    head: HeadSpec | None = None,
    whole: bool = False,
    seed: int = 0,
) -> Path:
    """Write a tiny base folder with random weights; see `oxe_curate.train.models.roboflamingo.model`.

    Args:
        folder: created if missing.
        decoder: the language model's kind.
        words: further words of the tokenizer; others become "<unk>".
        head: sizes of the head (default: small).
        whole: write one file with all weights, head included, and no vision/; otherwise a CLIP folder, a language
            model's folder and OpenFlamingo's part.
        seed: of the weights.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    head = head or HeadSpec(window=4, hidden=32, layers=2, heads=4)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = random_flamingo("tiny", "cpu", torch.float32, head, decoder)
    (folder / LANGUAGE).mkdir(parents=True, exist_ok=True)
    _write_tokenizer(folder / LANGUAGE, words)
    config: dict[str, Any] = {
        "model_type": MODEL_TYPE,
        "cross_attn_every_n_layers": interval("tiny"),
        "window": head.window,
        "head": {key: value for key, value in asdict(head).items() if value is not None},
    }
    shape = vision_shape("tiny")
    weights = to_published({n: p.detach() for n, p in net.named_parameters()})
    if whole:
        config |= {"vision": asdict(shape), "language": language_config("tiny", decoder)}
    else:
        vision = {"model_type": "clip_vision_model", "hidden_size": shape.width, "num_hidden_layers": shape.layers}
        vision |= {"num_attention_heads": shape.heads, "patch_size": shape.patch, "image_size": shape.image_size}
        vision |= {"intermediate_size": shape.mlp_width, "hidden_act": "quick_gelu"}
        (folder / "vision").mkdir(exist_ok=True)
        (folder / "vision" / CONFIG).write_text(json.dumps(vision, indent=2) + "\n")
        tower = {f"vision_model.{name}": value for name, value in net.vision_encoder.visual.state_dict().items()}
        save_file(tower, folder / "vision" / "model.safetensors")
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
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    return folder


def _write_tokenizer(folder: Path, words: Iterable[str]) -> None:
    """Write a word-level tokenizer with up to 64 ids, Flamingo's tokens included."""
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
