"""torch.compile: for each block in training, and with CUDA graphs at batch 1."""

from __future__ import annotations

import threading
import warnings
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

import torch
from torch import nn

_T = TypeVar("_T")
warnings.filterwarnings("ignore", message="Guards may run slower on Python 3.13.0")  # nothing that a user must know


def compile_blocks(net: nn.Module) -> int:
    """Compile each block of a network in place; equal blocks share a compilation, and parameters keep their names.

    Blocks are entries of `nn.ModuleList`s that contain no such list themselves: a decoder's layers, a ViT's blocks.
    Compiling a whole 7B network takes minutes, and again at each graph break.

    Returns:
        number of blocks.
    """
    blocks = [
        block
        for parent in net.modules()
        if isinstance(parent, nn.ModuleList)
        for block in parent
        if not any(isinstance(inner, nn.ModuleList) for inner in block.modules())
    ]
    for block in blocks:
        block.compile()
    return len(blocks)


def compile_with_graphs(function: Callable[..., torch.Tensor], *, fullgraph: bool) -> Callable[..., torch.Tensor]:
    """Compile a function for inference, with CUDA graphs; call the result through `run_on_graph_thread` only.

    Args:
        function: of tensors and objects that hold tensors; compiled again for each new shape.
        fullgraph: raise an error if the function cannot be compiled as one graph.

    Returns:
        the compiled function; its outputs are copies. The first call compiles, the second records the CUDA graph.
    """
    compiled = torch.compile(function, mode="reduce-overhead", fullgraph=fullgraph, dynamic=False)

    def call(*args: Any) -> torch.Tensor:
        torch.compiler.cudagraph_mark_step_begin()  # allows the graph to overwrite the outputs of earlier calls
        return compiled(*args).clone()

    return call


def run_on_graph_thread(work: Callable[[], _T]) -> _T:
    """Run a function on the process's thread for compiled CUDA graphs, and wait for it.

    torch keeps such graphs for each thread, and up to version 2.12 fails on any but the first thread that used them.
    Thread-local modes such as `torch.no_grad` must be set by `work`.
    """
    return _graph_thread().submit(work).result()


@cache
def _graph_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="cuda-graphs", initializer=_init_graph_thread)


def _init_graph_thread() -> None:
    from torch._inductor import cudagraph_trees

    local: Any = cudagraph_trees.local
    if not hasattr(local, "tree_manager_containers"):
        local.tree_manager_containers = {}
        local.tree_manager_locks = defaultdict(threading.Lock)
