"""Out of memory, told with what to lower."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from oxe_curate.errors import CurateError
from oxe_curate.train.config import TrainConfig
from oxe_curate.train.loop.processes import Processes

_GIB = 2**30


class MemoryFullError(CurateError):
    """The GPU's memory, or the machine's, is too small for the run as configured."""


@contextmanager
def told_when_full(doing: str, config: TrainConfig, here: Processes) -> Iterator[None]:
    """Turn an out-of-memory error inside into MemoryFullError."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not _is_memory(error):
            raise
        raise MemoryFullError(explain_memory(doing, config, here)) from None


def explain_memory(doing: str, config: TrainConfig, here: Processes) -> str:
    """Say how much there is, how much is used, and what lowers it, the cheapest first."""
    what = "this machine's memory"
    if here.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(here.device)
        ours = torch.cuda.memory_reserved(here.device)
        others = total - free - ours
        what = f"GPU memory ({total / _GIB:.1f} GiB, {ours / _GIB:.1f} GiB of it held by this run"
        what += f", {others / _GIB:.1f} GiB by others)" if others > _GIB else ")"
    ways = []
    if config.batch_size > 1 and doing != "loading the model":
        half, doubled = config.batch_size // 2, config.accumulation * 2
        ways.append(f"--batch-size {half} --accumulation {doubled} (now {config.batch_size}; trains alike)")
    if not config.checkpointing and doing != "loading the model":
        ways.append("--checkpointing (computes activations twice, a third slower)")
    if config.optimizer == "adamw" and config.shard == "ddp" and doing != "loading the model":
        ways.append("--optimizer adamw8bit (Adam's moments in a quarter of the memory)")
    if config.adapter == "none" and config.model == "openvla":  # another family's LoRA is beside what it trains
        ways.append("--adapter lora (trains a hundredth of the weights)")
    if config.adapter in ("lora", "int8"):
        ways.append("--adapter qlora (the language model in 4 bits)")
    if config.dtype == "fp32":
        ways.append("--dtype bf16")
    if here.world > 1 and config.shard == "ddp":
        ways.append("--shard fsdp (divides the model over the GPUs)")
    rest = "".join(f"\n  {way}" for way in ways)
    return f"out of {what} while {doing}. Lower what it needs:{rest}" if ways else f"out of {what} while {doing}."


def _is_memory(error: BaseException) -> bool:
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or "can't allocate memory" in str(error) or "out of memory" in str(error)
