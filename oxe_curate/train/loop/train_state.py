"""The state besides the weights that a run needs to continue bit for bit: moments and random generators."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from oxe_curate.errors import DataError


def optimizer_state(net: nn.Module, optimizer: Any, keep: bool = True) -> dict[str, dict[str, Any]]:
    """Parameter name -> its moments, gathered on the CPU. Every process of a sharded run must call it.

    Args:
        net: holds the parameters.
        optimizer: of these parameters.
        keep: False in processes that only help to gather, whose copies could fill the memory.
    """
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    state: dict[str, dict[str, Any]] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            moments = optimizer.state.get(parameter, {})
            state[names[id(parameter)]] = {key: whole(value, keep) for key, value in moments.items()}
    return state


def load_optimizer_state(net: nn.Module, optimizer: Any, state: dict[str, dict[str, Any]], where: Path) -> None:
    """Restore the result of `optimizer_state`, sharded like the parameters.

    Raises:
        DataError: the moments belong to other parameters.
    """
    named = dict(net.named_parameters())
    names = {id(parameter): name for name, parameter in named.items()}
    order = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    if set(order) != set(state):
        differing = sorted(set(order) ^ set(state))
        raise DataError(f"{where}: holds moments of other parameters, such as {differing[0]}")
    moments = {i: {k: _like(named[name], k, v) for k, v in state[name].items()} for i, name in enumerate(order)}
    groups, start = [], 0
    for group in optimizer.param_groups:
        kept = {key: value for key, value in group.items() if key != "params"}
        groups.append({**kept, "params": list(range(start, start + len(group["params"])))})
        start += len(group["params"])
    optimizer.load_state_dict({"state": moments, "param_groups": groups})


def whole(value: Any, keep: bool = True) -> Any:
    """A tensor on the CPU, gathered if it is sharded; other values unchanged. None unless `keep`."""
    if isinstance(value, DTensor):
        value = value.full_tensor()
    if not keep:
        return None
    return value.detach().cpu() if isinstance(value, torch.Tensor) else value


def _like(parameter: Any, key: str, value: Any) -> Any:
    if key == "step" or not isinstance(parameter, DTensor) or not isinstance(value, torch.Tensor):
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)


def random_state() -> dict[str, Any]:
    """The random generators of this process, as tensors and lists that `torch.load` can read with weights_only."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state = {
        "python": [version, list(words), gauss],
        "numpy": [np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def load_random_state(state: dict[str, Any]) -> None:
    """Restore the result of `random_state`."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", np.array(keys, np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextmanager
def untouched_random_state() -> Iterator[None]:
    """Restore the random generators at the end of the block."""
    state = random_state()
    try:
        yield
    finally:
        load_random_state(state)
