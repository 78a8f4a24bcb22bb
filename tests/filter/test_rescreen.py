"""Criteria applied to an existing index give the index that filter writes with them."""

import json
import shutil
from pathlib import Path

import pytest

from oxe_curate.errors import ConfigError
from oxe_curate.filter.criteria import Criteria
from oxe_curate.filter.pipeline import FilterOptions, run_filter
from oxe_curate.filter.rescreen import screen_index
from tests import bridge


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Episodes 0, 1, 2, 1 in train, 7, 2 in val; of 2 to 8 steps."""
    made = {"train": [bridge.episode(i, 4 + i) for i in (0, 1, 2, 1)], "val": [bridge.episode(i) for i in (7, 2)]}
    bridge.write(tmp_path / "source", episodes=made)
    return tmp_path / "source"


def run(source: Path, out: Path, criteria: Criteria | None = None) -> None:
    run_filter(source, out, FilterOptions(criteria=criteria or Criteria(), workers=1, progress=False))


@pytest.mark.parametrize(
    "criteria",
    [
        Criteria(too_short=5), Criteria(idle=0.0), Criteria(idle=0.5, idle_rule="droid"), Criteria(duplicate=True),
        Criteria(no_language=False, too_long=4, action_outlier=0.1),
    ],
    ids=str,
)  # fmt: skip
def test_the_index_is_that_of_filter(source: Path, tmp_path: Path, criteria: Criteria) -> None:
    run(source, tmp_path / "index")
    run(source, tmp_path / "expected", criteria)
    shutil.move(source, tmp_path / "elsewhere")  # the source is not read
    before = tree(tmp_path / "index")
    shown = screen_index(tmp_path / "index", criteria, dry_run=True)
    assert tree(tmp_path / "index") == before
    applied = screen_index(tmp_path / "index", criteria)
    assert shown == applied
    found, expected = tree(tmp_path / "index"), tree(tmp_path / "expected")
    ours, theirs = (json.loads(files.pop("index.json")) for files in (found, expected))
    assert found == expected
    for data in (ours, theirs):
        del data["checksum"], data["datasets"]["bridge_dataset"]["seconds"]
    assert ours == theirs


def test_what_needs_the_source_is_refused(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "index", Criteria(bad_image=True))
    for criteria in (Criteria(black_level=3), Criteria(drop_idle_frames="libero")):
        with pytest.raises(ConfigError, match="needs the source; run `oxe-curate filter SOURCE"):
            screen_index(tmp_path / "index", criteria)
    screen_index(tmp_path / "index", Criteria(bad_image=False))
    with pytest.raises(ConfigError, match=r"index\.json not found"):
        screen_index(tmp_path, Criteria())
