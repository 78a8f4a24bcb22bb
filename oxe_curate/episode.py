"""Types that are passed between packages."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Steps = Mapping[str, NDArray[Any]]
"""Steps of an episode: flat key ("observation/state") -> array, time first."""


@dataclass(frozen=True, slots=True, order=True)
class EpisodeId:
    """Identifies an episode: record `record` of file `shard` of a split."""

    dataset: str
    version: str
    split: str
    shard: int
    record: int

    def __str__(self) -> str:
        return f"{self.dataset}/{self.version}/{self.split}/{self.shard:05d}/{self.record:05d}"

    @classmethod
    def parse(cls, text: str) -> EpisodeId:
        """Parse the output of `str`. Raises ValueError for any other text."""
        # from the right: a TFDS name with a config contains a "/"
        dataset, version, split, shard, record = text.rsplit("/", 4)
        return cls(dataset, version, split, int(shard), int(record))


def pick(name: str, count: int, purpose: str) -> int:
    """A number from 0 to count - 1 that depends only on an episode's name and the purpose of the draw."""
    digest = hashlib.blake2b(f"{purpose}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % count


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """An episode in the common convention of actions, proprio and instructions.

    Attributes:
        action: float32 (T', 7): xyz displacement [m], roll, pitch, yaw displacement [rad], gripper (1 = open).
            Units are the data set's own where it does not use metres or radians.
        frame_index: int32 (T',): the source steps that the recipe keeps.
        proprio: float32 (T', P), P may be 0.
        instruction: the first non-empty instruction, "" if there is none.
        instructions: all distinct non-empty instructions, in order of appearance.
        instruction_index: int32 (T',): index into `instructions` of each kept step, -1 where it has no instruction.
    """

    action: NDArray[np.float32]
    frame_index: NDArray[np.int32]
    proprio: NDArray[np.float32]
    instruction: str = ""
    instructions: tuple[str, ...] = ()
    instruction_index: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))

    def __len__(self) -> int:
        return len(self.action)
