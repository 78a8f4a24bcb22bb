"""Compose a new OpenVLA base from a causal language model and the vision towers of a checkpoint or of timm.

The projector is random, so the model must be trained before use. The action tokens must be made for the language
model's tokenizer (`tokenize --tokenizer FOLDER`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from oxe_curate.actions.tokenizers import candidates, read_vocabulary
from oxe_curate.errors import ConfigError
from oxe_curate.inputs import load_json
from oxe_curate.train.models.openvla.config import Architecture, published_config
from oxe_curate.train.models.openvla.model import MAX_FILE_BYTES, OpenVLA
from oxe_curate.train.models.openvla.projector import Projector
from oxe_curate.train.models.openvla.synthetic import tensor_shapes
from oxe_curate.train.models.pixels import PREPROCESSOR, PixelNormalizer
from oxe_curate.train.models.weights import Checkpoint, StoredTensor, plan_files, skeleton, write_weights

_LazyTensor = Callable[[], torch.Tensor]

_TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt", "vocab.json")
_DINO, _SIGLIP = "vision_backbone.featurizer.", "vision_backbone.fused_featurizer."
_PATCHES = 256  # of 14 px in a 224 px image
_NEVER = ("head.", "mask_token", "fc_norm.")  # unused tensors in timm's files


def compose_checkpoint(
    language_model: str | Path,
    vision: str | Path | tuple[str | Path, str | Path],
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> Path:
    """Write a checkpoint in OpenVLA's layout, as a base for training.

    Args:
        language_model: folder of a causal language model (Llama 3, Qwen 2.5 ...): config.json, safetensors, tokenizer.
        vision: an OpenVLA checkpoint, for its towers; or two folders of timm's safetensors, DINOv2
            (vit_large_patch14_reg4_dinov2.lvd142m) and SigLIP (vit_so400m_patch14_siglip_224).
        folder: output, created if missing.
        dtype: of the written weights.
        seed: of the projector.

    Returns:
        the folder.

    Raises:
        ConfigError: an invalid folder, or weights that do not match.
    """
    language_model, folder = Path(language_model), Path(folder)
    text = _text_config(language_model)
    rows = int(text["vocab_size"])
    padding = rows - read_vocabulary(language_model).size
    if padding < 0:
        raise ConfigError(
            f"{language_model}: the tokenizer has {rows - padding} tokens, but the embedding only {rows} rows"
        )
    described: dict[str, Any] = {}
    sources: dict[str, _LazyTensor] = {}
    normalizer = PixelNormalizer()
    if isinstance(vision, tuple):
        for path, prefix in zip(vision, (_DINO, _SIGLIP), strict=True):
            sources |= _timm(Path(path), prefix)
    else:
        described, normalizer, sources = _towers(Path(vision))
    config = published_config(text, 224, padding, language_model.name) | {"llm_backbone_id": language_model.name}
    architecture = Architecture.of(config | described, str(language_model))
    shapes, needed = dict(tensor_shapes(architecture)), _needed(architecture)
    sources |= _language_model(language_model, needed) | _projector(architecture, seed)
    missing = sorted(needed - set(sources))
    if missing:
        raise ConfigError(f"{len(missing)} tensors are missing: {', '.join(missing[:3])}")
    shards = {name: StoredTensor("", shape, dtype) for name, shape in shapes.items() if name in sources}

    def get(name: str) -> torch.Tensor:
        tensor = sources[name]()
        if tuple(tensor.shape) != shards[name].shape:
            raise ConfigError(f"{name}: expected shape {list(shards[name].shape)}, got {list(tensor.shape)}")
        return tensor.to(dtype)

    folder.mkdir(parents=True, exist_ok=True)
    write_weights(folder, plan_files(shards, MAX_FILE_BYTES), get)
    architecture.write(folder)
    (folder / PREPROCESSOR).write_text(json.dumps(normalizer.to_json(architecture.image_size), indent=2) + "\n")
    for name in {*_TOKENIZER, *(path.name for path in candidates(language_model))}:
        if (language_model / name).is_file():
            shutil.copyfile(language_model / name, folder / name)
    return folder


def _text_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config: dict[str, Any] = load_json(path, constants=True)
    except ConfigError as error:
        raise ConfigError(f"{error}; not the configuration of a language model") from None
    if not isinstance(config, dict):
        raise ConfigError(f"{path}: not the configuration of a language model: expected a JSON object")
    if "model_type" not in config or "vocab_size" not in config:
        raise ConfigError(f"{path}: model_type or vocab_size is missing; expected a causal language model")
    return config


def _language_model(folder: Path, needed: set[str]) -> dict[str, _LazyTensor]:
    """Tensors of the files, or of the loaded model if transformers has renamed them since."""
    opened = Checkpoint.open(folder)
    names = {f"language_model.{name}": name for name in opened.tensors}
    if all(name in names for name in needed if name.startswith("language_model.")):
        return {new: lambda name=name: opened.tensor(name) for new, name in names.items()}  # type: ignore[misc]
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True)
    return {f"language_model.{n}": lambda p=p: p.detach() for n, p in model.named_parameters()}  # type: ignore[misc]


def _towers(folder: Path) -> tuple[dict[str, Any], PixelNormalizer, dict[str, _LazyTensor]]:
    """Configuration, normalization and tensors of a checkpoint's towers."""
    architecture, opened = Architecture.read(folder), Checkpoint.open(folder)
    keys = ("image_sizes", "timm_model_ids", "vision_backbone_id", "use_fused_vision_backbone", "vision_transformers")
    described = {key: architecture.config[key] for key in keys if key in architecture.config}
    names = [name for name in opened.tensors if name.startswith("vision_backbone.")]
    sources: dict[str, _LazyTensor] = {name: lambda name=name: opened.tensor(name) for name in names}  # type: ignore[misc]
    return described, PixelNormalizer.read(folder, len(architecture.vits)), sources


