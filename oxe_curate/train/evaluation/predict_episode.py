"""Predictions for a whole episode with the observations of the data (teacher forcing)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from oxe_curate.train.config import TrainConfig
from oxe_curate.train.data.batch import Rows
from oxe_curate.train.data.mixed import crop_images, pixels_of
from oxe_curate.train.loop.validate import to_device
from oxe_curate.train.models.base import Family

_FRAMES = 4
"""Frames of an episode that are kept for the page."""

ReadRows = Callable[[int, int], Rows]
"""(start, stop) -> that part of an episode's rows, in step order."""


@dataclass(frozen=True, eq=False)
class Predicted:
    """The predictions for an episode.

    Attributes:
        instruction: of its first step.
        steps: int64 (T,), ascending, each once.
        predicted: float32 (T, K, 7), normalized.
        target: float32 (T, K, 7), normalized actions of the data.
        mask: bool (T, K), False after the end of the episode.
        frames: uint8 (n, S, S, 3), some frames of the first camera, from the first to the last.
    """

    instruction: str
    steps: NDArray[np.int64]
    predicted: NDArray[np.float32]
    target: NDArray[np.float32]
    mask: NDArray[np.bool_]
    frames: NDArray[np.uint8]


def predict_batches(
    model: Family, config: TrainConfig, read: ReadRows, steps: NDArray[np.int64], crop: bool, batch_size: int
) -> Predicted:
    """Predict the rows of an episode in batches; each row has the whole input of the model.

    Args:
        model: in evaluation mode.
        config: of the run.
        read: the episode's rows.
        steps: int64 (n,), of the rows, ascending.
        crop: crop the center of each image.
        batch_size: rows per forward pass.
    """
    device = next(model.parameters()).device
    done = []
    for rows, frames in _slices(read, steps, crop, batch_size, device):
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=config.dtype == "bf16"):
            actions = model.predict(to_device(model.collator(rows), device)).float().cpu().numpy()
        done.append((actions, rows.actions[:, -1], rows.action_mask[:, -1], frames, rows.instruction[0]))
    parts = [np.concatenate(column) for column in list(zip(*done, strict=True))[:4]]
    return Predicted(done[0][-1], steps, *parts)


def predict_in_order(
    model: Family, read: ReadRows, steps: NDArray[np.int64], crop: bool, rows_at_once: int = 16
) -> Predicted:
    """Predict an episode with the model's controller, from the first step to the last.

    Steps between the rows (a mixture's stride) are taken from the windows of the rows. The controller is reset where
    steps are missing.

    Args:
        model: in evaluation mode.
        read: the episode's rows, each with a window of observations.
        steps: int64 (n,), of the rows, ascending.
        crop: crop the center of each image.
        rows_at_once: rows in memory.
    """
    controller, device = model.controller(), next(model.parameters()).device
    done, kept, text, last, place = [], [], "", -2, 0
    for rows, frames in _slices(read, steps, crop, rows_at_once, device):
        text = text or rows.instruction[0]
        kept.append(frames)
        window = rows.observation_mask.shape[1]
        for row in range(len(rows.instruction)):
            step, place = int(steps[place]), place + 1
            for w in np.flatnonzero(rows.observation_mask[row]):
                time = step - (window - 1) + int(w)
                if time <= last:
                    continue
                if time != last + 1:
                    controller.reset()
                last = time
                with torch.no_grad():
                    actions = controller.act(pixels_of(rows.images[row, w], device), rows.instruction[row], None)
                done.append((time, actions, rows.actions[row, w], rows.action_mask[row, w]))
    times, actions, target, mask = (np.stack(column) for column in zip(*done, strict=True))
    return Predicted(text, times, actions, target, mask, np.concatenate(kept))


def _slices(
    read: ReadRows, steps: NDArray[np.int64], crop: bool, size: int, device: torch.device
) -> Iterator[tuple[Rows, NDArray[np.uint8]]]:
    """Parts of an episode's rows, with the frames that are kept for the page."""
    shown = np.unique(np.linspace(0, len(steps) - 1, _FRAMES).round().astype(int))
    for start in range(0, len(steps), size):
        rows = read(start, start + size)
        kept = shown[(shown >= start) & (shown < start + size)] - start
        frames = pixels_of(rows.images[kept, -1, 0], device)
        yield (replace(rows, images=crop_images(rows.images)) if crop else rows), frames
