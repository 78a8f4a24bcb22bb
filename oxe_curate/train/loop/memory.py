"""Out-of-memory errors that say which settings lower the memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from oxe_curate.errors import CurateError
from oxe_curate.train.config import TrainConfig
from oxe_curate.train.loop.distributed import Distributed

_GIB = 2**30


class MemoryFullError(CurateError):
    """The memory of the GPU or the machine is too small for the run as configured."""


@contextmanager
def explain_out_of_memory(doing: str, config: TrainConfig, dist: Distributed) -> Iterator[None]:
    """Turn an out-of-memory error into MemoryFullError.

    Args:
        doing: what the block does, for the message.
        config: of the run.
        dist: this process.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not _is_memory(error):
            raise
        raise MemoryFullError(_advice(doing, config, dist)) from None


def _advice(doing: str, config: TrainConfig, dist: Distributed) -> str:
    """How much memory there is and is used, and what lowers it, the cheapest first."""
    what = "this machine's memory"
    if dist.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(dist.device)
        ours = torch.cuda.memory_reserved(dist.device)
        others = total - free - ours
        what = f"GPU memory ({total / _GIB:.1f} GiB, {ours / _GIB:.1f} GiB used by this run"
        what += f", {others / _GIB:.1f} GiB by others)" if others > _GIB else ")"
    ways = []
    if config.batch_size > 1 and doing != "loading the model":
        half, doubled = config.batch_size // 2, config.accumulation * 2
        ways.append(f"--batch-size {half} --accumulation {doubled} (now {config.batch_size}; same result)")
    if not config.checkpointing and doing != "loading the model":
        ways.append("--checkpointing (recomputes activations; a third slower)")
    if config.optimizer == "adamw" and config.shard == "ddp" and doing != "loading the model":
        ways.append("--optimizer adamw8bit (Adam's moments in a quarter of the memory)")
    if (
        config.adapter == "none" and config.model == "openvla"
    ):  # RoboFlamingo's LoRA is trained in addition to its weights
        ways.append("--adapter lora (trains 1 % of the weights)")
    if config.adapter in ("lora", "int8"):
        ways.append("--adapter qlora (the language model in 4 bits)")
    if config.dtype == "fp32":
        ways.append("--dtype bf16")
    if dist.world > 1 and config.shard == "ddp":
        ways.append("--shard fsdp (divides the model over the GPUs)")
    rest = "".join(f"\n  {way}" for way in ways)
    return f"out of {what} while {doing}. To use less memory:{rest}" if ways else f"out of {what} while {doing}."


def _is_memory(error: BaseException) -> bool:
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or "can't allocate memory" in str(error) or "out of memory" in str(error)
