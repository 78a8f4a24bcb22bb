"""Normalize the weight names of OpenFlamingo and RoboFlamingo checkpoints.

Common names: `perceiver.*`, `lang_encoder.<layers>.<i>.decoder_layer.*` and
`.gated_cross_attn_layer.*`, `vision_encoder.visual.*`, `lm_head.*` for the policy head. Differences:

- DataParallel's prefix `module.`; weights of a training checkpoint are under "model_state_dict";
- cross-attention is duplicated as `lang_encoder.gated_cross_attn_layers.<i>.*`, decoder layers as
  `lang_encoder.old_decoder_blocks.<i>.*`, the head as `action_head.*`;
- the first MPT ("mosaic_gpt") calls its layers `ln_1`, `mlp.mlp_up`, ... instead of `norm_1`, `ffn.up_proj`, ...;
- CLIP has open_clip's names, but the network uses transformers' `CLIPVisionModel`;
- constants (attention masks) saved as weights; CLIP's unused final norm, projection and text tower.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from oxe_curate.errors import ConfigError, CorruptError
from oxe_curate.train.models.roboflamingo.vit import from_open_clip, to_open_clip

TOWER = "vision_encoder.visual."

_UNUSED = re.compile(
    r"vision_encoder\.(?!visual\.)|vision_encoder\.visual\.(ln_post\.|proj$)|lm_head\.gpt\.h\.\d+\.attn\.(bias|masked_bias)$"
    r"|lm_head\.gpt\.wte\.|lang_encoder\.lm_head\.(rnn|actions|gripper|mlp|gpt|fc)\b"
)
_MOSAIC = {
    ".ln_1.": ".norm_1.",
    ".ln_2.": ".norm_2.",
    ".mlp.mlp_up.": ".ffn.up_proj.",
    ".mlp.mlp_down.": ".ffn.down_proj.",
}


def from_published(state: Mapping[str, Tensor], layers: str) -> dict[str, Tensor]:
    """Rename a checkpoint's weights; drops duplicates, constants and unused weights.

    Args:
        state: content of the file.
        layers: name of the decoder's layer list ("transformer.blocks").
    """
    out: dict[str, Tensor] = {}
    duplicates: dict[str, Tensor] = {}
    for raw, value in state.items():
        name = raw.removeprefix("module.")
        for alias, part in (
            ("gated_cross_attn_layers", "gated_cross_attn_layer"),
            ("old_decoder_blocks", "decoder_layer"),
        ):
            found = re.fullmatch(rf"lang_encoder\.{alias}\.(\d+)\.(.+)", name)
            if found:
                duplicates[_modern(f"lang_encoder.{layers}.{found[1]}.{part}.{found[2]}", layers)] = value
                break
        else:
            if name.startswith("action_head."):
                duplicates["lm_head." + name.removeprefix("action_head.")] = value
            else:
                out[_modern(name, layers)] = value
    merged = {name: value for name, value in (duplicates | out).items() if not _UNUSED.match(name)}
    return _rename_tower(merged, from_open_clip)


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a network's weights to OpenFlamingo's names; inverse of `from_published`."""
    return _rename_tower(state, to_open_clip)


def _rename_tower(
    state: Mapping[str, Tensor], rename: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
) -> dict[str, Tensor]:
    tower = {name.removeprefix(TOWER): value for name, value in state.items() if name.startswith(TOWER)}
    rest = {name: value for name, value in state.items() if not name.startswith(TOWER)}
    return rest | {TOWER + name: value for name, value in rename(tower).items()}


def _modern(name: str, layers: str) -> str:
    start = f"lang_encoder.{layers}."
    if name.startswith(start):
        index, _, rest = name.removeprefix(start).partition(".")
        if not rest.startswith(("decoder_layer.", "gated_cross_attn_layer.")):
            rest = f"decoder_layer.{rest}"
        if layers == "transformer.blocks" and rest.startswith("decoder_layer."):
            for old, new in _MOSAIC.items():
                rest = rest.replace(old, new)
        return f"{start}{index}.{rest}"
    return (
        name.replace("lang_encoder.transformer.ln_f.", "lang_encoder.transformer.norm_f.")
        if "blocks" in layers
        else name
    )


def read_weights(file: Path) -> dict[str, Tensor]:
    """Read a safetensors file, or a `.pt` of OpenFlamingo or RoboFlamingo without running code in it.

    Raises:
        ConfigError: missing file, or no weights. CorruptError: damaged file.
    """
    if not file.is_file():
        raise ConfigError(f"{file}: file not found; expected Flamingo's weights (.safetensors or .pt)")
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors: dict[str, Tensor] = load_file(file)
        except SafetensorError as error:
            raise CorruptError(f"{file}: truncated or damaged file ({error}); copy it again") from None
        return tensors
    import torch

    try:
        data: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch.load raises many kinds
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise CorruptError(f"{file}: cannot read the checkpoint: {first}") from None
    data = data.get("model_state_dict", data) if isinstance(data, dict) else None
    if not isinstance(data, dict) or not all(isinstance(value, Tensor) for value in data.values()):
        raise ConfigError(f"{file}: no named weights; expected a checkpoint of OpenFlamingo or RoboFlamingo")
    return data
