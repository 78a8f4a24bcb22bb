"""Save, load and merge trained weights.

adapter_config.json, adapter_model.safetensors     adapter in PEFT's layout, readable by old versions of PEFT
extra.safetensors                                  weights trained in full, under the network's published names
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from oxe_curate.errors import DataError

_CONFIG, _ADAPTER, _EXTRA = "adapter_config.json", "adapter_model.safetensors", "extra.safetensors"

_PREFIX = "base_model.model."
# LoRA keys known to PEFT 0.11, which OpenVLA pins and which rejects other keys.
_KNOWN = (
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode",
    "init_lora_weights", "layer_replication", "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha",
    "lora_dropout", "megatron_config", "megatron_core", "modules_to_save", "peft_type", "r", "rank_pattern",
    "revision", "target_modules", "task_type", "use_dora", "use_rslora",
)  # fmt: skip


def save_trained(net: nn.Module, folder: Path, base: str | None = None) -> None:
    """Write the trained weights of a network: its adapter, if it is a PEFT model, and weights trained in full.

    Args:
        net: returned by `attach`.
        folder: created if missing.
        base: checkpoint of the adapter, recorded in adapter_config.json.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    adapter, extra = trained_state(net)
    if adapter:
        text = json.dumps(_adapter_config(net, base), indent=2, sort_keys=True)
        (folder / _CONFIG).write_text(text + "\n", encoding="utf-8")
        save_file(adapter, folder / _ADAPTER, metadata={"format": "pt"})
    if extra:
        save_file(extra, folder / _EXTRA, metadata={"format": "pt"})


def trained_state(net: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """Adapter weights under PEFT's names on disk, and other trained weights under published names; on the CPU."""
    adapter: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for name, parameter in net.named_parameters():
        if not parameter.requires_grad:
            continue
        value = parameter.detach().cpu().contiguous()
        if ".lora_" in name:
            adapter[name.replace(".default.", ".")] = value
        else:
            extra[name.removeprefix(_PREFIX)] = value
    return adapter, extra


def load_trained(net: nn.Module, folder: Path) -> None:
    """Load weights that `save_trained` wrote.

    Raises:
        DataError: a file is missing or damaged, or its weights are not those that the network trains.
    """
    expected_state = trained_state(net)
    parameters = {_on_disk(name): p for name, p in net.named_parameters() if p.requires_grad}
    for file, expected in ((folder / _ADAPTER, expected_state[0]), (folder / _EXTRA, expected_state[1])):
        if not expected:
            continue
        found = read_tensors(file)
        _same_names(file, found, expected)
        for name, value in found.items():
            target = parameters[name]
            if tuple(value.shape) != tuple(target.shape):
                raise DataError(
                    f"{file}: {name}: expected shape {tuple(target.shape)}, got {tuple(value.shape)}. "
                    "Was it trained with another rank or base?"
                )
            with torch.no_grad():
                target.copy_(value)


def read_tensors(file: Path) -> dict[str, Any]:
    """Read a safetensors file to CPU tensors. Raises DataError if it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found: dict[str, Any] = load_file(file)
    except FileNotFoundError:
        raise DataError(f"{file}: file not found") from None
    except (SafetensorError, OSError) as error:
        raise DataError(f"{file}: damaged file: {error}") from None
    return found


def merged_tensors(net: nn.Module, dtype: torch.dtype | None = torch.bfloat16) -> Iterator[tuple[str, Any]]:
    """Yield every weight of a network under its published name, with adapters merged and quantized layers dequantized.

    A merged weight is W + (alpha / rank) B A, computed in float32 and rounded once. W is the weight used by the forward
    pass (the dequantized weight in the compute type); merging into the original weights or quantizing again would give
    a different model.

    Args:
        net: a PEFT model or a plain network, freshly loaded: on some CPUs bitsandbytes repacks 4-bit weights at their
            first use.
        dtype: of floating-point results; None keeps the type of each weight.

    Raises:
        ValueError: a layer was repacked.
    """
    lora = {name: module for name, module in net.named_modules() if hasattr(module, "lora_A")}
    for raw, parameter in net.named_parameters():
        if ".lora_" in raw:
            continue
        owner, _, leaf = raw.rpartition(".")
        wrapper = lora.get(owner.removesuffix(".base_layer")) if leaf == "weight" else None
        value = _dequantized(net.get_submodule(owner), parameter, leaf)
        if wrapper is not None:
            value = value.float() + wrapper.get_delta_weight("default").float().to(value.device)
        name = raw.removeprefix(_PREFIX).replace(".base_layer.", ".")
        yield name, value.to(dtype) if dtype is not None and value.is_floating_point() else value


def merged_state(net: nn.Module, dtype: torch.dtype | None = torch.bfloat16) -> dict[str, Any]:
    """`merged_tensors` as a dictionary on the CPU."""
    return {name: value.detach().cpu() for name, value in merged_tensors(net, dtype)}


def _dequantized(layer: nn.Module, parameter: Any, leaf: str) -> Any:
    kind = type(layer).__name__
    if leaf != "weight" or kind not in ("Linear4bit", "Linear8bitLt"):
        return parameter.detach()
    from peft.utils.integrations import dequantize_bnb_weight

    if getattr(getattr(parameter, "quant_state", None), "packing_format_for_cpu", False):
        raise ValueError("bitsandbytes has repacked a layer for this CPU: reload the network before merging")
    whole = dequantize_bnb_weight(parameter, state=getattr(layer, "state", None))
    compute = getattr(layer, "compute_dtype", None)
    return whole.to(compute) if compute is not None else whole


def _adapter_config(net: Any, base: str | None) -> dict[str, Any]:
    settings = net.peft_config["default"].to_dict()
    kept = {key: settings.get(key) for key in _KNOWN}
    kept["peft_type"] = str(getattr(kept["peft_type"], "value", kept["peft_type"]))
    kept["target_modules"] = sorted(kept["target_modules"])
    return kept | {"base_model_name_or_path": base, "inference_mode": True, "loftq_config": {}}


def _on_disk(name: str) -> str:
    return name.replace(".default.", ".") if ".lora_" in name else name.removeprefix(_PREFIX)


def _same_names(file: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    missing, unknown = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or unknown:
        problems = [f"{len(missing)} weights are missing, first {missing[0]}"] if missing else []
        problems += [f"{len(unknown)} weights are not trained by the model, first {unknown[0]}"] if unknown else []
        raise DataError(f"{file}: {'; '.join(problems)}. Was it trained with another adapter, targets or base?")
