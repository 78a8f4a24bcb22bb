"""FSDP2: parameters, gradients and moments divided over the processes; a block is gathered only while it computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from oxe_curate.train.loop.train_state import whole

_LEAST_BLOCKS = 2


def shard(family: nn.Module, device: torch.device) -> int:
    """Divide a family over all processes in place: each transformer block separately, then the rest.

    Weights packed by bitsandbytes stay whole in each process: they are small and frozen, and their scales cannot be
    sharded.

    Returns:
        number of units.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    packed = {p for p in family.parameters() if not p.dtype.is_floating_point}
    units = [
        block
        for module in family.modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) >= _LEAST_BLOCKS
        for block in module
        if _alike(list(module)) and any(p not in packed for p in block.parameters())
    ]
    for block in reversed(units):  # inner blocks first
        fully_shard(block, mesh=mesh, ignored_params=packed & set(block.parameters()))
    fully_shard(family, mesh=mesh, ignored_params=packed)
    register_fsdp_forward_method(family, "predict")
    return len(units) + 1


def settle(family: nn.Module) -> None:
    """Reshard after a forward pass without a backward pass.

    The root would stay gathered, and its parameters would no longer be those of the optimizer.
    """
    for module in family.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@contextmanager
def whole_parameters(family: nn.Module, keep: bool = True) -> Iterator[None]:
    """Gather the trained parameters on the CPU while they are saved. Every process must take part.

    Args:
        family: sharded or not.
        keep: False in processes that only help to gather.
    """
    swapped: list[tuple[nn.Module, str, Any]] = []
    for module in family.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.requires_grad and isinstance(parameter, DTensor):
                swapped.append((module, name, parameter))
    values = {id(parameter): whole(parameter, keep) for _, _, parameter in swapped}
    try:
        # one object for a weight that two modules share (a tied output head), so that it is saved once
        shown = {key: nn.Parameter(value) for key, value in values.items()} if keep else {}
        for module, name, parameter in swapped if keep else ():
            module._parameters[name] = shown[id(parameter)]
        yield
    finally:
        for module, name, parameter in swapped:
            module._parameters[name] = parameter


def _alike(blocks: list[nn.Module]) -> bool:
    """Whether a list is a stack of transformer blocks: all of one class, with submodules."""
    return len({type(block) for block in blocks}) == 1 and any(True for _ in blocks[0].children())
