"""CUDA graphs: replay the kernels of a function without Python."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch

_log = logging.getLogger(__name__)


class GraphRecorder:
    """Records CUDA graphs that share memory, so they must never run concurrently.

    Args:
        device: on devices other than CUDA, functions are called directly.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pool: Any = None
        self._side: Any = None

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        """Record a function.

        Args:
            function: works in place on fixed tensors; must not synchronize or depend on values on the host. It is
                called three times.

        Returns:
            a replay of the function, or `function` itself if it cannot be recorded.
        """
        if self.device.type != "cuda":
            return function
        with torch.cuda.device(self.device):
            return self._recorded(function)

    def _recorded(self, function: Callable[[], None]) -> Callable[[], None]:
        current, stream = torch.cuda.current_stream(self.device), torch.cuda.Stream(self.device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):  # libraries initialize at their first calls
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
            _log.warning("cannot record a CUDA graph; control will be much slower: %s", str(error).splitlines()[0])
            torch.cuda.set_stream(current)  # a failed capture leaves its stream current
            torch.cuda.synchronize(self.device)
            self._pool = None
            return function
        replay: Callable[[], None] = graph.replay
        return replay

    def run_concurrently(self, calls: Sequence[Callable[[], torch.Tensor]]) -> list[torch.Tensor]:
        """Call functions; two on CUDA run on parallel streams, because small kernels leave half of the device idle."""
        if self.device.type != "cuda" or len(calls) != 2:
            return [call() for call in calls]
        if self._side is None:
            self._side = torch.cuda.Stream(self.device)
        main = torch.cuda.current_stream(self.device)
        self._side.wait_stream(main)
        with torch.cuda.stream(self._side):
            second = calls[1]()
        first = calls[0]()
        # memory of the side stream is reused only by that stream, after it has waited for the main one
        main.wait_stream(self._side)
        return [first, second]


class PinnedInput:
    """A device tensor that is filled from numpy through page-locked memory."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        pinned = device.type == "cuda"
        self._host = torch.zeros(tuple(shape), dtype=dtype, pin_memory=pinned)
        self.tensor = self._host if not pinned else torch.zeros_like(self._host, device=device, pin_memory=False)
        self._array = self._host.numpy()

    def put(self, values: Any) -> None:
        """Copy values to the device; the previous copy must have finished."""
        self._array[...] = values
        if self.tensor is not self._host:
            self.tensor.copy_(self._host, non_blocking=True)
