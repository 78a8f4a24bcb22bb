"""The small interface that every model family answers to; see docs/decisions/families.md for adding one.

The trainer, evaluation, export and serving know nothing of a model but this.
"""

from __future__ import annotations

import abc
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from oxe_curate.errors import ConfigError, did_you_mean
from oxe_curate.tokenize.folder import MixtureFolder
from oxe_curate.train.config import TrainConfig
from oxe_curate.train.data.batch import Batch, Collator

_FAMILIES = {
    "openvla": "oxe_curate.train.models.openvla.family:OpenVLAFamily",
    "roboflamingo": "oxe_curate.train.models.roboflamingo.family:FlamingoFamily",
}


@dataclass(frozen=True)
class PolicySpec:
    """What a model was trained to see and to do; saved with it, so that inference needs no mixture.

    Attributes:
        cameras: roles in the order in which the model takes their images.
        window: observations the model looks at. chunk: actions it predicts at once.
        image_size: side in pixels of the square images.
        proprio: width of the robot's state, 0 without it.
        statistics: data set -> OpenVLA's dictionary of statistics (`dataset_statistics.json`).
        tokens: bin -> token id, None for a family without action tokens. bins: "openvla" or "uniform".
        hashes: SHA-256 of the statistics, the token table and the mixture.
    """

    cameras: tuple[str, ...]
    window: int
    chunk: int
    image_size: int
    proprio: int
    statistics: dict[str, Any]
    tokens: tuple[int, ...] | None
    bins: str
    hashes: dict[str, str]


class Controller(abc.ABC):
    """A loaded model at control time, batch 1, with whatever state it keeps between steps."""

    @abc.abstractmethod
    def act(
        self, images: NDArray[np.uint8], instruction: str, proprio: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        """One control step.

        Args:
            images: uint8 (C, S, S, 3), RGB, in the spec's order of cameras and size.
            instruction: as the user wrote it.
            proprio: float32 (P,), normalised to [-1, 1], None where the spec has none.

        Returns:
            float32 (K, 7), normalised: this step's action first.
        """

    def reset(self) -> None:  # noqa: B027 (most models keep no state)
        """Forget the episode so far."""


class Family(nn.Module, abc.ABC):
    """A model in training: the network, what of it is trained, its loss.

    Attributes:
        name: as on the command line.
        net: the network with its published parameter names; a PEFT model around it where an adapter is trained.
        spec: what it sees and does.
    """

    name: ClassVar[str]
    net: nn.Module
    spec: PolicySpec

    @classmethod
    @abc.abstractmethod
    def build(cls, config: TrainConfig, mixture: MixtureFolder, device: torch.device) -> Family:
        """Load `config.base` on `device`, quantised, adapted and frozen as the configuration asks.

        Raises:
            ConfigError: a base that is no such model, a mixture that does not fit it; says what to do.
        """

    @classmethod
    @abc.abstractmethod
    def restore(cls, config: TrainConfig, spec: PolicySpec, folder: Path | None, device: torch.device) -> Family:
        """Load `config.base` and the trained weights in `folder` (what `save` wrote) for evaluation or inference.

        With `folder` None, `config.base` is an exported or published checkpoint, whole as it stands: nothing is
        wrapped around it, and `config.adapter` says only whether it is quantised ("qlora", "int8").
        """

    @property
    @abc.abstractmethod
    def collator(self) -> Collator:
        """Makes batches of rows. Picklable; holds no parameters."""

    @abc.abstractmethod
    def forward(self, **batch: Any) -> dict[str, torch.Tensor]:
        """The loss of a batch, in training or validation.

        Returns:
            "loss": scalar, the mean over the batch's samples of each sample's loss, so that equal-sized parts of a
            batch average to the loss of the whole; further scalars by name for the log, detached.
        """

    @abc.abstractmethod
    def predict(self, batch: Batch) -> torch.Tensor:
        """float32 (n, K, 7), normalised: the actions the model would do at each sample's current step, greedily."""

    @abc.abstractmethod
    def parameter_groups(self, weight_decay: float | None) -> list[dict[str, Any]]:
        """The trained parameters as AdamW groups; None asks for the family's usual decay."""

    @abc.abstractmethod
    def save(self, folder: Path) -> None:
        """Write the trained weights alone: adapter in PEFT's layout, others as `extra.safetensors`."""

    @abc.abstractmethod
    def load(self, folder: Path) -> None:
        """Read back what `save` wrote, into a model built alike, and exactly."""

    @abc.abstractmethod
    def controller(self) -> Controller:
        """The model for control, sharing its weights with this one."""

    @abc.abstractmethod
    def export(self, folder: Path, merge: bool) -> None:
        """Write weights, configuration and processor files as the family's own inference code reads them."""


def family(name: str) -> type[Family]:
    """The family's class. Raises ConfigError for an unknown name."""
    if name not in _FAMILIES:
        raise ConfigError(f"model: {name!r} is not known. {did_you_mean(name, _FAMILIES)}")
    module, _, attribute = _FAMILIES[name].partition(":")
    found: type[Family] = getattr(importlib.import_module(module), attribute)
    return found
