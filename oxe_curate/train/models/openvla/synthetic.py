"""Networks and checkpoints with random weights, tiny or full size, for the demo, benchmarks and tests."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from oxe_curate.errors import ConfigError
from oxe_curate.train.models.openvla.config import Architecture, published_config
from oxe_curate.train.models.openvla.model import OpenVLA
from oxe_curate.train.models.pixels import PixelNormalizer
from oxe_curate.train.models.weights import StoredTensor, plan_files, skeleton, write_weights

Size = Literal["tiny", "7b"]

_WORDS = "In What action should the robot take to Out put move pick up place drawer open close pot in on from"


def openvla_config(
    size: Size = "tiny", *, image_size: int | None = None, vocabulary: int | None = None, layers: int | None = None
) -> dict[str, Any]:
    """Content of config.json for a model with random weights.

    Args:
        size: "7b" is the released architecture; "tiny" has the same parts with widths of 32 to 64.
        image_size: in pixels, a multiple of 14; 224 or 28.
        vocabulary: size of the tokenizer, 32000 or 832 by default. The embedding has 64 more rows.
        layers: of the language model, 32 or 2.
    """
    full = size == "7b"
    image_size = image_size or (224 if full else 28)
    vocabulary = vocabulary or (32000 if full else 832)
    text: dict[str, Any] = {"model_type": "llama", "vocab_size": vocabulary + 64, "pad_token_id": vocabulary}
    if not full:
        text |= {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    if layers:
        text["num_hidden_layers"] = layers
    config = published_config({**text, "torch_dtype": "bfloat16"}, image_size, padding=64)
    if not full:
        config["timm_model_ids"] = ["vit_tiny_dinov2_random", "vit_tiny_siglip_random"]
        dino = {"embed_dim": 32, "depth": 3, "num_heads": 2, "init_values": 1e-5, "reg_tokens": 4}
        siglip = {"embed_dim": 48, "depth": 3, "num_heads": 3, "mlp_ratio": 3.7362, "class_token": False}
        config["vision_transformers"] = [{**dino, "no_embed_class": True}, {**siglip, "global_pool": "map"}]
    return config


def write_random_checkpoint(
    folder: str | Path,
    size: Size | dict[str, Any] = "tiny",
    *,
    tokenizer: str | Path | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    shard_bytes: int | None = None,
    deviation: float = 0.02,
) -> Path:
    """Write a checkpoint with random weights: configuration, sharded safetensors, tokenizer, preprocessor.

    Args:
        folder: created if missing.
        size: "tiny", "7b" or the content of a config.json (see `openvla_config`).
        tokenizer: a tokenizer.json; None: write a letter tokenizer with the model's vocabulary size.
        seed: of the weights; each tensor depends on its name and the seed only.
        dtype: of the stored weights.
        shard_bytes: size limit of a shard (default: 5 GB, or a third of a tiny model).
        deviation: standard deviation of matrices; 0.02 is Llama's, with which a tiny model learns slowly.

    Returns:
        the folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = openvla_config(size) if isinstance(size, str) else size
    architecture = Architecture.of(config)
    tensors = {name: StoredTensor("", shape, dtype) for name, shape in tensor_shapes(architecture)}
    total = sum(stored.size for stored in tensors.values())
    write_weights(
        folder,
        plan_files(dict(sorted(tensors.items())), shard_bytes or min(5_000_000_000, total // 3 + 1)),
        lambda name: random_tensor(name, tensors[name].shape, seed, deviation).to(dtype),
    )
    architecture.write(folder)
    _json(folder / "preprocessor_config.json", PixelNormalizer().to_json(architecture.image_size))
    vocabulary = config["text_config"]["vocab_size"] - config.get("pad_to_multiple_of", 64)
    if tokenizer is None:
        _json(folder / "tokenizer.json", letter_tokenizer(vocabulary))
    else:
        shutil.copyfile(tokenizer, folder / "tokenizer.json")
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<PAD>"}
    _json(folder / "special_tokens_map.json", special)
    _json(folder / "tokenizer_config.json", {**special, "tokenizer_class": "LlamaTokenizer", "padding_side": "right"})
    return folder


def tensor_shapes(architecture: Architecture) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of all tensors of a published checkpoint of this architecture, unused ones included."""
    model = skeleton(lambda: OpenVLA(architecture))
    model.language_model.tie_weights()
    yield from ((name, tuple(parameter.shape)) for name, parameter in model.named_parameters())
    for name, tower in model.vision_backbone.named_children():
        yield from ((f"vision_backbone.{name}.{key}", shape) for key, shape in tower.unused().items())


def random_tensor(name: str, shape: tuple[int, ...], seed: int = 0, deviation: float = 0.02) -> torch.Tensor:
    """float32: normal matrices with the given deviation, zero biases, other vectors one."""
    if name.endswith(".bias"):
        return torch.zeros(shape)
    if len(shape) == 1:
        return torch.ones(shape)
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
    return torch.empty(shape).normal_(0, deviation, generator=generator)


def random_openvla(
    architecture: Architecture,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    proprio: int = 0,
) -> OpenVLA:
    """A model with random weights, created on the device in evaluation mode.

    Weights have the distribution of `random_tensor`, but other values.
    """
    model = skeleton(lambda: OpenVLA(architecture.with_parts(proprio)))
    assert isinstance(model, OpenVLA)
    model.language_model.tie_weights()
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in list(model.named_parameters()):
        parent, _, leaf = name.rpartition(".")
        value = torch.empty(parameter.shape, device=device, dtype=dtype)
        if leaf == "bias":
            value.zero_()
        elif parameter.ndim == 1:
            value.fill_(1)
        else:
            value.normal_(0, 0.02, generator=generator)
        model.get_submodule(parent)._parameters[leaf] = nn.Parameter(value)
    model.language_model.tie_weights()
    for part in model.modules():
        for key, buffer in part._buffers.items():
            part._buffers[key] = None if buffer is None else buffer.to(device)
    model.eval()
    return model


def letter_tokenizer(vocabulary: int) -> dict[str, Any]:
    """Content of a tokenizer.json in the style of Llama 2: spaces are U+2581, unknown letters become bytes.

    Tokens are letters, the words of OpenVLA's prompt and Chinese characters, at least 256 as the last tokens, which
    serve as action tokens. `<PAD>` comes after `vocabulary` tokens.

    Raises:
        ConfigError: vocabulary too small.
    """
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581"]
    pieces += [chr(code) for code in range(0x21, 0x7F)]
    merges: list[str] = []
    for word in dict.fromkeys(_WORDS.split()):
        piece = "\u2581"
        for letter in word:
            if piece + letter not in pieces:
                merges.append(f"{piece} {letter}")
                pieces.append(piece + letter)
            piece += letter
    signs = vocabulary - len(pieces)
    if signs < 256:
        raise ConfigError(f"letter tokenizer: expected a vocabulary of at least {len(pieces) + 256}, got {vocabulary}")
    pieces += [chr(0x4E00 + i) for i in range(signs)]
    special = [(0, "<unk>"), (1, "<s>"), (2, "</s>"), (vocabulary, "<PAD>")]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": content, **flags} for i, content in special],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "\u2581"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, text],
            "pair": [bos, text, bos, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {piece: i for i, piece in enumerate(pieces)},
            "merges": merges,
        },
    }


def _json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
