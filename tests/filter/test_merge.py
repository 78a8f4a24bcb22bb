"""Filter by parts, as an array of jobs does, and merge: the index of one run."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from oxe_curate.errors import ConfigError, DataError
from oxe_curate.filter.criteria import Criteria
from oxe_curate.filter.merge import merge_indexes
from oxe_curate.filter.pipeline import FilterOptions, run_filter
from oxe_curate.filter.slices import plan_slices
from oxe_curate.index.index_json import IndexJson
from oxe_curate.storage import Folder
from tests import bridge
from tests.beam.cluster import tree


def write(root: Path, name: str = "bridge_dataset") -> None:
    """12 train episodes, the last a copy of the first, and a copy in val; 5 and 2 shards."""
    train = [bridge.episode(i, 6 + i % 5) for i in range(11)]
    episodes = {"train": [*train, bridge.episode(0, 6)], "val": [bridge.episode(3, 9), bridge.episode(100, 7)]}
    bridge.write(root, name, episodes, shards=5)


def part(source: Path, out: Path, *splits: str, **options: Any) -> Path:
    run_filter(source, out, FilterOptions(workers=1, progress=False, splits=splits, **options))
    return out


def by_parts(source: Path, work: Path, number: int, **options: Any) -> list[Path]:
    found = plan_slices(source, number)
    return [
        part(source, work / f"part-{i}", *each.splits, datasets=(each.dataset,), **options)
        for i, each in enumerate(found)
    ]


@pytest.mark.parametrize("number", [1, 3, 7])
@pytest.mark.parametrize("duplicate", [True, "report"])
def test_the_bytes_of_one_run(tmp_path: Path, number: int, duplicate: Any) -> None:
    write(tmp_path / "in")
    write(tmp_path / "in", "bridge_orig")
    criteria = Criteria(duplicate=duplicate, action_outlier=5.0)
    whole = part(tmp_path / "in", tmp_path / "whole", criteria=criteria)
    parts = by_parts(tmp_path / "in", tmp_path, number, criteria=criteria)
    result = merge_indexes(parts[::-1], tmp_path / "merged", progress=False)
    assert tree(tmp_path / "merged") == tree(whole)
    assert result.missing == {}
    assert sum(summary.seen for summary in result.summaries.values()) == 28
    again = run_filter(tmp_path / "in", tmp_path / "merged", FilterOptions(progress=False, criteria=criteria))
    assert (again.shards_done, again.shards_kept) == (0, 14)
    copies = [entry.summary.dropped.get("duplicate", [0])[0] + entry.summary.copies for entry in datasets(whole)]
    assert sum(copies) > 3  # the case has copies across parts


def datasets(index: Path) -> list[Any]:
    return list(IndexJson.read(Folder.of(index)).datasets.values())


def test_a_merge_can_be_repeated_and_says_what_no_part_has(tmp_path: Path) -> None:
    write(tmp_path / "in")
    first, _, third, *_ = by_parts(tmp_path / "in", tmp_path, 7)
    result = merge_indexes([first, third], tmp_path / "merged", progress=False)
    assert list(result.missing) == ["bridge_dataset"]
    once = tree(tmp_path / "merged")
    (tmp_path / "merged/index.json").unlink()
    merge_indexes([third, first], tmp_path / "merged", progress=False)
    assert tree(tmp_path / "merged") == once


def test_a_shard_in_two_parts_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "in")
    one, two = (
        part(tmp_path / "in", tmp_path / "1", "train[:1]"),
        part(tmp_path / "in", tmp_path / "2", "train[1:]"),
    )
    with pytest.raises(ConfigError, match=r"both have bridge_dataset/1\.0\.0/train-00000-of-00005\.parquet.*slices"):
        merge_indexes([one, two], tmp_path / "merged", progress=False)
    with pytest.raises(ConfigError, match="both have"):
        merge_indexes([one, one], tmp_path / "merged", progress=False)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"criteria": Criteria(too_short=3)}, "criteria differ in too_short: 1 and 3"),
        ({"frames": "span"}, "the frames of bridge_dataset differs: 'exact' and 'span'"),
    ],
)
def test_parts_made_in_other_ways_are_refused(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    write(tmp_path / "in")
    one = part(tmp_path / "in", tmp_path / "1", "train")
    two = part(tmp_path / "in", tmp_path / "2", "val", **options)
    with pytest.raises(ConfigError, match=f"2 does not fit .*1: {said}"):
        merge_indexes([one, two], tmp_path / "merged", progress=False)


def test_a_part_of_another_source_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "in")
    write(tmp_path / "copy")
    one, two = part(tmp_path / "in", tmp_path / "1", "train"), part(tmp_path / "copy", tmp_path / "2", "val")
    with pytest.raises(ConfigError, match=r"bridge_dataset was read from .*in and .*copy"):
        merge_indexes([one, two], tmp_path / "merged", progress=False)


def test_a_damaged_or_unfinished_part_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "in")
    one, two = part(tmp_path / "in", tmp_path / "1", "train"), part(tmp_path / "in", tmp_path / "2", "val")
    file = next(two.rglob("val-*.parquet"))
    data = bytearray(file.read_bytes())
    data[40] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"2/.*val-0000\d-of-00002|merged/.*val-0000\d"):
        merge_indexes([one, two], tmp_path / "merged", progress=False)
    assert not (tmp_path / "merged/index.json").exists()
    file.unlink()
    with pytest.raises(DataError, match="1 of 2 index files of bridge_dataset are missing"):
        merge_indexes([one, two], tmp_path / "merged", progress=False)
    (two / "index.json").unlink()
    with pytest.raises(ConfigError, match=r"index\.json not found"):
        merge_indexes([one, two], tmp_path / "merged", progress=False)


def test_another_index_is_not_merged_over(tmp_path: Path) -> None:
    write(tmp_path / "in")
    one, two = part(tmp_path / "in", tmp_path / "1", "train"), part(tmp_path / "in", tmp_path / "2", "val")
    before = tree(two)
    with pytest.raises(ConfigError, match="holds another index, with bridge_dataset"):
        merge_indexes([one], two, progress=False)
    assert tree(two) == before


def test_slices_cover_every_shard_once(tmp_path: Path) -> None:
    write(tmp_path / "in")
    for number in range(1, 12):
        found = plan_slices(tmp_path / "in", number)
        assert len(found) == min(number, 7)
        assert sum(each.shards for each in found) == 7
    sizes = [each.bytes for each in plan_slices(tmp_path / "in", 3)]
    assert max(sizes) < 2 * min(sizes)
    words = shlex.split(plan_slices(tmp_path / "in", 7)[1].options)
    assert words[:3] == ["--dataset", "bridge_dataset:1.0.0", "--split"]
    assert words[3].startswith("train[")
    with pytest.raises(ConfigError, match="expected at least 1"):
        plan_slices(tmp_path / "in", 0)


def test_both_commands(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from oxe_curate.cli.main import app

    write(tmp_path / "in")
    lines = CliRunner().invoke(app, ["slices", str(tmp_path / "in"), "--parts", "2"]).stdout.splitlines()
    assert len(lines) == 2
    for number, line in enumerate(lines):
        arguments = ["filter", str(tmp_path / "in"), "--out", str(tmp_path / f"{number}"), *shlex.split(line)]
        assert CliRunner().invoke(app, arguments).exit_code == 0
    parts = [str(tmp_path / "0"), str(tmp_path / "1")]
    done = CliRunner().invoke(app, ["merge-index", *parts, "--out", str(tmp_path / "merged"), "--json"])
    assert json.loads(done.stdout)["files"] == 7
    done = CliRunner().invoke(app, ["merge-index", *parts[:1], "--out", str(tmp_path / "half")])
    assert "bridge_dataset: no part has " in done.stdout
    assert all((tmp_path / name / "index.json").exists() for name in ("merged", "half"))
