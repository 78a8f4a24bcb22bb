"""Checkpoints that are complete or absent; `run_folder.py` describes their files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from oxe_curate.atomic import TEMPORARY, flush, remove, replace_folder
from oxe_curate.errors import DataError
from oxe_curate.inputs import load_json
from oxe_curate.train.loop.disk import disk_errors
from oxe_curate.train.loop.distributed import Distributed
from oxe_curate.train.run_folder import CheckpointFolder, RunFolder


@dataclass(frozen=True)
class Progress:
    """The state of a run at a checkpoint, without its weights.

    Attributes:
        step: optimizer steps done. consumed: samples seen by all processes.
        global_batch: samples per optimizer step.
        config: the resolved configuration.
        hashes: of the mixture's files, and "base" of the base model's config.json.
        meter: sums of the unfinished log line.
        files: path -> size of every file of the checkpoint.
    """

    step: int
    consumed: int
    global_batch: int
    config: dict[str, Any]
    hashes: dict[str, str | None]
    meter: dict[str, list[float]] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)


Resumed = tuple[CheckpointFolder, Progress]
"""The checkpoint that a run continues from."""


def save_checkpoint(
    run: RunFolder, progress: Progress, fill: Callable[[CheckpointFolder], None], keep: int, dist: Distributed
) -> CheckpointFolder:
    """Publish a checkpoint: a temporary folder, synced to the disk, then renamed; then remove older ones.

    Args:
        run: the run folder.
        progress: without `files`.
        fill: writes the files of this process into the given folder, without communication.
        keep: number of checkpoints to keep.
        dist: all processes take part.

    Raises:
        StorageError: the disk is full or not writable. Earlier checkpoints are intact.
    """
    target = run.checkpoint(progress.step)
    temporary = CheckpointFolder(run.path / f"{TEMPORARY}{target.path.name}")

    def start() -> None:
        if dist.first:
            remove(temporary.path)
            temporary.path.mkdir(parents=True)

    def finish() -> None:
        if not dist.first:
            return
        found = (path for path in sorted(temporary.path.rglob("*")) if path.is_file())
        files = {str(path.relative_to(temporary.path)): path.stat().st_size for path in found}
        text = json.dumps(asdict(progress) | {"files": files}, indent=1)
        temporary.progress.write_text(text + "\n", encoding="utf-8")
        flush(temporary.path)
        replace_folder(temporary.path, target.path)  # there may be a damaged checkpoint of the same step

    def act(part: Callable[[], None]) -> None:
        with disk_errors(target.path):
            part()

    try:
        for part in (start, lambda: fill(temporary), finish):
            dist.together(lambda part=part: act(part))  # type: ignore[misc]
    except BaseException:
        if dist.first:
            shutil.rmtree(temporary.path, ignore_errors=True)
        raise
    if dist.first:
        for step in [step for step in run.steps() if step <= progress.step][:-keep]:
            remove(run.checkpoint(step).path)
    return target


def last_checkpoint(run: RunFolder) -> Resumed | None:
    """The newest complete checkpoint; damaged ones are skipped."""
    for step in reversed(run.steps()):
        folder = run.checkpoint(step)
        try:
            progress = _read_progress(folder.progress)
        except DataError:
            continue
        if all(_has_size(folder.path / name, size) for name, size in progress.files.items()):
            return folder, progress
    return None


def _read_progress(path: Path) -> Progress:
    try:
        return Progress(**load_json(path, error=DataError))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: missing or damaged: {error}") from None


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
