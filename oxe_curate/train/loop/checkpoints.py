"""Checkpoints that are complete or absent, and what may differ between a run and its continuation.

RUN/checkpoint-<step>/
  weights/             what Family.save writes
  optimizer.pt         moments by parameter name, whole: they fit any number of GPUs, sharded or not
  scheduler.pt, rng_state_<rank>.pth, trainer_state.json
  progress.json        written last in the temporary folder: steps, samples, configuration, hashes, sizes of the files
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from oxe_curate.errors import ConfigError, DataError, StorageError
from oxe_curate.storage import TEMPORARY, explain
from oxe_curate.train.config import TrainConfig
from oxe_curate.train.loop.processes import Processes

PROGRESS, WEIGHTS, OPTIMIZER, SCHEDULER, STATE = (
    "progress.json", "weights", "optimizer.pt", "scheduler.pt", "trainer_state.json",
)  # fmt: skip

_NAME = re.compile(r"checkpoint-(\d+)")
# What a continuation may change without training another model; `base` and `data` may have moved: hashes tell.
MAY_CHANGE = (
    "data", "base", "run", "steps", "epochs", "workers", "log", "log_every", "eval_every", "eval_samples", "save_every",
    "keep", "shard", "compile", "checkpointing", "batch_size", "accumulation",
)  # fmt: skip


@dataclass(frozen=True)
class Progress:
    """How far a run has come, and what it is.

    Attributes:
        step: optimizer steps done. consumed: samples seen, by all processes together.
        global_batch: samples an optimizer step.
        config: the resolved configuration.
        hashes: of the mixture's files, and "base" of the base's config.json.
        meter: sums that the next line of the log goes on from.
        files: path -> size of every file of the checkpoint.
    """

    step: int
    consumed: int
    global_batch: int
    config: dict[str, Any]
    hashes: dict[str, str | None]
    meter: dict[str, list[float]] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)


def write_checkpoint(
    run: Path, progress: Progress, fill: Callable[[Path], None], keep: int, processes: Processes
) -> Path:
    """Publish a checkpoint: a temporary folder, flushed to the disk, then renamed; then drop older ones.

    Args:
        run: the run's folder.
        progress: without `files`.
        fill: writes this process's files into the folder it is given; no communication in it.
        keep: how many checkpoints stay.
        processes: all of them take part.

    Raises:
        StorageError: the disk is full or not writable. Earlier checkpoints are untouched.
    """
    temporary = run / f"{TEMPORARY}checkpoint-{progress.step}"
    target = run / f"checkpoint-{progress.step}"

    def start() -> None:
        if processes.first:
            remove(temporary)
            temporary.mkdir(parents=True)

    def finish() -> None:
        if not processes.first:
            return
        files = {str(p.relative_to(temporary)): p.stat().st_size for p in sorted(temporary.rglob("*")) if p.is_file()}
        text = json.dumps(asdict(progress) | {"files": files}, indent=1)
        (temporary / PROGRESS).write_text(text + "\n", encoding="utf-8")
        flush(temporary)
        remove(target)  # of the same step, by a run that then could not go on
        temporary.rename(target)
        flush(run, recursive=False)

    try:
        for act in (start, lambda: fill(temporary), finish):
            processes.together(lambda act=act: told(target, act))  # type: ignore[misc]
    except BaseException:
        if processes.first:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    if processes.first:
        for step in [step for step in steps(run) if step <= progress.step][:-keep]:
            remove(run / f"checkpoint-{step}")
    return target


def steps(run: Path) -> list[int]:
    """Steps of the run's checkpoints, ascending."""
    if not run.is_dir():
        return []
    return sorted(int(match[1]) for path in run.iterdir() if (match := _NAME.fullmatch(path.name)) and path.is_dir())


def last(run: Path) -> tuple[Path, Progress] | None:
    """The newest complete checkpoint; one whose files are cut short or missing is passed over."""
    for step in reversed(steps(run)):
        folder = run / f"checkpoint-{step}"
        try:
            progress = read_progress(folder)
        except DataError:
            continue
        if all((folder / n).is_file() and (folder / n).stat().st_size == size for n, size in progress.files.items()):
            return folder, progress
    return None


