"""Interface of model families; docs/decisions/families.md explains how to add one.

Training, evaluation, export and serving use models only through this interface.
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
from oxe_curate.train.settings import ResizeFilter

_FAMILIES = {
    "openvla": "oxe_curate.train.models.openvla.family:OpenVLAFamily",
    "roboflamingo": "oxe_curate.train.models.roboflamingo.family:FlamingoFamily",
}


@dataclass(frozen=True)
class PolicySpec:
    """Inputs and outputs of a trained model; saved with it, so that inference needs no mixture.

    Attributes:
        cameras: roles, in the order of the model's images.
        window: number of observations in the input. chunk: number of actions predicted at once.
        image_size: side of the square images in pixels.
        proprio: width of the proprio state, 0 for none.
        statistics: data set -> OpenVLA's dictionary of statistics (`dataset_statistics.json`).
        tokens: bin -> token id, None for a family without action tokens. bins: "openvla" or "uniform".
        hashes: SHA-256 of the statistics, the token table and the mixture.
        resize: the filter for images of another size.
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
    resize: ResizeFilter = "bicubic"


class Controller(abc.ABC):
    """A loaded model for control at batch 1, with its state between steps."""

    @abc.abstractmethod
    def act(
        self, images: NDArray[np.uint8], instruction: str, proprio: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        """One control step.

        Args:
            images: uint8 (C, S, S, 3), RGB, with the cameras and size of the spec.
            instruction: as written by the user.
            proprio: float32 (P,), normalized to [-1, 1], None if the spec has none.

        Returns:
            float32 (K, 7), normalized: this step's action first.
        """

    def reset(self) -> None:  # noqa: B027 (most models keep no state)
        """Forget the episode so far."""


class Family(nn.Module, abc.ABC):
    """A model in training: network, trained parameters and loss.

    Attributes:
        name: on the command line.
        net: the network with its published parameter names, wrapped in a PEFT model if an adapter is trained.
        spec: inputs and outputs.
    """

    name: ClassVar[str]
    net: nn.Module
    spec: PolicySpec

    @classmethod
    @abc.abstractmethod
    def build(cls, config: TrainConfig, mixture: MixtureFolder, device: torch.device) -> Family:
        """Load `config.base` on `device`, quantized, adapted and frozen as configured.

        Raises:
            ConfigError: the base is not such a model, or the mixture does not fit it.
        """

    @classmethod
    @abc.abstractmethod
    def restore(cls, config: TrainConfig, spec: PolicySpec, folder: Path | None, device: torch.device) -> Family:
        """Load `config.base` and the trained weights that `save` wrote to `folder`, for evaluation or inference.

        If `folder` is None, `config.base` is a merged or published checkpoint: no adapter is attached, and
        `config.adapter` only selects its quantization ("qlora", "int8").
        """

    @property
    @abc.abstractmethod
    def collator(self) -> Collator:
        """Collates rows into batches. Picklable; holds no parameters."""

    @abc.abstractmethod
    def forward(self, **batch: Any) -> dict[str, torch.Tensor]:
        """The loss of a batch, in training or validation.

        Returns:
            "loss": scalar, mean of the per-sample losses, so that the losses of equal parts of a batch average to the
            loss of the batch; other detached scalars to log, by name.
        """

    @abc.abstractmethod
    def predict(self, batch: Batch) -> torch.Tensor:
        """float32 (n, K, 7), normalized: greedy prediction of the actions at each sample's current step."""

    @abc.abstractmethod
    def parameter_groups(self, weight_decay: float | None) -> list[dict[str, Any]]:
        """The trained parameters as AdamW groups; None asks for the family's usual decay."""

    @abc.abstractmethod
    def save(self, folder: Path) -> None:
        """Write the trained weights: adapter in PEFT's layout, others in `extra.safetensors`."""

    @abc.abstractmethod
    def load(self, folder: Path) -> None:
        """Read back what `save` wrote, into a model built alike, and exactly."""

    @abc.abstractmethod
    def controller(self, compile: bool = True) -> Controller:
        """A controller that shares the weights of this model.

        Args:
            compile: use torch.compile where the family supports it; the first step then takes minutes.
        """

    @abc.abstractmethod
    def export(self, folder: Path, merge: bool) -> None:
        """Write weights, configuration and processor files for the original inference code of the family."""


def family(name: str) -> type[Family]:
    """The family's class. Raises ConfigError for an unknown name."""
    if name not in _FAMILIES:
        raise ConfigError(f"model: unknown family {name!r}. {did_you_mean(name, _FAMILIES)}")
    module, _, attribute = _FAMILIES[name].partition(":")
    found: type[Family] = getattr(importlib.import_module(module), attribute)
    return found
