"""Export RoboFlamingo: a checkpoint for the released code, and a complete base folder.

roboflamingo.pt        {"model_state_dict": {"module.perceiver.latents": ...}}: trained weights under the released
                       code's names, for its evaluation (eval_calvin.py --evaluate_from_checkpoint)
config.json, flamingo.safetensors, language/      merged: all weights, a complete base folder
adapter_*, extra.safetensors                      not merged: trained weights, to use with their base
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from oxe_curate.train.config import TrainConfig
from oxe_curate.train.models.adapter_files import merged_state, save_trained
from oxe_curate.train.models.base import PolicySpec
from oxe_curate.train.models.roboflamingo.config import CONFIG, LANGUAGE, MODEL_TYPE, WEIGHTS
from oxe_curate.train.models.roboflamingo.heads import GPTHead, Head, LSTMHead
from oxe_curate.train.models.roboflamingo.model import tokenizer
from oxe_curate.train.models.roboflamingo.names import to_published
from oxe_curate.train.models.roboflamingo.net import Flamingo

_RELEASED = "roboflamingo.pt"


def export_flamingo(
    net: Any, plain: Flamingo, config: TrainConfig, spec: PolicySpec, folder: Path, merge: bool
) -> None:
    """Write an export folder; see the module.

    Args:
        net: the trained model, `plain` or a PEFT model around it.
        plain: the network.
        config: of the run.
        spec: of the run.
        folder: created if missing.
        merge: write all weights with the adapter merged, instead of the trained weights only.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    trained = {name.removeprefix("base_model.model.") for name, p in net.named_parameters() if p.requires_grad}
    adapted = any(".lora_" in name for name in trained)
    if not merge:
        save_trained(net, folder, config.base)
        if adapted:
            return  # the released code does not support LoRA
    dtype = torch.bfloat16 if config.dtype == "bf16" else torch.float32
    weights = to_published(
        {  # trained weights stay float32
            name: (value if name in trained else value.to(dtype)).contiguous()
            for name, value in merged_state(net, None).items()
        }
    )
    if adapted:  # the released code also needs the decoder, which LoRA has changed
        trained |= {name for name in weights if ".decoder_layer." in name}
    released = {f"module.{name}": weights[name].float() for name in sorted(trained & set(weights))}
    torch.save({"model_state_dict": released}, folder / _RELEASED)
    if not merge:
        return
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    tokenizer(Path(config.base)).save_pretrained(folder / LANGUAGE)
    (folder / CONFIG).write_text(json.dumps(_config(plain, spec), indent=2) + "\n", encoding="utf-8")


def _config(net: Flamingo, spec: PolicySpec) -> dict[str, Any]:
    language = net.lang_encoder.config.to_diff_dict() | {"model_type": net.lang_encoder.config.model_type}
    for key in ("quantization_config", "dtype", "torch_dtype", "transformers_version", "_name_or_path"):
        language.pop(key, None)
    return {
        "model_type": MODEL_TYPE,
        "cross_attn_every_n_layers": net.every,
        "media_token_id": net.media_token,
        "window": net.window,
        "vision": asdict(net.vision_encoder.shape),
        "language": language,
        "head": _head(net.lm_head, net.history),
        "features": "last-input" if net.early else "final",
        "weights": WEIGHTS,
        "norm_stats": spec.statistics,
    }


def _head(head: Head, history: bool) -> dict[str, Any]:
    """Fields of `HeadSpec`."""
    common = {"window": head.window, "chunk": head.chunk, "hidden": head.hidden}
    if isinstance(head, LSTMHead):
        return {"kind": "lstm", **common, "layers": head.rnn.num_layers}
    if isinstance(head, GPTHead):
        return {"kind": "gpt", **common, "layers": head.gpt.config.n_layer, "heads": head.gpt.config.n_head}
    return {"kind": "mlp", **common, "history": history}
