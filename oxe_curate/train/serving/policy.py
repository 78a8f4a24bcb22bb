"""A trained model as a robot uses it: pictures and an instruction in, an action in real units out."""

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
from oxe_curate.train.serving.observe import as_images, as_proprio

_ADAPTERS: dict[Quantization, Literal["int8", "qlora"]] = {"int8": "int8", "nf4": "qlora"}


class Policy:
    """A loaded model for control, one robot at a time.

    Attributes:
        spec: what the model sees and does.
        unnorm_key: data set whose bounds are used where a call names none; None: every call must.
        center_crop: whether the middle of each picture is cut out, as for a model trained with random crops.
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
        """Wrap a model; see `load` for the usual way.

        Raises:
            ConfigError: an `unnorm_key` that is not among the bounds.
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
        """Load a run, an exported folder or a published OpenVLA checkpoint.

        Args:
            folder: one of the three.
            unnorm_key: data set whose bounds turn the output into actions; may be left out where there is one, or
                where every call names its own.
            quantize: hold the language model in int8 or NF4. Default: as it was trained.
            device: default the GPU, if there is one.
            dtype: of weights and activations; default as trained.
            center_crop: cut out the middle of each picture; default as trained (True after random crops).
            checkpoint: step of a run; default its end.
            base: where the base checkpoint lies, if not where it lay in training.
            compile: compile OpenVLA with torch.compile on a GPU: the first action, or `warm_up`, then takes minutes
                (less once torch has cached the code on disk), and later actions are about four times as fast.

        Raises:
            ConfigError: no such folder, checkpoint, base or key (lists the keys), a quantisation that does not fit.
            DataError: statistics, token table, mixture or base are not those of the training.
            MemoryFullError: the GPU is too small.
        """
        saved = open_saved(folder, checkpoint=checkpoint, base=base)
        if unnorm_key is not None:
            choose_key(saved.spec.statistics, unnorm_key, str(saved.folder))  # before minutes of loading
        model = load_model(saved, quantize=quantize, device=device, dtype=dtype)
        crop = saved.config.augment if center_crop is None else center_crop
        return cls(
            model, saved.bounds, unnorm_key=unnorm_key, center_crop=crop, where=str(saved.folder), compile=compile
        )

    @property
    def unnorm_keys(self) -> tuple[str, ...]:
        """Data sets whose bounds the model knows."""
        return tuple(self._bounds)

    def __call__(
        self,
        images: Any,
        instruction: str,
        proprio: ArrayLike | None = None,
        *,
        unnorm_key: str | None = None,
    ) -> NDArray[np.float64]:
        """The action to do now.

        Args:
            images: one picture, a sequence in the order of `spec.cameras`, or a mapping of role to picture; each
                a PIL image or uint8 (H, W, 3), RGB, of any size.
            instruction: the task in words.
            proprio: (P,), the robot's state in the data set's units, for a model trained with it.
            unnorm_key: instead of the policy's own.

        Returns:
            float64 (7,): displacement of the end effector along x, y and z in metres, roll, pitch and yaw in radians
            (or in the data set's own units), gripper (1 = open). The gripper is the model's number, not rounded.

        Raises:
            ConfigError: pictures, text, state or key that do not fit the model.
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
        """All actions that the model predicts at this step, float64 (K, 7); otherwise as a call."""
        key = choose_key(self._bounds, unnorm_key or self.unnorm_key, self._where)
        if not isinstance(instruction, str) or not instruction.strip():
            raise ConfigError("instruction: expected the task in words")
        pictures = as_images(images, self.spec.cameras, self.spec.image_size, self.center_crop)
        state = as_proprio(proprio, self._bounds[key], self.spec.proprio)
        with torch.no_grad():
            normalized = self._controller.act(pictures, instruction, state)
        if not np.isfinite(normalized).all():
            raise DataError(
                f"{self._where}: the model's output is not finite. Were the weights damaged, or did training diverge?"
            )
        return self._bounds[key].denormalize(normalized)

    def warm_up(self) -> None:
        """Make one step of nothing, so that the robot's first is no slower than the others; begins a new episode."""
        key = self.unnorm_key or self.unnorm_keys[0]
        size, known = self.spec.image_size, self._bounds[key].proprio
        black = {role: np.zeros((size, size, 3), np.uint8) for role in self.spec.cameras}
        self.chunk(black, "wait", known.mean if self.spec.proprio and known else None, unnorm_key=key)
        self.reset()

    def reset(self) -> None:
        """Begin a new episode: forget frames and state. Nothing happens for a model that keeps none."""
        self._controller.reset()


def load_model(
    saved: Saved,
    *,
    quantize: Quantization | None = None,
    device: str | torch.device | None = None,
    dtype: Literal["bf16", "fp32"] | None = None,
) -> Family:
    """Build the model of a folder, for inference.

    Raises:
        ConfigError: a quantisation that does not fit, a device that is not there.
        MemoryFullError: the GPU is too small.
    """
    config = _quantized(saved, quantize)
    if dtype is not None:
        config = replace(config, dtype=dtype)
    where = choose_device(device)
    try:
        return family(config.model).restore(config, saved.spec, saved.weights, where)
    except torch.OutOfMemoryError:
        free, total = (n / 2**30 for n in torch.cuda.mem_get_info(where))
        smaller = "" if config.adapter == "qlora" else " Hold the language model in 4 bits with --quantize nf4, or take"
        raise MemoryFullError(
            f"{saved.folder}: does not fit into the GPU's memory ({free:.1f} of {total:.1f} GiB are free)."
            f"{smaller or ' Take'} --device cpu."
        ) from None


def choose_device(device: str | torch.device | None) -> torch.device:
    """The device of that name, by default the GPU if there is one.

    Raises:
        ConfigError: not the name of a device, or not there.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"device: {device!r} is not known; expected cuda, cuda:1 or cpu") from None
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device: {device!r} is not there: {torch.cuda.device_count()} GPUs are seen")
    return found


def _quantized(saved: Saved, quantize: Quantization | None) -> TrainConfig:
    config = saved.config
    if quantize is None:
        return config
    if quantize not in _ADAPTERS:
        raise ConfigError(f"quantize: {quantize!r} is not known. Known: int8, nf4.")
    wanted = _ADAPTERS[quantize]
    if saved.weights is None or config.adapter in ("lora", wanted):
        return replace(config, adapter=wanted)
    if config.adapter == "none":
        why = "it tuned the weights themselves"
    else:  # an adapter corrects the errors of the quantisation it was trained on
        why = f"its adapter was trained on a base in {'NF4' if config.adapter == 'qlora' else 'int8'}"
    raise ConfigError(
        f"{saved.folder}: cannot be held in {quantize}: {why}. Run `oxe-curate export --merge` and quantise its result."
    )
