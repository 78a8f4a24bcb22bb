"""Idle steps, by the rules that were used to remove them from published data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from oxe_curate.episode import Trajectory
from oxe_curate.registry.card import IdleRule

LIBERO_NORM = 1e-4
DROID_TOLERANCE = 1e-5
DROID_Q01 = np.array(
    [-0.7776297926902771, -0.5803514122962952, -0.5795090794563293,
     -0.6464047729969025, -0.7041108310222626, -0.8895104378461838]
)  # fmt: skip
DROID_Q99 = np.array(
    [0.7597932070493698, 0.5726242214441299, 0.7351000607013702,
     0.6705610305070877, 0.6464948207139969, 0.8897542208433151]
)  # fmt: skip
"""DROID's quantiles in OpenVLA's filter (prismatic/vla/datasets/rlds/oxe/utils/droid_utils.py)."""


def libero(action: NDArray[np.float32], starts: NDArray[np.int64] | None = None) -> NDArray[np.bool_]:
    """OpenVLA's rule for LIBERO (experiments/robot/libero/regenerate_libero_dataset.py).

    A step is idle if the norm of its six pose values is below 1e-4 and its gripper equals that of the last kept step;
    before the first kept step only the norm counts. Meant for data whose pose is of the order of 1.

    Args:
        action: float32 (T, 7), one episode or several concatenated ones.
        starts: int64 (episodes,), first row of each episode, if there are several; none may be empty.

    Returns:
        bool (T,), True where idle.
    """
    if not len(action):
        return np.zeros(0, np.bool_)
    first = np.zeros(1, np.int64) if starts is None else starts
    with np.errstate(all="ignore"):  # `not_finite` reports overflow and NaN
        pose = action[:, :6]
        still: NDArray[np.bool_] = np.einsum("ij,ij->i", pose, pose) < LIBERO_NORM**2
    # an idle step has the gripper value of the last kept step, so comparing with the previous step is equivalent
    same = np.empty(len(action), np.bool_)
    same[1:] = action[1:, 6] == action[:-1, 6]
    same[first] = True
    moved = np.cumsum(~still)
    before: NDArray[np.int64] = np.repeat(moved[first] - ~still[first], np.diff(np.append(first, len(action))))
    return np.asarray(still & (same | (moved == before)))


def droid(action: NDArray[np.float32]) -> NDArray[np.bool_]:
    """OpenVLA's rule for DROID: every pose value is within 1e-5 of zero after normalisation; the gripper is ignored.

    Like OpenVLA, this normalises by DROID's own quantiles, whatever the statistics in use: `2 x / (q99 - q01 + 1e-8)`.
    For other data sets the rule therefore means "all six below about 1e-5 in the data set's own units".

    Args:
        action: float32 (T, 7).

    Returns:
        bool (T,), True where idle.
    """
    with np.errstate(all="ignore"):
        scaled = np.abs(action[:, :6]) * (2 / (DROID_Q99 - DROID_Q01 + 1e-8))
    return np.asarray((scaled <= DROID_TOLERANCE).all(axis=1))


RULES: dict[IdleRule, Callable[[NDArray[np.float32]], NDArray[np.bool_]]] = {"libero": libero, "droid": droid}


def drop_idle_frames(trajectory: Trajectory, rule: IdleRule) -> Trajectory:
    """Return the trajectory without its idle steps; the same object if there are none.

    Actions are displacements, so the remaining ones add up to the same path, apart from the idle steps' own motion.
    """
    return keep_frames(trajectory, ~RULES[rule](trajectory.action))


def keep_frames(trajectory: Trajectory, keep: NDArray[np.bool_]) -> Trajectory:
    """Return the trajectory with only some of its steps; the same object if those are all.

    Args:
        trajectory: one episode.
        keep: bool (T',).
    """
    if keep.all():
        return trajectory
    texts = trajectory.instruction_index
    return replace(
        trajectory,
        action=trajectory.action[keep],
        frame_index=trajectory.frame_index[keep],
        proprio=trajectory.proprio[keep],
        instruction_index=texts[keep] if len(texts) else texts,
    )
