"""A trained OpenVLA as one checkpoint in the published layout, which OpenVLA's own inference code reads."""

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
    """Write weights with the adapter merged in the base's dtypes, config.json and the processor's files.

    One shard at a time is in memory beside the network.

    Args:
        net: an OpenVLA or a PEFT model around it, just loaded: bitsandbytes repacks weights on some CPUs in use.
        source: the base's folder, for tokenizer, preprocessor and the checkpoint's own code.
        folder: made if need be.
        statistics: `norm_stats`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    base: OpenVLA = net.get_base_model() if hasattr(net, "get_base_model") else net
    stored = base.checkpoint.tensors if base.checkpoint else {}
    tensors = merged_tensors(net, None)
    told = {  # in the network's own order, which `merged_tensors` follows too
        name: stored.get(name, StoredTensor("", tuple(parameter.shape), torch.bfloat16))
        for name, parameter in _published(net)
    }
    told |= {name: stored[name] for name in base.unused}

    def get(name: str) -> torch.Tensor:
        if name in base.unused:
            return base.unused[name]
        found, value = next(tensors)
        assert found == name, (found, name)
        return value.to(told[name].dtype)

    write_weights(folder, plan_files(told, MAX_FILE_BYTES), get)
    base.architecture.write(folder, norm_stats=statistics)
    for path in sorted(source.iterdir()):
        taken = path.suffix in _PROCESSOR_SUFFIXES and ".safetensors" not in path.name
        if path.is_file() and taken and path.name not in _OWN_FILES:
            shutil.copyfile(path, folder / path.name)


def _published(net: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The network's parameters by their published names, without the adapter's."""
    for name, parameter in net.named_parameters():
        if ".lora_" not in name:
            yield name.removeprefix(_PREFIX).replace(".base_layer.", "."), parameter
