"""Many episodes of one data set as concatenated arrays, so that a measure needs no Python loop over steps."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from oxe_curate.quality.looks import LookedFrames, empty_looks, join_looks


@dataclass(frozen=True, eq=False, kw_only=True)
class EpisodeBatch:
    """n episodes with N steps in all.

    Attributes:
        action: float32 (N, 7), as in `Trajectory`.
        proprio: float32 (N, P), as the card lists it; P = 0 where the card has none.
        starts: int64 (n + 1,), the first step of each episode, and N. No episode is empty.
        instruction: n texts, "" where there is none.
        instructions: all different texts of each episode, in order of appearance; () if they are not known.
        success: int8 (n,): 1, 0, or -1 where the data set has no flag.
        frame_bytes: role -> int32 (N,), length of each step's encoded frame; only cameras whose frames were located.
        looks: role -> the frames that were decoded; only cameras that were looked at.
    """

    action: NDArray[np.float32]
    proprio: NDArray[np.float32]
    starts: NDArray[np.int64]
    instruction: Sequence[str] = ()
    instructions: Sequence[Sequence[str]] = ()
    success: NDArray[np.int8] = field(default_factory=lambda: np.empty(0, np.int8))
    frame_bytes: Mapping[str, NDArray[np.int32]] = field(default_factory=dict)
    looks: Mapping[str, LookedFrames] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """int64 (n,): steps of each episode."""
        return np.diff(self.starts)

    @functools.cached_property
    def episode(self) -> NDArray[np.int64]:
        """int64 (N,): the episode of each step."""
        return np.repeat(np.arange(len(self)), self.lengths)

    @functools.cached_property
    def place(self) -> NDArray[np.int32]:
        """int32 (N,): the number of each step in its episode."""
        return np.arange(len(self.action), dtype=np.int32) - np.repeat(self.starts[:-1], self.lengths).astype(np.int32)

    @functools.cached_property
    def left(self) -> NDArray[np.int32]:
        """int32 (N,): the steps that follow each step in its episode."""
        return np.repeat(self.lengths - 1, self.lengths).astype(np.int32) - self.place

    @functools.cached_property
    def actions(self) -> NDArray[np.float32]:
        """float32 (7, N): one row per dimension; 0 where a value is not finite."""
        return _rows(self.action)

    @functools.cached_property
    def states(self) -> NDArray[np.float32]:
        """float32 (P, N): one row per proprio value; 0 where a value is not finite."""
        return _rows(self.proprio)

    @functools.cached_property
    def state_steps(self) -> NDArray[np.float32]:
        """float32 (P, N): what each proprio value changes until the next step; 0 at an episode's last step."""
        change = np.zeros_like(self.states)
        np.subtract(self.states[:, 1:], self.states[:, :-1], out=change[:, :-1])
        change[:, self.starts[1:] - 1] = 0
        return change

    def steps_of(self, episode: int) -> slice:
        """The steps of one episode."""
        return slice(int(self.starts[episode]), int(self.starts[episode + 1]))

    def take(self, episodes: NDArray[np.int64]) -> EpisodeBatch:
        """Some of the episodes, in the order given."""
        lengths = self.lengths[episodes]
        starts = np.concatenate(([0], np.cumsum(lengths)))
        steps = np.arange(int(starts[-1])) + np.repeat(self.starts[:-1][episodes] - starts[:-1], lengths)
        return EpisodeBatch(
            action=self.action[steps],
            proprio=self.proprio[steps],
            starts=starts,
            instruction=[self.instruction[i] for i in episodes.tolist()],
            instructions=[self.instructions[i] for i in episodes.tolist()] if self.instructions else (),
            success=self.success[episodes],
            frame_bytes={role: lengths[steps] for role, lengths in self.frame_bytes.items()},
            looks={role: looks.take(episodes) for role, looks in self.looks.items()},
        )


def _rows(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Transposed, finite, and small enough that squares of differences do not overflow."""
    rows = np.ascontiguousarray(values.T)
    largest = np.float32(1e15)
    if not np.isfinite(rows).all():
        rows = np.nan_to_num(rows, nan=0.0, posinf=0.0, neginf=0.0)
    return np.clip(rows, -largest, largest)


def join(batches: Sequence[EpisodeBatch]) -> EpisodeBatch:
    """One batch of all the episodes; a camera that one of them lacks is left out. At least one batch."""
    if len(batches) == 1:
        return batches[0]
    counts = np.cumsum([0, *(len(batch.action) for batch in batches)])
    roles = set.intersection(*(set(batch.frame_bytes) for batch in batches))
    looked = sorted({role for batch in batches for role in batch.looks})
    return EpisodeBatch(
        action=np.concatenate([batch.action for batch in batches]),
        proprio=np.concatenate([batch.proprio for batch in batches]),
        starts=np.concatenate([
            *(batch.starts[:-1] + count for batch, count in zip(batches, counts.tolist(), strict=False)), counts[-1:]
        ]),
        instruction=[text for batch in batches for text in batch.instruction],
        instructions=[texts for batch in batches for texts in batch.instructions],
        success=np.concatenate([batch.success for batch in batches]),
        frame_bytes={role: np.concatenate([batch.frame_bytes[role] for batch in batches]) for role in sorted(roles)},
        looks={
            role: join_looks([batch.looks.get(role) or empty_looks(0, len(batch)) for batch in batches])
            for role in looked
        },
    )  # fmt: skip
