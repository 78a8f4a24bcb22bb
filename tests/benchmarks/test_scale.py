"""The benchmark at scale, with data of a few hundred steps."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import measure, scale, scale_index, scale_work
from benchmarks.scale import MEASURES, Scale
from benchmarks.scale_index import IndexSize
from oxe_curate.filter import across
from oxe_curate.filter.criteria import MEASURED, Criteria
from oxe_curate.index.index_json import Summary
from oxe_curate.index.store import Index

TINY = Scale(IndexSize(episodes=2_000, steps=16_000, datasets=3, files=12), shards=6, long_steps=30, side=40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All data that the measurements read."""
    root = tmp_path_factory.mktemp("scale")
    for name, make in scale._makers(TINY).items():
        make(root / name)
    return root


def test_the_index_is_as_large_as_asked_for_and_consistent(folder: Path):
    index = Index.open(folder / "index")
    assert len(index.datasets) == 3
    assert len({entry.summary.seen for entry in index.datasets.values()}) == 3  # of different sizes
    texts, steps = set(), 0
    for name, entry in index.datasets.items():
        assert set(entry.split_names) == {"train", "val"}
        total = Summary()
        for _, table in index.tables(name, ["num_steps", "reason", "action", "proprio", "instructions", "frame_index"]):
            rows = table.to_pylist()
            total.steps_kept += Summary.count((row["num_steps"], row["reason"]) for row in rows).steps_kept
            assert all(len(row["action"]) == len(row["frame_index"]) == row["num_steps"] for row in rows)
            texts |= {tuple(row["instructions"]) for row in rows}
            steps += sum(row["num_steps"] for row in rows)
        assert total.steps_kept == entry.summary.steps_kept
        assert len(entry.summary.dropped) == 4
    assert sum(entry.summary.seen for entry in index.datasets.values()) == pytest.approx(2_000, rel=0.01)
    assert steps == pytest.approx(16_000, rel=0.1)
    assert len(texts) > 200
    assert () in texts
    assert any(len(several) == 2 for several in texts)


def test_every_measurement_gives_figures_with_an_aim(folder: Path):
    rows: scale.Rows = {}
    for what in sorted(MEASURES, key=lambda what: what.name != "plan"):  # first, while no index file is in memory
        figures = scale_work.timed(what.name, folder)
        assert figures["read"] > 0
        rows[what.name] = {**figures, "cpu": figures["seconds"], "anonymous": 1e6, "rss": 2e6}
    assert rows["plain_scan"]["shards"] == rows["filter"]["shards"] == rows["filter_again"]["shards"] == 6
    assert rows["plan"]["shard_episodes"] > 100
    assert rows["plan"]["shard_read"] >= rows["plan"]["shard_needs"] > 50_000
    assert rows["long_episode"]["steps"] == 28
    assert rows["large_frames"] == rows["large_frames"] | {"rows": 12, "batches": 3}
    text = scale.table(rows, {"episodes": "2,000"})
    assert text.count("| yes |") + text.count("| no |") == sum(len(w.aims(rows[w.name], rows)) for w in MEASURES)
    assert "| CPU of the plain scan | ≤ 2 times |" in text


def test_the_copies_of_the_index_are_those_that_filter_finds(folder: Path):
    index = Index.open(folder / "index")
    assert sum(entry.summary.copies for entry in index.datasets.values()) > 5
    unmeasured = Criteria(**dict.fromkeys(MEASURED, False))
    assert not any(decision.changed for decision in across.decide(index.contents, unmeasured).files.values())


def test_rows_are_written_one_by_one_and_kept_by_later_runs(folder: Path, tmp_path: Path, monkeypatch):
    def measured(command, data, *, cold, log):
        name = command[-1]
        if name == "report":
            raise KeyboardInterrupt
        if name == "mixture_show":
            raise RuntimeError("exit code -14\nout of time")
        return measure.Measurement(1.0, 2.0, 3, 4, 0, 5.0, result={"read": 6, "findings": 0, "files": 0})

    monkeypatch.setattr(measure, "run", measured)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "index").symlink_to(folder / "index")
    (tmp_path / "data" / "made.json").write_text(json.dumps(scale.asdict(TINY)))
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        scale.run(tmp_path / "data", TINY, "open|mixture|report", out)
    text = (out / "scale.md").read_text()
    assert "| open the index | 5 s | 2 s | 0 MB |" in text
    assert "not done after 300 s" in text
    assert "`report`" not in text
    scale.run(tmp_path / "data", TINY, "mixture_check", out)
    assert list(json.loads((out / "scale.json").read_text())["rows"]) == ["open_index", "mixture_check", "mixture_show"]


def test_a_measurement_runs_in_a_process_of_its_own(folder: Path):
    figures = scale.measured("open_index", folder)
    assert figures["files"] == 12
    assert figures["anonymous"] > 10e6
    assert figures["cpu"] > 0.1
    failed = scale.measured("mixture_show", folder.parent)
    assert list(failed) == ["failed"]


def test_other_data_is_refused(folder: Path, tmp_path: Path):
    with pytest.raises(SystemExit, match="another index"):
        scale_index.make_index(folder / "index", IndexSize(1, 1, 1, 1))
    (tmp_path / "mine").touch()
    with pytest.raises(SystemExit, match="not made by this benchmark"):
        scale.run(tmp_path, TINY, "", None)
    assert np.array_equal([scale_index.dataset_names(2)], [scale_index.dataset_names(3)[:2]])
