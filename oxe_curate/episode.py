"""The types that travel between the rooms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Steps = Mapping[str, NDArray[Any]]
"""One episode's steps: flat key ("observation/state") -> array with time as its first axis."""


@dataclass(frozen=True, slots=True, order=True)
class EpisodeId:
    """Where an episode lies: the `record`-th record of the `shard`-th file of a split."""

    dataset: str
    version: str
    split: str
    shard: int
    record: int

    def __str__(self) -> str:
        return f"{self.dataset}/{self.version}/{self.split}/{self.shard:05d}/{self.record:05d}"

    @classmethod
    def parse(cls, text: str) -> EpisodeId:
        """Read back what `str` wrote. Raises ValueError on anything else."""
        # from the right: a TFDS name with a config holds a "/"
        dataset, version, split, shard, record = text.rsplit("/", 4)
        return cls(dataset, version, split, int(shard), int(record))


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """An episode's steps in the one convention everything after it uses.

    Attributes:
        action: float32 (T', 7): xyz displacement [m], roll, pitch, yaw displacement [rad], gripper (1 = open).
            Units are the data set's own where it does not use metres or radians.
        frame_index: int32 (T',): which of the T source steps survived the recipe.
        proprio: float32 (T', P), P may be 0.
        instruction: the first non-empty text of the episode, "" if there is none.
        instructions: every distinct non-empty text, in order of appearance.
        instruction_index: int32 (T',): index into `instructions` of each surviving step, -1 where its text is empty.
    """

    action: NDArray[np.float32]
    frame_index: NDArray[np.int32]
    proprio: NDArray[np.float32]
    instruction: str = ""
    instructions: tuple[str, ...] = ()
    instruction_index: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))

    def __len__(self) -> int:
        return len(self.action)
