"""Batches read from an index have the numbers of its rows, and samples are spread evenly."""

from pathlib import Path

import numpy as np
import pytest

from oxe_curate.filter import judging
from oxe_curate.filter.pipeline import FilterOptions, run_filter
from oxe_curate.index.store import Index
from oxe_curate.quality.episodes import EpisodeBatch
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


def test_small_files_are_judged_together_where_they_have_the_same_columns() -> None:
    def batch(steps: int, width: int = 2, roles: tuple[str, ...] = ()) -> EpisodeBatch:
        values = np.full((steps, 7), steps, np.float32)
        lengths = {role: np.full(steps, steps, np.int32) for role in roles}
        starts = np.array([0, steps])
        return EpisodeBatch(
            action=values, proprio=values[:, :width], starts=starts, instruction=[f"{steps}"], frame_bytes=lengths,
            success=np.array([-1], np.int8),
        )  # fmt: skip

    most = judging._STEPS
    joined = list(judging._joined([batch(3), batch(4), batch(5, width=3), batch(6, 3, ("primary",)), batch(most, 3)]))
    assert [found.starts.tolist() for found in joined] == [[0, 3, 7], [0, 5], [0, 6], [0, most]]
    assert joined[0].action[:, 0].tolist() == [3] * 3 + [4] * 4
    assert joined[0].instruction == ["3", "4"]
    assert [len(found) for found in judging._joined([batch(most), batch(1), batch(most - 1), batch(1)])] == [1, 2, 1]
