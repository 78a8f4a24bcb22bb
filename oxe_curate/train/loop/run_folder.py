"""Whose a run folder is: nobody's, a run that goes on, or another's that must not be written over."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from oxe_curate.errors import ConfigError, DataError
from oxe_curate.storage import Folder
from oxe_curate.tokenize.folder import MixtureFolder
from oxe_curate.train.config import TrainConfig
from oxe_curate.train.loop import checkpoints, saved
from oxe_curate.train.loop.processes import Processes

LOCK = ".oxe-lock"


@contextmanager
def locked(run: Path, here: Processes) -> Iterator[None]:
    """Keep other processes from training in this folder; the system lets go of it however this one ends.

    Raises:
        ConfigError: somebody else is training here, or it is a file.
        StorageError: the folder cannot be written.
    """
    descriptor: int | None = None

    def take() -> None:
        nonlocal descriptor
        if not here.first:
            return
        if run.exists() and not run.is_dir():
            raise ConfigError(f"--run {run}: is a file; expected a folder to make or to go on with")
        Folder.of(run).check_writable()
        descriptor = os.open(run / LOCK, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"--run {run}: another process is training here. Wait for it, or stop it.") from None
        except OSError:
            return  # a file system without locks

    try:
        here.together(take)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def prepare(
    config: TrainConfig, mixture: MixtureFolder, resume: bool, here: Processes
) -> tuple[Path, checkpoints.Progress] | None:
    """Find what a run goes on from, and clear away what a killed one left.

    Returns:
        the last complete checkpoint, None to begin.

    Raises:
        ConfigError: the folder holds a run and `resume` is not asked for; or another run than this one.
        DataError: every checkpoint is damaged.
    """
    run = Path(config.run)
    here.together(lambda: checkpoints.sweep(run) if here.first else None)
    steps, finished = checkpoints.steps(run), (run / saved.ADAPTER).is_dir()
    if not resume:
        if steps or finished:
            what = f"a run of {steps[-1]} steps" if steps else "a finished run"
            raise ConfigError(f"--run {run}: holds {what}. Go on with --resume, or give another folder.")
        return None
    found = checkpoints.last(run)
    if found is None:
        if steps:
            raise DataError(f"{run}: its checkpoints ({', '.join(map(str, steps))}) are damaged; none is complete")
        return None
    checkpoints.check_same_run(*found, config, run_hashes(config, mixture))
    checkpoints.check_global_batch(*found, config, here.world)
    return found


def run_hashes(config: TrainConfig, mixture: MixtureFolder) -> dict[str, str | None]:
    """What a continuation must find unchanged."""
    return {**mixture.hashes, "base": saved.file_sha256(Path(config.base) / "config.json")}
