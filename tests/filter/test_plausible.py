"""filter stores what is implausible about each data set's actions, and prints it."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from oxe_curate.filter import plausible, show
from oxe_curate.filter.merge import merge_indexes
from oxe_curate.filter.pipeline import FilterOptions, run_filter
from oxe_curate.filter.plausible import facts_of_index
from oxe_curate.index.index_json import DatasetEntry
from oxe_curate.index.store import Index
from oxe_curate.rlds.synthetic import write_dataset
from tests.mixture.sets import BRIDGE, episode, flat_image


def jumping(seed: int, steps: int = 20) -> np.ndarray:
    """float64 (steps, 6): differences of a yaw near 180 degrees that are not wrapped."""
    rng = np.random.default_rng(seed)
    action = rng.normal(0, 0.02, (steps, 6))
    action[::5, 5] = 6.2 * (-1) ** np.arange(steps // 5)
    return action


def write(root: Path, *, jumps: bool = True) -> None:
    made = [
        episode("open the door", flat_image((90, 90, 200), i), jumping(i) if jumps else jumping(i) * 0.01)
        for i in range(10)
    ]
    write_dataset(root, "bridge_dataset", "1.0.0", BRIDGE, {"train": made[:8], "val": made[8:]}, shards=2)


def run(root: Path, out: Path, **options: object) -> DatasetEntry:
    run_filter(root, out, FilterOptions(workers=1, progress=False, **options))  # type: ignore[arg-type]
    return Index.open(out).datasets["bridge_dataset"]


def test_the_findings_are_stored_and_printed(tmp_path: Path) -> None:
    write(tmp_path / "raw")
    entry = run(tmp_path / "raw", tmp_path / "index")
    assert [(f.name, f.severity, f.dimension) for f in entry.findings if f.severity == "error"] == [
        ("rotation_jumps", "error", "yaw")
    ]
    assert entry.facts is not None
    assert (entry.facts.episodes, entry.facts.steps) == (10, 200)
    lines = show.filter_warnings({"bridge_dataset": entry.summary}, str(tmp_path / "index"))
    assert [line for line in lines if line.startswith("error: bridge_dataset: yaw is near 2 pi at 20 % of the steps")]


def test_a_second_run_keeps_the_facts_of_unchanged_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "raw")
    first = run(tmp_path / "raw", tmp_path / "index")
    monkeypatch.setattr(plausible, "facts_of_index", lambda *args: pytest.fail("read the index again"))
    again = run(tmp_path / "raw", tmp_path / "index")
    assert (again.facts, again.findings) == (first.facts, first.findings)


def test_parts_that_are_merged_have_the_findings_of_one_run(tmp_path: Path) -> None:
    write(tmp_path / "raw")
    whole = run(tmp_path / "raw", tmp_path / "index")
    run(tmp_path / "raw", tmp_path / "a", splits=("train",))
    run(tmp_path / "raw", tmp_path / "b", splits=("val",))
    merge_indexes([tmp_path / "a", tmp_path / "b"], tmp_path / "merged", progress=False)
    merged = Index.open(tmp_path / "merged").datasets["bridge_dataset"]
    assert merged.facts == whole.facts
    assert [asdict(f) for f in merged.findings] == [asdict(f) for f in whole.findings]


def test_a_data_set_without_a_kept_episode_has_no_facts(tmp_path: Path) -> None:
    made = [episode("", flat_image((90, 90, 200)), jumping(0))]
    write_dataset(tmp_path / "raw", "bridge_dataset", "1.0.0", BRIDGE, made, shards=1)
    entry = run(tmp_path / "raw", tmp_path / "index")
    assert (entry.facts, entry.findings, entry.summary.kept) == (None, (), 0)


def test_a_large_data_set_is_measured_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [episode("open", flat_image((90, 90, 200), i), jumping(i)) for i in range(12)]
    write_dataset(tmp_path / "raw", "bridge_dataset", "1.0.0", BRIDGE, made, shards=6)
    run(tmp_path / "raw", tmp_path / "index")
    index = Index.open(tmp_path / "index")
    monkeypatch.setattr(plausible, "MOST_STEPS", 80)
    facts = facts_of_index(index.contents, "bridge_dataset", "1.0.0")
    assert facts is not None
    assert (facts.episodes, facts.steps) == (4, 80)
    chosen = plausible._spread(index.files("bridge_dataset"), [40] * 6)
    assert [path[-22:-17] for path in chosen] == ["00001", "00004"]  # spread over the data set
