"""Validation on held-out samples: loss, token accuracy, and the error of each action dimension in real units."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from oxe_curate.tokenize.bounds import Bounds
from oxe_curate.train.batch import Batch, Collator, Rows
from oxe_curate.train.processes import Processes
from oxe_curate.train.train_state import untouched_random_state

_DATASET, _ACTIONS, _MASK = "held_dataset", "held_actions", "held_mask"
WIDTH = 7


@dataclass(frozen=True)
class HeldOut:
    """Collates held-out rows: the family's batch, and beside it what its prediction is compared with."""

    collator: Collator

    def __call__(self, rows: Rows) -> Batch:
        """The family's batch with three more names, which `validate` takes out again."""
        return {
            **self.collator(rows),
            _DATASET: torch.from_numpy(np.asarray(rows.dataset, np.int64)),
            _ACTIONS: torch.from_numpy(np.array(rows.actions[:, -1], np.float32)),
            _MASK: torch.from_numpy(np.array(rows.action_mask[:, -1], np.bool_)),
        }


def validate(
    family: Any,
    batches: Iterable[Batch],
    names: tuple[str, ...],
    statistics: Mapping[str, Bounds],
    processes: Processes,
    autocast: AbstractContextManager[Any],
) -> dict[str, Any]:
    """Run a family over held-out batches, without a trace in its mode or in the random generators.

    Args:
        family: in training or not.
        batches: this process's, made with `HeldOut`; as many in every process.
        names: the mixture's data sets, as `Rows.dataset` counts them.
        statistics: their bounds.
        processes: all take part.
        autocast: entered around every forward pass.

    Returns:
        "samples"; the family's scalars, averaged over the samples ("loss", "token_accuracy" ...); "datasets": name ->
        "samples" and "l1", the mean absolute error of the 7 dimensions in the data set's units, over the chunk's
        valid steps.
    """
    scalars: dict[str, float] = {}
    sums = np.zeros((len(names), 2 + WIDTH))
    count = 0
    training = family.training
    family.eval()
    try:
        with untouched_random_state(), torch.no_grad():
            for batch in batches:
                held = {key: batch.pop(key) for key in (_DATASET, _ACTIONS, _MASK)}
                n = len(held[_DATASET])
                moved = to_device(batch, processes.device)
                with autocast:
                    outputs = family(**moved)
                    predicted = family.predict(moved)
                for key, value in outputs.items():
                    if value.numel() == 1:
                        scalars[key] = scalars.get(key, 0.0) + float(value) * n
                count += n
                _add_errors(sums, predicted.float().cpu().numpy(), held, names, statistics)
    finally:
        family.train(training)
    return _result(scalars, count, sums, names, processes)


def to_device(value: Any, device: torch.device) -> Any:
    """A batch on the device; copies from pinned memory overlap with computation."""
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
    names: tuple[str, ...],
    statistics: Mapping[str, Bounds],
) -> None:
    dataset, actions, mask = (held[key].numpy() for key in (_DATASET, _ACTIONS, _MASK))
    for number in np.unique(dataset):
        mine = dataset == number
        bounds = statistics[names[number]]
        error = np.abs(bounds.denormalize(predicted[mine]) - bounds.denormalize(actions[mine]))
        valid = mask[mine]
        sums[number, 0] += mine.sum()
        sums[number, 1] += valid.sum()
        sums[number, 2:] += (error * valid[..., None]).sum(axis=(0, 1))


def _result(
    scalars: dict[str, float],
    count: int,
    sums: NDArray[np.float64],
    names: tuple[str, ...],
    processes: Processes,
) -> dict[str, Any]:
    total = processes.sum(np.array([count, *scalars.values()], np.float64))
    sums = processes.sum(sums)
    samples = max(total[0], 1)
    return {
        "samples": int(total[0]),
        **{key: float(value / samples) for key, value in zip(scalars, total[1:], strict=True)},
        "datasets": {
            name: {"samples": int(row[0]), "l1": (row[2:] / max(row[1], 1)).tolist()}
            for name, row in zip(names, sums, strict=True)
            if row[0]
        },
    }
