from pathlib import Path

import numpy as np

from oxe_curate.mixture.survey import sample_episodes
from tests.mixture.sets import episode, flat_image, index_of


def test_the_episodes_that_are_looked_at_are_the_same_in_every_release(tmp_path: Path) -> None:
    actions = np.random.default_rng(0).normal(0, 0.01, (12, 3, 6)).astype(np.float32)
    made = [episode(f"task {i}", flat_image((9, 9, 9)), actions[i]) for i in range(12)]
    index = index_of(tmp_path, {"bridge_dataset": ("1.0.0", {"train": made[:10], "val": made[10:]})})
    lengths, _, found = sample_episodes(index, "bridge_dataset", ("train",), 4)
    assert lengths.tolist() == [3] * 10
    assert [int(one.id[-5:]) for one in found] == [0, 1, 3, 6]
