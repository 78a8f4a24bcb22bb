"""A trained model for control: images and an instruction in, an action in real units out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from oxe_curate.actions.bounds import Bounds
from oxe_curate.errors import ConfigError, DataError
from oxe_curate.train.config import TrainConfig
from oxe_curate.train.loop.memory import MemoryFullError
from oxe_curate.train.loop.saved import Saved, choose_key, open_saved
from oxe_curate.train.models.base import Family, PolicySpec, family
from oxe_curate.train.models.weights import Quantization
from oxe_curate.train.packages import check_adapter_packages
from oxe_curate.train.serving.observe import as_images, as_proprio

_ADAPTERS: dict[Quantization, Literal["int8", "qlora"]] = {"int8": "int8", "nf4": "qlora"}


class Policy:
    """A loaded model for control, one robot at a time.

    Attributes:
        spec: what the model sees and does.
        unnorm_key: data set whose bounds are used unless a call names another; None: every call must name one.
        center_crop: crop the center of each image, as for a model trained with random crops.
    """

    def __init__(
        self,
        model: Family,
        bounds: Mapping[str, Bounds],
        *,
        unnorm_key: str | None = None,
        center_crop: bool = False,
        where: str = "policy",
        compile: bool = True,
    ) -> None:
        """Wrap a model; usually called through `load`.

        Raises:
            ConfigError: an unknown `unnorm_key`.
        """
        if unnorm_key is not None or len(bounds) == 1:
            unnorm_key = choose_key(bounds, unnorm_key, where)
        self.spec: PolicySpec = model.spec
        self.unnorm_key = unnorm_key
        self.center_crop = center_crop
        self._bounds, self._where = dict(bounds), where
        self._model = model.eval().requires_grad_(False)
        self._controller = model.controller(compile)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        unnorm_key: str | None = None,
        *,
        quantize: Quantization | None = None,
        device: str | torch.device | None = None,
        dtype: Literal["bf16", "fp32"] | None = None,
        center_crop: bool | None = None,
        checkpoint: int | None = None,
        base: str | Path | None = None,
        compile: bool = True,
    ) -> Policy:
        """Load a run, an exported model or a published OpenVLA checkpoint.

        Args:
            folder: of the model.
            unnorm_key: data set whose bounds denormalize the output; optional if there is one data set, or if every
                call names one.
            quantize: quantize the language model to int8 or NF4; default as in training.
            device: default the GPU, if there is one.
            dtype: of weights and activations; default as in training.
            center_crop: crop the center of each image; default as in training (True after random crops).
            checkpoint: step of a run; default its end.
            base: folder of the base model, if it has moved since the training.
            compile: compile OpenVLA with torch.compile on a GPU: the first action, or `warm_up`, then takes minutes
                (less once torch has cached the code on disk), and later actions are about four times as fast.

        Raises:
            ConfigError: no such folder, checkpoint, base or key; a quantization that does not fit; a missing package.
            DataError: statistics, token table, mixture or base differ from those of the training.
            MemoryFullError: the GPU is too small.
        """
        saved = open_saved(folder, checkpoint=checkpoint, base=base)
        if unnorm_key is not None:
            choose_key(saved.spec.statistics, unnorm_key, str(saved.folder))  # before loading, which takes minutes
        model = restore_model(saved, quantize=quantize, device=device, dtype=dtype)
        crop = saved.config.augment if center_crop is None else center_crop
        return cls(
            model, saved.bounds, unnorm_key=unnorm_key, center_crop=crop, where=str(saved.folder), compile=compile
        )

    @property
    def unnorm_keys(self) -> tuple[str, ...]:
        """Data sets whose bounds the model has."""
        return tuple(self._bounds)

    def __call__(
        self,
        images: Any,
        instruction: str,
        proprio: ArrayLike | None = None,
        *,
        unnorm_key: str | None = None,
    ) -> NDArray[np.float64]:
        """Predict the next action.

        Args:
            images: one image, a sequence in the order of `spec.cameras`, or a mapping of role to image; each a PIL
                image or uint8 (H, W, 3), RGB, of any size.
            instruction: the task.
            proprio: (P,), the robot state in the data set's units, for a model trained with it.
            unnorm_key: instead of the policy's own.

        Returns:
            float64 (7,): displacement of the end effector along x, y and z in metres, roll, pitch and yaw in radians
            (or in the data set's own units), gripper (1 = open). The gripper value is not rounded.

        Raises:
            ConfigError: images, instruction, proprio or key do not fit the model.
            DataError: the model's output is not finite.
        """
        action: NDArray[np.float64] = self.chunk(images, instruction, proprio, unnorm_key=unnorm_key)[0]
        return action

    def chunk(
        self,
        images: Any,
        instruction: str,
        proprio: ArrayLike | None = None,
        *,
        unnorm_key: str | None = None,
    ) -> NDArray[np.float64]:
        """Predict all actions of the chunk, float64 (K, 7); otherwise like a call."""
        key = choose_key(self._bounds, unnorm_key or self.unnorm_key, self._where)
        if not isinstance(instruction, str) or not instruction.strip():
            raise ConfigError("instruction: expected a text that is not empty")
        observed = as_images(images, self.spec.cameras, self.spec.image_size, self.center_crop, self.spec.resize)
        state = as_proprio(proprio, self._bounds[key], self.spec.proprio)
        with torch.no_grad():
            normalized = self._controller.act(observed, instruction, state)
        if not np.isfinite(normalized).all():
            raise DataError(
                f"{self._where}: the model's output is not finite; the weights are damaged or the training diverged"
            )
        return self._bounds[key].denormalize(normalized)

    def warm_up(self) -> None:
        """Predict for a black image, so that the robot's first step is as fast as the others; starts a new episode."""
        key = self.unnorm_key or self.unnorm_keys[0]
        size, known = self.spec.image_size, self._bounds[key].proprio
        black = {role: np.zeros((size, size, 3), np.uint8) for role in self.spec.cameras}
        self.chunk(black, "wait", known.mean if self.spec.proprio and known else None, unnorm_key=key)
        self.reset()

    def reset(self) -> None:
        """Start a new episode: clear the window and state of the model, if it has any."""
        self._controller.reset()


def restore_model(
    saved: Saved,
    *,
    quantize: Quantization | None = None,
    device: str | torch.device | None = None,
    dtype: Literal["bf16", "fp32"] | None = None,
) -> Family:
    """Build the model of a folder for inference.

    Args:
        saved: the folder.
        quantize: see `Policy.load`.
        device: see `Policy.load`.
        dtype: see `Policy.load`.

    Raises:
        ConfigError: a quantization that does not fit, an unknown device, a missing package.
        MemoryFullError: the GPU is too small.
    """
    config = _quantized(saved, quantize)
    if dtype is not None:
        config = replace(config, dtype=dtype)
    # RoboFlamingo puts LoRA layers on a quantized model even without trained ones
    check_adapter_packages(config.adapter, lora=saved.weights is not None or config.model == "roboflamingo")
    where = choose_device(device)
    try:
        return family(config.model).restore(config, saved.spec, saved.weights, where)
    except torch.OutOfMemoryError:
        free, total = (n / 2**30 for n in torch.cuda.mem_get_info(where))
        smaller = "" if config.adapter == "qlora" else "--quantize nf4 (language model in 4 bits) or "
        raise MemoryFullError(
            f"{saved.folder}: does not fit into the GPU memory ({free:.1f} of {total:.1f} GiB free). "
            f"Use {smaller}--device cpu."
        ) from None


def choose_device(device: str | torch.device | None) -> torch.device:
    """The device with this name, by default the GPU if there is one.

    Raises:
        ConfigError: an unknown name, or a GPU that does not exist.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"unknown device {device!r}; expected cuda, cuda:1 or cpu") from None
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {device!r} not found; this machine has {torch.cuda.device_count()} GPUs")
    return found


def _quantized(saved: Saved, quantize: Quantization | None) -> TrainConfig:
    config = saved.config
    if quantize is None:
        return config
    if quantize not in _ADAPTERS:
        raise ConfigError(f"unknown quantization {quantize!r}. Known: int8, nf4.")
    adapter = _ADAPTERS[quantize]
    if saved.weights is None or config.adapter in ("lora", adapter):
        return replace(config, adapter=adapter)
    if config.adapter == "none":
        why = "its weights were trained without an adapter"
    else:  # an adapter also corrects the errors of the quantization it was trained on
        why = f"its adapter was trained on a base in {'NF4' if config.adapter == 'qlora' else 'int8'}"
    raise ConfigError(
        f"{saved.folder}: cannot be quantized to {quantize}: {why}. "
        "Run `oxe-curate export --merge` and quantize the result."
    )
