"""What a worker reads: its part of the plan, and the numbers of its episodes by byte range."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from oxe_curate.errors import DataError
from oxe_curate.filter.pipeline import FilterOptions, run_filter
from oxe_curate.index import values
from oxe_curate.index.episodes import Episode
from oxe_curate.index.store import Index
from oxe_curate.mixture.spec import IndexedDataset, Mixture, MixtureEntry
from oxe_curate.storage import Folder
from oxe_curate.tokenize import planned
from oxe_curate.tokenize.plan import Plan, plan_shards
from oxe_curate.tokenize.planned import planned_episodes, read_part
from tests import bridge

ENTRY = MixtureEntry("bridge_dataset", 1.0)


def make_index(root: Path, frames: Any = "exact") -> Index:
    episodes = [bridge.episode(i, 6 + i % 5) for i in range(16)]
    episodes[3] = bridge.episode(3, text="")  # dropped, but with numbers in the file
    episodes[5] = bridge.episode(5, 2)  # dropped: too short
    episodes[6]["steps"]["language_instruction"] = ["reach"] * 4 + ["lift"] * 3
    bridge.write(root / "in", episodes={"train": episodes})
    run_filter(root / "in", root / "index", FilterOptions(progress=False, workers=1, frames=frames))
    return Index.open(root / "index")


def make_plan(index: Index, out: Path, shard_bytes: int = 4000, **settings: Any) -> Plan:
    source = IndexedDataset(ENTRY, ENTRY.name, (), frozenset())
    spec = Mixture("m", (ENTRY,), validation=0, **settings)
    return plan_shards(spec, index, [source], {}, Folder.of(out), shard_bytes, {})


def same(one: Any, other: Any) -> bool:
    return np.array_equal(one, other) if isinstance(one, np.ndarray) else bool(one == other)


def assert_same(found: Episode, expected: Episode, role: str) -> None:
    for field in dataclasses.fields(Episode):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        if field.name in ("frames", "spans"):  # the plan has those of the mixture's cameras
            one, other = one.get(role), other.get(role)
        if field.name != "instructions" or found.instruction_index is not None:
            assert same(one, other), field.name


@pytest.mark.parametrize("frames", ["exact", "span"])
@pytest.mark.parametrize("role", ["primary", "secondary"])
def test_numbers_by_byte_range_are_those_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frames: str, role: str
) -> None:
    index = make_index(tmp_path, frames)
    plan = make_plan(index, tmp_path / "out", image={"cameras": [role]})
    assert len(plan.tasks) > 4
    job, tasks = plan.write(Folder.of(tmp_path / "out"), [task.output for task in plan.tasks])
    calls: list[str] = []
    real = Episode.read
    monkeypatch.setattr(Episode, "read", lambda *args: calls.append(args[1]) or real(*args))
    seen = []
    for task in tasks:
        part = read_part(job, task)
        before = len(calls)
        found = list(planned_episodes(job, part))
        sparse = {path for path, count in _per_file(found).items() if 2 * count <= index.entry(path).rows}
        assert not sparse & set(calls[before:])
        for entry in found:
            assert_same(entry.episode, real(index.folder, entry.path, [entry.row])[0], role)
        seen += [entry.episode.id for entry in found]
    assert len(seen) == len(set(seen)) == 14
    assert sum(e.instruction_index is not None for t in tasks for e in _episodes(job, t)) == 1


def _per_file(found: list[Any]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for entry in found:
        counts[entry.path] = counts.get(entry.path, 0) + 1
    return counts


def _episodes(job: Any, task: Any) -> list[Episode]:
    return [entry.episode for entry in planned_episodes(job, read_part(job, task))]


def test_most_rows_of_a_file_are_read_with_the_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = make_index(tmp_path)
    plan = make_plan(index, tmp_path / "out", shard_bytes=1 << 30)
    (task,) = plan.tasks
    monkeypatch.setattr(planned, "read_ranges", lambda folder, wanted: [pytest.fail("read by range") for _ in wanted])
    assert len(list(planned_episodes(plan.job, plan.part(0)))) == 14
    assert task.name.endswith("train-00000-of-00001.parquet")


def test_numbers_that_do_not_match_are_read_with_the_whole_file(tmp_path: Path) -> None:
    """A row whose proprio has another width moves all that follow it."""
    index = make_index(tmp_path)
    plan = make_plan(index, tmp_path / "out")
    wrong = plan.episodes.set_column(
        plan.episodes.schema.get_field_index("proprio_width"),
        plan.episodes.schema.field("proprio_width"),
        pa.array(plan.episodes["proprio_width"].to_numpy() + 1, pa.int32()),
    )
    plan = dataclasses.replace(plan, episodes=wrong)
    for number in range(len(plan.tasks)):
        for entry in planned_episodes(plan.job, plan.part(number)):
            assert_same(entry.episode, Episode.read(index.folder, entry.path, [entry.row])[0], "primary")


def test_a_flipped_bit_among_the_numbers_is_noticed(tmp_path: Path) -> None:
    index = make_index(tmp_path)
    plan = make_plan(index, tmp_path / "out")
    part = next(plan.part(i) for i in range(len(plan.tasks)) if plan.part(i).num_rows)
    row = part.to_pylist()[0]
    path = tmp_path / "index" / row["path"]
    data = bytearray(path.read_bytes())
    data[row["at_action"] + 28 * row["steps_before"]] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=path.name):
        list(planned_episodes(plan.job, part))


def test_a_damaged_plan_is_an_error(tmp_path: Path) -> None:
    plan = make_plan(make_index(tmp_path), tmp_path / "out")
    job, tasks = plan.write(Folder.of(tmp_path / "out"), [plan.tasks[1].output])
    assert [task.output for task in tasks] == [plan.tasks[1].output]
    path = tmp_path / "out" / job.plan
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="the plan of this run is damaged"):
        read_part(job, tasks[0])


def test_ranges_are_read_in_few_pieces_and_cut_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.random.default_rng(0).integers(0, 256, 100_000).astype(np.uint8).tobytes()
    (tmp_path / "a").write_bytes(data)
    parts = [(50_000, 100), (0, 10), (10, 20), (300, 5), (50_100, 0), (60_000, 7), (99_990, 20), (5, 10)]
    expected = [data[offset : offset + length] for offset, length in parts]
    folder = Folder.of(tmp_path)
    assert values.read_ranges(folder, [("a", parts), ("a", [])]) == [expected, []]
    assert list(values._runs(parts)) == [(0, 305), (50_000, 50_100), (60_000, 60_007), (99_990, 100_010)]
    monkeypatch.setattr(Folder, "is_local", property(lambda self: False))
    reads = []

    def read(self: Folder, path: str, offset: int, length: int) -> bytes:
        reads.append(length)
        return data[offset : offset + length]

    monkeypatch.setattr(Folder, "read_bytes", read)
    assert values.read_ranges(folder, [("a", parts), ("a", []), ("a", parts[:1])]) == [expected, [], expected[:1]]
    assert sum(reads) == 305 + 100 + 7 + 20 + 100
