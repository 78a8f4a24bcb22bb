"""Whether a run may start or continue in a folder: one process at a time, the same run, a complete checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from oxe_curate.atomic import sweep
from oxe_curate.errors import ConfigError, DataError
from oxe_curate.outputs import hold_output
from oxe_curate.tokenize.folder import MixtureFolder
from oxe_curate.train.config import TrainConfig
from oxe_curate.train.loop.checkpoints import Progress, Resumed, last_checkpoint
from oxe_curate.train.loop.distributed import Distributed
from oxe_curate.train.loop.saved import file_sha256
from oxe_curate.train.run_folder import CheckpointFolder, RunFolder

# Settings that do not change the trained model; `base`, `data` and `source` may have moved, contents are compared.
_MAY_CHANGE = (
    "data", "source", "base", "run", "steps", "epochs", "workers", "log", "log_every", "eval_every", "eval_samples",
    "save_every", "keep", "shard", "compile", "checkpointing", "batch_size", "accumulation",
)  # fmt: skip


@contextmanager
def locked(run: RunFolder, dist: Distributed) -> Iterator[None]:
    """Keep other processes from training in this folder.

    Raises:
        ConfigError: another process is training here.
        StorageError: the folder cannot be written.
    """
    with ExitStack() as stack:
        # one process takes the lock, and all of them fail if it cannot
        dist.together(lambda: stack.enter_context(hold_output(run.path, "run")) if dist.first else None)
        yield


def find_checkpoint(config: TrainConfig, mixture: MixtureFolder, resume: bool, dist: Distributed) -> Resumed | None:
    """Find the checkpoint that a run continues from, and remove what a killed run left half written.

    Returns:
        the newest complete checkpoint, None to start from the beginning.

    Raises:
        ConfigError: the folder holds a run and `resume` is False; or it holds a different run.
        DataError: every checkpoint is damaged.
    """
    run = RunFolder(Path(config.run))
    dist.together(lambda: sweep(run.path) if dist.first else None)
    steps, finished = run.steps(), run.adapter.is_dir()
    if not resume:
        if steps or finished:
            what = f"a run of {steps[-1]} steps" if steps else "a finished run"
            raise ConfigError(f"--run {run.path}: holds {what}. Add --resume to continue it, or choose another folder.")
        return None
    found = last_checkpoint(run)
    if found is None:
        if steps:
            raise DataError(f"{run.path}: all checkpoints ({', '.join(map(str, steps))}) are damaged")
        return None
    check_same_run(*found, config, run_hashes(config, mixture), dist.world)
    return found


def run_hashes(config: TrainConfig, mixture: MixtureFolder) -> dict[str, str | None]:
    """SHA-256 of the inputs that must not change while a run continues."""
    return {**mixture.hashes, "base": file_sha256(Path(config.base) / "config.json")}


def check_same_run(
    folder: CheckpointFolder, progress: Progress, config: TrainConfig, hashes: Mapping[str, str | None], world: int
) -> None:
    """Compare a checkpoint with the run that is to continue from it.

    Args:
        folder: of the checkpoint.
        progress: of the checkpoint.
        config: of the continuation.
        hashes: of its inputs.
        world: number of processes.

    Raises:
        ConfigError: the mixture, the base model, a setting that the weights depend on or the samples per optimizer
            step differ; lists the differences.
    """
    now = json.loads(json.dumps(asdict(config)))
    differing = [
        f"{name}: was {before!r}, is now {found!r}"
        for name, before, found in _differences(progress.config, now)
        if name.partition(".")[0] not in _MAY_CHANGE
    ]
    for name in sorted(set(progress.hashes) | set(hashes)):
        if progress.hashes.get(name) != hashes.get(name):
            where = config.base if name == "base" else config.data
            differing.append(f"{name}: {where} is not the one that this run started with")
    if differing:
        raise ConfigError(
            f"{folder.path}: cannot continue from this checkpoint:\n"
            + "\n".join(f"  {line}" for line in differing)
            + f"\nUndo these changes, or start a new run with another --run. You may change: {', '.join(_MAY_CHANGE)} "
            "(keeping batch_size x accumulation x processes)."
        )
    batch = config.batch_size * config.accumulation * world
    if batch != progress.global_batch:
        raise ConfigError(
            f"{folder.path}: an optimizer step took {progress.global_batch} samples and would now take {batch} "
            f"(batch_size {config.batch_size} x accumulation {config.accumulation} x {world} processes). "
            "Set --batch-size or --accumulation so that the product stays the same."
        )


def _differences(one: Mapping[str, Any], two: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(Key, value in `one`, value in `two`) where they differ, section by section."""
    result: list[tuple[str, Any, Any]] = []
    for key in sorted(set(one) | set(two)):
        before, after = one.get(key), two.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            result += _differences(before, after, f"{prefix}{key}.")
        elif before != after:
            result.append((f"{prefix}{key}", before, after))
    return result
