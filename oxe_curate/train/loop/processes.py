"""The processes of a run, started by torchrun or accelerate launch, or just this one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from oxe_curate.errors import ConfigError, WorkerError

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among those that train together.

    Attributes:
        rank: 0 writes the files. world: how many there are.
        device: that this process computes on.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every process is here."""
        self.sum(np.zeros(1))  # a CPU tensor: NCCL's own barrier would need a device

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process. All must ask."""
        return bool(self.sum(np.array([float(flag)]))[0] > 0)

    def largest(self, number: int) -> int:
        """The largest of every process's number. All must ask."""
        if self.world == 1:
            return number
        value = torch.tensor(number)
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return int(value)

    def sum(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Element-wise sum over the processes, float64. All must ask."""
        if self.world == 1:
            return values
        total = torch.from_numpy(np.array(values, np.float64))
        dist.all_reduce(total)
        result: NDArray[np.float64] = total.numpy()
        return result

    def gather(self, value: T) -> list[T]:
        """Every process's value (small: it is pickled), by rank. All must ask."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def together(self, act: Callable[[], T]) -> T:
        """Do something in every process, and raise in every one if it fails in any.

        Raises:
            WorkerError: it failed in another process, which says why.
        """
        failure: Exception | None = None
        result: Any = None
        try:
            result = act()
        except Exception as error:
            failure = error
        if self.any(failure is not None):
            raise failure or WorkerError("another process of this run failed; its message says why")
        return result  # type: ignore[no-any-return]


@contextmanager
def processes(device: str | None = None) -> Iterator[Processes]:
    """Join the processes that torchrun started, and leave them at the end.

    Args:
        device: "cpu" to leave the GPUs alone; default the GPU of this process's local rank, if there are any.

    Raises:
        ConfigError: more processes on this machine than GPUs.
    """
    world, rank, local = (int(os.environ.get(n, d)) for n, d in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0)))
    here = torch.device("cpu")
    if device != "cpu" and torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            raise ConfigError(
                f"process {local} of this machine has no GPU of its own: there are {torch.cuda.device_count()}. "
                f"Start as many processes as GPUs (torchrun --nproc-per-node {torch.cuda.device_count()})."
            )
        here = torch.device("cuda", local)
        torch.cuda.set_device(here)
    # a launcher with one process counts too: accelerate would join its group otherwise, and never leave
    started = "LOCAL_RANK" in os.environ and not dist.is_initialized()
    if started:
        # both, so that small agreements go between the CPUs and do not wait for the GPUs' queues
        backend = "cpu:gloo,cuda:nccl" if here.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(minutes=30))
    try:
        yield Processes(rank, world, here)
    finally:
        if started and dist.is_initialized():
            dist.destroy_process_group()
