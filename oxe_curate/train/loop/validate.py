"""Validation on held-out samples: loss, token accuracy, and the error of each action dimension in real units."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from oxe_curate.tokenize.folder import MixtureFolder
from oxe_curate.train.data.batch import Batch, Collator, Rows
from oxe_curate.train.data.mixed import MixedImages, crop_images
from oxe_curate.train.data.rows import ACTION_WIDTH
from oxe_curate.train.loop.distributed import Distributed
from oxe_curate.train.loop.progress_log import LOSS
from oxe_curate.train.loop.sharding import settle
from oxe_curate.train.loop.train_state import untouched_random_state

_DATASET, _ACTIONS, _BINS, _MASK = "held_dataset", "held_actions", "held_bins", "held_mask"
_SAME = 1e-4
"""Tolerance between bin centers, which are 0.008 apart. OpenVLA's last two bins share a center, so ids would differ."""


@dataclass(frozen=True)
class HeldOut:
    """Collates held-out rows: the family's batch and the targets of its prediction.

    Attributes:
        collator: of the family.
        crop: crop the center of each image, as at inference after training with random crops.
    """

    collator: Collator
    crop: bool = False

    def __call__(self, rows: Rows) -> Batch:
        """The family's batch with four more keys, which `validate` removes."""
        shown = replace(rows, images=crop_images(rows.images)) if self.crop else rows
        return {
            **self.collator(shown),
            _DATASET: torch.from_numpy(np.asarray(rows.dataset, np.int64)),
            _ACTIONS: torch.from_numpy(np.array(rows.actions[:, -1], np.float32)),
            _BINS: torch.from_numpy(np.array(rows.bins[:, -1], np.uint8)),
            _MASK: torch.from_numpy(np.array(rows.action_mask[:, -1], np.bool_)),
        }


def validate(
    family: Any,
    batches: Iterable[Batch],
    mixture: MixtureFolder,
    dist: Distributed,
    autocast: AbstractContextManager[Any],
) -> dict[str, Any]:
    """Run a family over held-out batches; its mode and the random generators are restored at the end.

    Args:
        family: in training or evaluation mode.
        batches: of this process, made with `HeldOut`; the same number in every process.
        mixture: has the data sets that `Rows.dataset` counts, and their bounds.
        dist: all processes take part.
        autocast: entered around every forward pass.

    Returns:
        "samples"; the family's scalars, averaged over the samples ("loss", "token_accuracy", ...); "datasets": name ->
        "samples"; "l1", the mean absolute error of the 7 dimensions in the data set's units, over the chunk's valid
        steps; and for a model with action tokens "greedy_accuracy", the share of correct bins without teacher
        forcing.
    """
    scalars: dict[str, tuple[float, int]] = {}
    names = mixture.names
    bins = mixture.tokens.action_bins if family.spec.tokens is not None else None
    sums = np.zeros((len(names), 3 + ACTION_WIDTH))
    count = 0
    training = family.training
    family.eval()
    try:
        with untouched_random_state(), torch.no_grad():
            for batch in batches:
                held = {key: batch.pop(key) for key in (_DATASET, _ACTIONS, _BINS, _MASK)}
                n = len(held[_DATASET])
                moved = to_device(batch, dist.device)
                with autocast:
                    outputs = family(**moved)
                    predicted = family.predict(moved)
                for key, value in outputs.items():
                    if value.numel() == 1 and (key == LOSS or not value.isnan()):  # NaN: no value in this batch
                        total, number = scalars.get(key, (0.0, 0))
                        scalars[key] = (total + float(value) * n, number + n)
                count += n
                actions = predicted.float().cpu().numpy()
                _add_errors(sums, actions, held, mixture)
                if bins is not None:
                    _add_equal(sums, np.abs(actions - bins.decode(held[_BINS].numpy())) < _SAME, held)
    finally:
        settle(family)
        family.train(training)
    return _result(scalars, count, sums, names, bins is not None, dist)


def to_device(value: Any, device: torch.device) -> Any:
    """Move a batch to the device, where mixed images are resized; copies from pinned memory overlap with computation.

    So a model sees tensors of the same shapes, however large the images of the mixture are.
    """
    if isinstance(value, MixedImages):
        return value.resized(device)
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {key: to_device(item, device) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(to_device(item, device) for item in value)
    return value


def _add_errors(
    sums: NDArray[np.float64],
    predicted: NDArray[np.float32],
    held: Mapping[str, Any],
    mixture: MixtureFolder,
) -> None:
    dataset, actions, mask = (held[key].numpy() for key in (_DATASET, _ACTIONS, _MASK))
    for number in np.unique(dataset):
        mine = dataset == number
        bounds = mixture.statistics[mixture.names[number]]
        error = np.abs(bounds.denormalize(predicted[mine]) - bounds.denormalize(actions[mine]))
        valid = mask[mine]
        sums[number, 0] += mine.sum()
        sums[number, 1] += valid.sum()
        sums[number, 3:] += (error * valid[..., None]).sum(axis=(0, 1))


def _add_equal(sums: NDArray[np.float64], equal: NDArray[np.bool_], held: Mapping[str, Any]) -> None:
    valid = equal & held[_MASK].numpy()[..., None]
    np.add.at(sums[:, 2], held[_DATASET].numpy(), valid.sum(axis=(1, 2)))


def _result(
    scalars: dict[str, tuple[float, int]],
    count: int,
    sums: NDArray[np.float64],
    names: tuple[str, ...],
    tokens: bool,
    dist: Distributed,
) -> dict[str, Any]:
    gathered = dist.gather((count, scalars))
    sums = dist.sum(sums)
    averaged = {}
    for key in sorted({key for _, part in gathered for key in part}):
        pairs = [part[key] for _, part in gathered if key in part]
        averaged[key] = sum(value for value, _ in pairs) / sum(n for _, n in pairs)
    return {
        "samples": sum(n for n, _ in gathered),
        **averaged,
        "datasets": {
            name: {
                "samples": int(row[0]),
                **({"greedy_accuracy": float(row[2] / max(ACTION_WIDTH * row[1], 1))} if tokens else {}),
                "l1": (row[3:] / max(row[1], 1)).tolist(),
            }
            for name, row in zip(names, sums, strict=True)
            if row[0]
        },
    }