def _projector(architecture: Architecture, seed: int) -> dict[str, _LazyTensor]:
    vision = sum(vit.embed_dim for vit in architecture.vits)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        projector = Projector(vision, architecture.width, fused=len(architecture.vits) == 2)
    return {f"projector.{n}": lambda p=p: p.detach() for n, p in projector.named_parameters()}  # type: ignore[misc]


def _timm(folder: Path, prefix: str) -> dict[str, _LazyTensor]:
    opened = Checkpoint.open(folder)
    found: dict[str, _LazyTensor] = {}
    for stored in opened.tensors:
        name = stored.removeprefix("visual.trunk.").replace(".gamma", ".scale_factor")
        if name.startswith(_NEVER) or (stored == name and stored.startswith(("text.", "logit_"))):
            continue

        def read(stored: str = stored, name: str = name) -> torch.Tensor:
            tensor = opened.tensor(stored)
            return resample_positions(tensor, _PATCHES) if name == "pos_embed" else tensor

        found[prefix + name] = read
    return found


def resample_positions(positions: torch.Tensor, patches: int) -> torch.Tensor:
    """Resample positions (1, n, width) of a square grid to `patches`: bicubic with antialiasing, as in timm."""
    count, width = positions.shape[1:]
    if count == patches:
        return positions
    old, new = int(count**0.5), int(patches**0.5)
    if old * old != count or new * new != patches:
        raise ConfigError(f"cannot resample positions: {count} to {patches} patches are not both squares")
    grid = positions.float().view(1, old, old, width).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", antialias=True)
    return grid.permute(0, 2, 3, 1).reshape(1, patches, width).to(positions.dtype)


def _needed(architecture: Architecture) -> set[str]:
    model = skeleton(lambda: OpenVLA(architecture))
    model.language_model.tie_weights()
    return {name for name, _ in model.named_parameters()}
