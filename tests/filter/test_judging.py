"""Batches read from an index have the numbers of its rows, and samples are spread evenly."""

from pathlib import Path

import numpy as np
import pytest

from oxe_curate.filter import judging
from oxe_curate.filter.pipeline import FilterOptions, run_filter
from oxe_curate.index.store import Index
from tests import bridge

EVERYTHING = ("proprio", "instruction", "success", "frame_bytes")


@pytest.mark.parametrize("frames", ["exact", "span"])
def test_a_batch_has_the_numbers_of_the_rows(tmp_path: Path, frames: str) -> None:
    made = [bridge.episode(i, 3 + i) for i in range(4)]
    bridge.write(tmp_path / "source", episodes={"train": made}, shards=1)
    run_filter(tmp_path / "source", tmp_path / "index", FilterOptions(workers=1, progress=False, frames=frames))
    index = Index.open(tmp_path / "index")
    table = index.table(index.files("bridge_dataset")[0])
    rows = table.to_pylist()
    batch = judging.episodes_of(table, np.array([3, 1]), EVERYTHING)
    for number, row in enumerate([rows[3], rows[1]]):
        steps = batch.steps_of(number)
        assert batch.action[steps].tolist() == row["action"]
        assert batch.proprio[steps].tolist() == row["proprio"]
        for role, found in dict(row["cameras"]).items():
            assert batch.frame_bytes[role][steps].tolist() == [frame["length"] for frame in found]
    assert set(batch.frame_bytes) == set(dict(rows[0]["cameras"]))
    assert bool(batch.frame_bytes) == (frames == "exact")
    assert batch.instruction == [rows[3]["instruction"], rows[1]["instruction"]]
    assert batch.success.tolist() == [-1, -1]
    nothing = judging.episodes_of(table, np.array([0]), ())
    assert (nothing.proprio.shape, nothing.frame_bytes, nothing.instruction) == ((len(nothing.action), 0), {}, [""])


def test_a_sample_takes_as_much_of_each_file_as_there_is() -> None:
    assert judging._share(np.array([3, 500, 500]), 100) == 48
    assert judging._share(np.array([1] * 10), 100) == 100
    assert judging._share(np.array([5] * 600), 512) == 1