def read_progress(folder: Path) -> Progress:
    """Read a checkpoint's progress.json. Raises DataError where it is missing or damaged."""
    try:
        return Progress(**json.loads((folder / PROGRESS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{folder / PROGRESS}: is missing or damaged: {error}") from None


def sweep(run: Path) -> None:
    """Remove what a killed run left half written."""
    for stray in run.glob(f"{TEMPORARY}*"):
        remove(stray)


def check_same_run(folder: Path, progress: Progress, config: TrainConfig, hashes: Mapping[str, str | None]) -> None:
    """Compare a checkpoint with the run that wants to go on from it.

    Raises:
        ConfigError: the mixture, the base or a setting that the weights depend on differs; says which.
    """
    now = json.loads(json.dumps(asdict(config)))
    differing = [
        f"{name}: was {told!r}, now is {found!r}"
        for name, told, found in _differences(progress.config, now)
        if name.partition(".")[0] not in MAY_CHANGE
    ]
    for name in sorted(set(progress.hashes) | set(hashes)):
        if progress.hashes.get(name) != hashes.get(name):
            where = config.base if name == "base" else config.data
            differing.append(f"{name}: {where} is not the one that this run began with")
    if differing:
        raise ConfigError(
            f"{folder}: cannot go on from here:\n"
            + "\n".join(f"  {line}" for line in differing)
            + f"\nTake these back, or begin another run with another --run. What may change: {', '.join(MAY_CHANGE)} "
            "(batch_size x accumulation x processes must stay the same)."
        )


def check_global_batch(folder: Path, progress: Progress, config: TrainConfig, world: int) -> None:
    """Raise ConfigError unless an optimizer step still takes as many samples as before."""
    now = config.batch_size * config.accumulation * world
    if now != progress.global_batch:
        raise ConfigError(
            f"{folder}: an optimizer step took {progress.global_batch} samples, now it would take {now} "
            f"(batch_size {config.batch_size} x accumulation {config.accumulation} x {world} processes). "
            "Change --batch-size or --accumulation so that the product stays the same."
        )


def flush(folder: Path, recursive: bool = True) -> None:
    """Let the disk have everything in a folder, so that a rename after this survives a power cut."""
    if recursive:
        for path in folder.rglob("*"):
            _sync(path)
    _sync(folder)


def explained(where: Path, error: BaseException) -> StorageError | None:
    """The StorageError for a failed write, also where torch or safetensors wrapped the system's error."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno:
            return StorageError(f"{where}: {explain(seen)}")
        if match := re.search(r"os error (\d+)", str(seen)):
            return StorageError(f"{where}: {explain(OSError(int(match[1]), os.strerror(int(match[1]))))}")
        seen = seen.__cause__ or seen.__context__
    if isinstance(error, RuntimeError) and re.search(r"PytorchStreamWriter|unexpected pos|write", str(error)):
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        known = shutil.disk_usage(where.parent).free < 1 << 24
        return StorageError(f"{where}: {explain(full) if known else f'cannot be written: {error}'}")
    return None


def told(where: Path, act: Callable[[], None]) -> None:
    """Do some writing; what the system refuses becomes a StorageError about `where`."""
    from safetensors import SafetensorError

    try:
        act()
    except (OSError, RuntimeError, SafetensorError) as error:
        raise explained(where, error) or error from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(folder: Path) -> None:
    """Remove a file or folder; a checkpoint loses its name first, so that half of one is never taken for one."""
    if not folder.exists():
        return
    if folder.is_file():
        folder.unlink()
        return
    if not folder.name.startswith(TEMPORARY):
        folder = folder.rename(folder.with_name(f"{TEMPORARY}old-{folder.name}"))
    shutil.rmtree(folder)


def _differences(told: Mapping[str, Any], found: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    result: list[tuple[str, Any, Any]] = []
    for key in sorted(set(told) | set(found)):
        one, other = told.get(key), found.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            result += _differences(one, other, f"{prefix}{key}.")
        elif one != other:
            result.append((f"{prefix}{key}", one, other))
    return result
