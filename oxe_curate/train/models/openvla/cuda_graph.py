"""Replaying a function's kernels without Python."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch

log = logging.getLogger(__name__)


class Recorder:
    """Makes CUDA graphs of functions that are called one after another, never at once, so that they share memory.

    Args:
        device: elsewhere than on CUDA functions are called as they are: the same arithmetic, without the speed.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pool: Any = None
        self._side: Any = None

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        """Record a function.

        Args:
            function: works on fixed tensors in place, never waits for the device, decides nothing by their values.
                It is called three times here.

        Returns:
            what does the same to the same tensors; `function` itself where its kernels cannot be recorded.
        """
        if self.device.type != "cuda":
            return function
        with torch.cuda.device(self.device):
            return self._recorded(function)

    def _recorded(self, function: Callable[[], None]) -> Callable[[], None]:
        current, stream = torch.cuda.current_stream(self.device), torch.cuda.Stream(self.device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):  # libraries set themselves up at the first calls
            function()
            function()
        current.wait_stream(stream)
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        try:
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                function()
        except RuntimeError as error:
            log.warning("control runs without a CUDA graph, many times slower: %s", str(error).splitlines()[0])
            torch.cuda.set_stream(current)  # a capture that fails leaves its own behind
            torch.cuda.synchronize(self.device)
            self._pool = None
            return function
        replay: Callable[[], None] = graph.replay
        return replay

    def at_once(self, calls: Sequence[Callable[[], torch.Tensor]]) -> list[torch.Tensor]:
        """Call one or two functions, on CUDA at the same time: small kernels leave half of the device idle."""
        if self.device.type != "cuda" or len(calls) != 2:
            return [call() for call in calls]
        if self._side is None:
            self._side = torch.cuda.Stream(self.device)
        main = torch.cuda.current_stream(self.device)
        self._side.wait_stream(main)
        with torch.cuda.stream(self._side):
            second = calls[1]()
        first = calls[0]()
        # all that the side stream allocates is used again only by itself, after it has waited for the main one
        main.wait_stream(self._side)
        return [first, second]


class Inlet:
    """A tensor on the device that is filled from numpy through page-locked memory."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        pinned = device.type == "cuda"
        self._host = torch.zeros(tuple(shape), dtype=dtype, pin_memory=pinned)
        self.tensor = self._host if not pinned else torch.zeros_like(self._host, device=device, pin_memory=False)
        self._array = self._host.numpy()

    def put(self, values: Any) -> None:
        """Fill it; the device must have read what was put before."""
        self._array[...] = values
        if self.tensor is not self._host:
            self.tensor.copy_(self._host, non_blocking=True)
