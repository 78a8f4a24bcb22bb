"""How far the arm moves from step to step, in a unit of the data set's own."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from oxe_curate.quality.episodes import EpisodeBatch

_REST = 0.1
"""Share of a usual pose action below which the arm rests."""


@dataclass(frozen=True, eq=False)
class MotionUnit:
    """What one step's motion is compared with.

    Attributes:
        proprio: float32 (P,), range of each proprio value, infinite where it does not vary; all infinite: the actions
            are used instead.
        action: float32 (6,), the same of the pose part of the actions.
        usual: median length of a step that moves, in these units; 0 if nothing moves.
        pose: the same of the pose actions.
    """

    proprio: NDArray[np.float32]
    action: NDArray[np.float32]
    usual: float
    pose: float


def learn_motion(sample: EpisodeBatch) -> MotionUnit:
    """The unit of motion of a data set."""
    unit = MotionUnit(_range(sample.proprio), _range(sample.action[:, :6], centred=True), 1.0, 1.0)
    return replace(unit, usual=_usual(_lengths(sample, unit)), pose=_usual(_pose_lengths(sample, unit)))


def step_motion(batch: EpisodeBatch, unit: MotionUnit) -> NDArray[np.float32]:
    """float32 (N,): motion from each step to the next in usual steps; 0 at the last step of an episode.

    A step whose pose actions rest does not count: a gripper that closes changes few pixels.
    """
    if not unit.usual:
        return np.zeros(len(batch.action), np.float32)
    motion = _lengths(batch, unit) / np.float32(unit.usual)
    return np.where(_pose_lengths(batch, unit) >= _REST * unit.pose, motion, np.float32(0))


def _usual(lengths: NDArray[np.float32]) -> float:
    moving = lengths[lengths > 1e-6]
    return float(np.median(moving)) if len(moving) else 0.0


def _lengths(batch: EpisodeBatch, unit: MotionUnit) -> NDArray[np.float32]:
    lengths = np.zeros(len(batch.action), np.float32)
    used = np.flatnonzero(np.isfinite(unit.proprio))
    if len(used) and batch.proprio.shape[1] == len(unit.proprio):
        values = batch.proprio[:, used] / unit.proprio[used]
        difference = np.diff(values, axis=0)
        lengths[:-1] = np.sqrt(np.einsum("ij,ij->i", difference, difference))
    else:
        lengths = _pose_lengths(batch, unit)
    lengths[batch.starts[1:] - 1] = 0
    return np.nan_to_num(lengths, copy=False, nan=0, posinf=0, neginf=0)


def _pose_lengths(batch: EpisodeBatch, unit: MotionUnit) -> NDArray[np.float32]:
    values = batch.action[:, :6] / unit.action
    return np.asarray(np.nan_to_num(np.sqrt(np.einsum("ij,ij->i", values, values)), posinf=0), np.float32)


def _range(values: NDArray[np.float32], centred: bool = False) -> NDArray[np.float32]:
    """From the 2 % to the 98 % quantile; from 0 if `centred`."""
    if not len(values):
        return np.full(values.shape[1], np.inf, np.float32)
    finite = np.where(np.isfinite(values), values, 0)
    if centred:
        found = np.quantile(np.abs(finite), 0.98, axis=0)
    else:
        low, high = np.quantile(finite, (0.02, 0.98), axis=0)
        found = high - low
    return np.where(found > 1e-9, found, np.inf).astype(np.float32)


def longest_run(
    found: NDArray[np.bool_], counted: NDArray[np.bool_], starts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The longest run of each episode.

    Args:
        found: bool (N,), of each step; never at the last step of an episode, so that runs end there.
        counted: bool (N,), whether a step of a run counts.
        starts: int64 (n + 1,), the first step of each episode, and N.

    Returns:
        int64 (n,), counted steps of the longest run, and int64 (n,), the step at which it begins (-1 for none).
    """
    longest = np.zeros(len(starts) - 1, np.int64)
    begin = np.full(len(starts) - 1, -1)
    steps = np.flatnonzero(found)
    if len(steps):
        opened = np.flatnonzero(np.diff(steps, prepend=-2) > 1)
        length = np.add.reduceat(counted[steps].astype(np.int64), opened)
        first = steps[opened]
        order = np.argsort(length, kind="stable")  # the longest is written last
        episode = np.searchsorted(starts, first, side="right") - 1
        longest[episode[order]] = length[order]
        begin[episode[order]] = (first - starts[episode])[order]
    return longest, begin
