"""What the index says of each episode's actions besides the actions: a hash, and how much happens."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from oxe_curate.episode import Trajectory
from oxe_curate.index.idle import libero


def action_hash(trajectory: Trajectory) -> int | None:
    """64 bits that two episodes share only if their standardised actions are equal, bit for bit.

    None where the actions say nothing about the episode: fewer than two steps, or all steps alike.
    """
    action = trajectory.action
    if len(action) < 2 or not np.count_nonzero(action[1:] != action[0]):
        return None
    return int.from_bytes(hashlib.blake2b(action.tobytes(), digest_size=8).digest(), "little")


def metrics(
    action: NDArray[np.float32], lengths: NDArray[np.int64], control_hz: Sequence[float | None]
) -> dict[str, NDArray[np.float32]]:
    """How much happens in each of n episodes, all at once: a numpy call an episode costs more than its numbers.

    Args:
        action: float32 (sum of lengths, 7), one episode after the other.
        lengths: (n,), 0 where there are no actions.
        control_hz: n steps per second; None where not known.

    Returns:
        float32 (n,) each; NaN, which becomes null, where nothing can be said.
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
        with np.errstate(all="ignore"):  # overflow and NaN are what `not_finite` reports
            distance = np.sqrt(np.einsum("ij,ij->i", action[:, :3], action[:, :3]))
            found["idle_share"][some] = np.add.reduceat(libero(action, starts), starts, dtype=np.int64) / lengths[some]
            found["largest_action"][some] = np.maximum.reduceat(np.abs(action[:, :6]).max(axis=1), starts)
            found["path_length"][some] = np.add.reduceat(distance, starts)
    return {**found, "seconds": (lengths / hz).astype(np.float32)}
