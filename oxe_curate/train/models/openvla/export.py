"""Export a trained OpenVLA to the published layout, which OpenVLA's own inference code loads."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from oxe_curate.train.models.adapter_files import merged_tensors
from oxe_curate.train.models.openvla.model import MAX_FILE_BYTES, OpenVLA
from oxe_curate.train.models.weights import StoredTensor, plan_files, write_weights

_PREFIX = "base_model.model."
_OWN_FILES = ("config.json", "dataset_statistics.json", "oxe_curate.json")
_PROCESSOR_SUFFIXES = (".json", ".model", ".py", ".txt", ".jinja")


def export_merged(net: nn.Module, source: Path, folder: Path, statistics: dict[str, Any]) -> None:
    """Write merged weights with the base's dtypes, config.json and processor files.

    Memory: the network and one shard.

    Args:
        net: a freshly loaded OpenVLA or PEFT model: bitsandbytes repacks weights at their first use on some CPUs.
        source: folder of the base, for tokenizer, preprocessor and code.
        folder: created if missing.
        statistics: `norm_stats`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    base: OpenVLA = net.get_base_model() if hasattr(net, "get_base_model") else net
    stored = base.checkpoint.tensors if base.checkpoint else {}
    tensors = merged_tensors(net, None)
    layout = {  # in the order of the network, as in `merged_tensors`
        name: stored.get(name, StoredTensor("", tuple(parameter.shape), torch.bfloat16))
        for name, parameter in _published(net)
    }
    layout |= {name: stored[name] for name in base.unused}

    def get(name: str) -> torch.Tensor:
        if name in base.unused:
            return base.unused[name]
        found, value = next(tensors)
        assert found == name, (found, name)
        return value.to(layout[name].dtype)

    write_weights(folder, plan_files(layout, MAX_FILE_BYTES), get)
    base.architecture.write(folder, norm_stats=statistics)
    for path in sorted(source.iterdir()):
        taken = path.suffix in _PROCESSOR_SUFFIXES and ".safetensors" not in path.name
        if path.is_file() and taken and path.name not in _OWN_FILES:
            shutil.copyfile(path, folder / path.name)


def _published(net: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The network's parameters under published names, without those of the adapter."""
    for name, parameter in net.named_parameters():
        if ".lora_" not in name:
            yield name.removeprefix(_PREFIX).replace(".base_layer.", "."), parameter
