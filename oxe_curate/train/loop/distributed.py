"""The processes that train together, started by torchrun or accelerate launch; or only this one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray

from oxe_curate.errors import ConfigError, WorkerError

_T = TypeVar("_T")


@dataclass(frozen=True)
class Distributed:
    """This process among those that train together.

    Attributes:
        rank: of this process; 0 writes the files. world: number of processes.
        device: that this process computes on.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process. All processes must call it, as all methods below."""
        return bool(self.sum(np.array([float(flag)]))[0] > 0)

    def largest(self, number: int) -> int:
        """The largest number of all processes."""
        if self.world == 1:
            return number
        value = torch.tensor(number)
        torch.distributed.all_reduce(value, torch.distributed.ReduceOp.MAX)
        return int(value)

    def sum(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Element-wise sum over the processes, float64."""
        if self.world == 1:
            return values
        total = torch.from_numpy(np.array(values, np.float64))
        torch.distributed.all_reduce(total)
        result: NDArray[np.float64] = total.numpy()
        return result

    def gather(self, value: _T) -> list[_T]:
        """Every process's value by rank; values are pickled, so they should be small."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(values, value)
        return values

    def together(self, act: Callable[[], _T]) -> _T:
        """Call a function in every process, and raise in all of them if it fails in one.

        Raises:
            WorkerError: it failed in another process, whose message has the cause.
        """
        failure: Exception | None = None
        result: Any = None
        try:
            result = act()
        except Exception as error:
            failure = error
        if self.any(failure is not None):
            raise failure or WorkerError("another process of this run failed; see its message")
        return result  # type: ignore[no-any-return]


@contextmanager
def join_processes(device: str | None = None) -> Iterator[Distributed]:
    """Join the process group that torchrun started, and leave it at the end.

    Args:
        device: "cpu" to use no GPU; default the GPU of this process's local rank, if there are GPUs.

    Raises:
        ConfigError: more processes on this machine than GPUs.
    """
    world, rank, local = (int(os.environ.get(n, d)) for n, d in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0)))
    found = torch.device("cpu")
    if device != "cpu" and torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            raise ConfigError(
                f"process {local} has no GPU: this machine has {torch.cuda.device_count()}. "
                f"Start one process per GPU (torchrun --nproc-per-node {torch.cuda.device_count()})."
            )
        found = torch.device("cuda", local)
        torch.cuda.set_device(found)
    # also with one process: otherwise accelerate would join the group and never leave it
    started = "LOCAL_RANK" in os.environ and not torch.distributed.is_initialized()
    if started:
        # both, so that small messages go between the CPUs and do not wait for the GPUs' queues
        backend = "cpu:gloo,cuda:nccl" if found.type == "cuda" else "gloo"
        torch.distributed.init_process_group(backend, timeout=timedelta(minutes=30))
    try:
        yield Distributed(rank, world, found)
    finally:
        if started and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
