"""The layout of a run folder: the name and place of every file that train writes.

RUN/
  run.json                   model family, software, hashes, policy spec (under "contract"), package versions
  config.yaml                the configuration as resolved
  dataset_statistics.json, action_tokens.parquet, mixture.yaml     copies of the mixture's tables
  sources.parquet            source shards of a mixture by reference, as they were found when they were compared
  log.jsonl, validation.json, tensorboard/
  adapter/                   the trained weights at the end of the run
  checkpoint-<step>/
    weights/                 what Family.save writes
    optimizer.pt             optimizer moments by parameter name, unsharded: they fit any number of GPUs
    scheduler.pt, rng_state_<rank>.pth, trainer_state.json
    progress.json            written last: step, samples, configuration, hashes, sizes of the files
  evaluation/                of the end of the run; evaluation/checkpoint-<step>/ of a checkpoint
  .oxe-lock                  while a process trains here: which one

An exported model has oxe_curate.json instead of run.json.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oxe_curate.errors import DataError
from oxe_curate.inputs import load_json

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class CheckpointFolder:
    """The folder of one checkpoint."""

    path: Path

    @property
    def weights(self) -> Path:
        """Folder of the trained weights."""
        return self.path / "weights"

    @property
    def optimizer(self) -> Path:
        """Moments of the optimizer."""
        return self.path / "optimizer.pt"

    @property
    def scheduler(self) -> Path:
        """State of the learning-rate schedule."""
        return self.path / "scheduler.pt"

    @property
    def trainer_state(self) -> Path:
        """State of Hugging Face's Trainer."""
        return self.path / "trainer_state.json"

    @property
    def progress(self) -> Path:
        """Description of the checkpoint; written last."""
        return self.path / "progress.json"

    def random_state(self, rank: int) -> Path:
        """Random generators of one process."""
        return self.path / f"rng_state_{rank}.pth"


@dataclass(frozen=True)
class RunFolder:
    """A run folder, or an exported model with the same tables."""

    path: Path

    @property
    def record(self) -> Path:
        """What the run is, in JSON."""
        return self.path / "run.json"

    @property
    def export_record(self) -> Path:
        """What an exported model is, in JSON."""
        return self.path / "oxe_curate.json"

    @property
    def config(self) -> Path:
        """The configuration as resolved."""
        return self.path / "config.yaml"

    @property
    def sources(self) -> Path:
        """The source shards as they were compared."""
        return self.path / "sources.parquet"

    @property
    def adapter(self) -> Path:
        """Folder of the trained weights at the end of the run."""
        return self.path / "adapter"

    @property
    def log(self) -> Path:
        """One JSON object per log line."""
        return self.path / "log.jsonl"

    @property
    def validation(self) -> Path:
        """List of validation results."""
        return self.path / "validation.json"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard's event files."""
        return self.path / "tensorboard"

    def checkpoint(self, step: int) -> CheckpointFolder:
        """The checkpoint of a step, whether it exists or not."""
        return CheckpointFolder(self.path / f"checkpoint-{step}")

    def steps(self) -> list[int]:
        """Steps of the checkpoints, ascending; complete or not."""
        if not self.path.is_dir():
            return []
        names = [entry.name for entry in self.path.iterdir() if entry.is_dir()]
        return sorted(int(match[1]) for name in names if (match := _CHECKPOINT.fullmatch(name)))

    def evaluation(self, step: int | None) -> Path:
        """Default folder of an evaluation: of a checkpoint, or of the end of the run."""
        folder = self.path / "evaluation"
        return folder if step is None else folder / f"checkpoint-{step}"

    def validations(self, until: int | None = None) -> list[dict[str, Any]]:
        """Validation results in order, up to a step. Raises DataError where the file is damaged."""
        if not self.validation.is_file():
            return []
        found = _read(self.validation)
        if not isinstance(found, list):
            raise DataError(f"{self.validation}: expected a list, got {type(found).__name__}")
        return [entry for entry in found if until is None or entry["step"] <= until]


def checkpoint_step(name: str) -> int | None:
    """The step in the name of a checkpoint folder, None for another name."""
    match = _CHECKPOINT.fullmatch(name)
    return int(match[1]) if match else None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises DataError if the file is missing or is something else."""
    data = _read(path)
    if not isinstance(data, dict):
        raise DataError(f"{path}: expected a JSON object, got {type(data).__name__}")
    return data


def _read(path: Path) -> Any:
    return load_json(path, error=DataError)
