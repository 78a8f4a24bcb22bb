"""Per-episode metrics of the actions: a hash, and the amount of motion."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from oxe_curate.episode import Trajectory
from oxe_curate.index.idle import libero


def action_hash(trajectory: Trajectory) -> int | None:
    """64 bits that two episodes share only if their standardised actions are equal, bit for bit.

    None if the actions do not identify the episode: fewer than two steps, or all steps equal.
    """
    action = trajectory.action
    if len(action) < 2 or not np.count_nonzero(action[1:] != action[0]):
        return None
    return int.from_bytes(hashlib.blake2b(action.tobytes(), digest_size=8).digest(), "little")


def metrics(
    action: NDArray[np.float32], lengths: NDArray[np.int64], control_hz: Sequence[float | None]
) -> dict[str, NDArray[np.float32]]:
    """Metrics of n episodes at once, since a numpy call per episode would cost more than the arithmetic.

    Args:
        action: float32 (sum of lengths, 7), the episodes concatenated.
        lengths: (n,), 0 for an episode without actions.
        control_hz: n rates [1/s]; None if unknown.

    Returns:
        float32 (n,) each; NaN, which becomes null, where it is undefined.
        idle_share: share of idle steps by OpenVLA's rule for LIBERO (see `idle.libero`).
        largest_action: largest absolute pose value. path_length: sum of the xyz displacements' norms.
        seconds: steps divided by the control rate.
    """
    hz = np.array([rate or np.nan for rate in control_hz], np.float32)
    found = {
        name: np.full(len(lengths), np.nan, np.float32) for name in ("idle_share", "largest_action", "path_length")
    }
    some = lengths > 0
    if some.any():
        starts = (np.cumsum(lengths) - lengths)[some]
        with np.errstate(all="ignore"):  # `not_finite` reports overflow and NaN
            distance = np.sqrt(np.einsum("ij,ij->i", action[:, :3], action[:, :3]))
            found["idle_share"][some] = np.add.reduceat(libero(action, starts), starts, dtype=np.int64) / lengths[some]
            found["largest_action"][some] = np.maximum.reduceat(np.abs(action[:, :6]).max(axis=1), starts)
            found["path_length"][some] = np.add.reduceat(distance, starts)
    return {**found, "seconds": (lengths / hz).astype(np.float32)}
