"""Predictions for a whole episode, each step seen as it is in the data (teacher forcing)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from oxe_curate.train.config import TrainConfig
from oxe_curate.train.data.augment import crop_middle
from oxe_curate.train.data.batch import Rows
from oxe_curate.train.loop.validate import to_device
from oxe_curate.train.models.base import Family

FRAMES = 4
"""Frames of an episode that are kept to be shown."""

Read = Callable[[int, int], Rows]
"""(start, stop) -> that part of an episode's rows, in the order of its steps."""


@dataclass(frozen=True, eq=False)
class Predicted:
    """An episode with what a model made of it.

    Attributes:
        instruction: of its first step.
        steps: int64 (T,), ascending, each once.
        predicted: float32 (T, K, 7), normalised.
        target: float32 (T, K, 7), normalised: the data's actions.
        mask: bool (T, K), False past the episode's end.
        frames: uint8 (n, S, S, 3), a few of what the first camera saw, from the first to the last.
    """

    instruction: str
    steps: NDArray[np.int64]
    predicted: NDArray[np.float32]
    target: NDArray[np.float32]
    mask: NDArray[np.bool_]
    frames: NDArray[np.uint8]


def batched(
    model: Family, config: TrainConfig, read: Read, steps: NDArray[np.int64], crop: bool, batch_size: int
) -> Predicted:
    """Predict an episode's rows in batches; each row holds all that the model looks at.

    Args:
        model: in evaluation mode.
        config: of the run.
        read: the episode's rows.
        steps: int64 (n,), of the rows, ascending.
        crop: cut out the middle of each picture.
        batch_size: rows a forward pass.
    """
    device = next(model.parameters()).device
    done = []
    for rows, frames in _slices(read, steps, crop, batch_size):
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=config.dtype == "bf16"):
            actions = model.predict(to_device(model.collator(rows), device)).float().cpu().numpy()
        done.append((actions, rows.actions[:, -1], rows.action_mask[:, -1], frames, rows.instruction[0]))
    parts = [np.concatenate(column) for column in list(zip(*done, strict=True))[:4]]
    return Predicted(done[0][-1], steps, *parts)


def through(model: Family, read: Read, steps: NDArray[np.int64], crop: bool, rows_at_once: int = 16) -> Predicted:
    """Go through an episode with the model's controller, from its first step to its last.

    The steps between the rows (a mixture's stride) are taken from the rows' windows. Where steps are missing all the
    same, the model begins anew.

    Args:
        model: in evaluation mode.
        read: the episode's rows, each with a window of observations.
        steps: int64 (n,), of the rows, ascending.
        crop: cut out the middle of each picture.
        rows_at_once: in memory.
    """
    controller = model.controller()
    done, kept, text, last, place = [], [], "", -2, 0
    for rows, frames in _slices(read, steps, crop, rows_at_once):
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
                    actions = controller.act(rows.images[row, w], rows.instruction[row], None)
                done.append((time, actions, rows.actions[row, w], rows.action_mask[row, w]))
    times, actions, target, mask = (np.stack(column) for column in zip(*done, strict=True))
    return Predicted(text, times, actions, target, mask, np.concatenate(kept))


def _slices(read: Read, steps: NDArray[np.int64], crop: bool, size: int) -> Iterator[tuple[Rows, NDArray[np.uint8]]]:
    """Parts of an episode's rows, with those of their frames that are kept to be shown."""
    shown = np.unique(np.linspace(0, len(steps) - 1, FRAMES).round().astype(int))
    for start in range(0, len(steps), size):
        rows = read(start, start + size)
        here = shown[(shown >= start) & (shown < start + size)] - start
        frames = rows.images[here, -1, 0]
        yield (replace(rows, images=crop_middle(rows.images)) if crop else rows), frames
