"""Decisions over all episodes of an index: copies within and across splits and data sets, leaks, outliers."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from oxe_curate.filter import across
from oxe_curate.filter.criteria import MEASURED, Criteria
from oxe_curate.filter.pipeline import FilterOptions, FilterResult, run_filter
from oxe_curate.index.index_json import INDEX_JSON, UNFINISHED, IndexJson
from oxe_curate.index.store import Index
from tests import bridge


def run(source: Path, out: Path, criteria: Criteria | None = None, **options: Any) -> FilterResult:
    return run_filter(
        source, out, FilterOptions(criteria=criteria or Criteria(), progress=False, **{"workers": 1, **options})
    )


def rows(out: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for path in sorted(out.rglob("*.parquet")):
        for row in pq.ParquetFile(path).read().to_pylist():
            found[row["episode_id"].replace("bridge_dataset/1.0.0/", "")] = row
    return found


def reasons(out: Path) -> dict[str, str]:
    return {name: row["reason"] for name, row in rows(out).items() if row["reason"]}


def copies(out: Path) -> dict[str, str]:
    cut = "bridge_dataset/1.0.0/"
    return {n: r["duplicate_of"].replace(cut, "") for n, r in rows(out).items() if r["duplicate_of"]}


def files(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*.parquet")}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Episodes 0, 1, 2, 1 in train (two shards), 7, 2 in val."""
    made = {"train": [bridge.episode(i) for i in (0, 1, 2, 1)], "val": [bridge.episode(i) for i in (7, 2)]}
    bridge.write(tmp_path / "source", episodes=made)
    return tmp_path / "source"


def test_copies_are_reported_by_default_and_nothing_is_dropped(source, tmp_path):
    result = run(source, tmp_path / "index").summaries["bridge_dataset"]
    # shard 0 holds episodes 0 and 2, shard 1 holds 1 and 1; val's shard 1 holds 2
    assert copies(tmp_path / "index") == {
        "train/00001/00001": "train/00001/00000",
        "val/00001/00000": "train/00000/00001",
    }
    assert reasons(tmp_path / "index") == {}
    assert (result.kept, result.copies, result.leaks) == (6, 2, {"val": 1})


def test_copies_are_dropped_on_request_without_scanning_again(source, tmp_path):
    run(source, tmp_path / "index")
    result = run(source, tmp_path / "index", Criteria(duplicate=True))
    assert result.shards_done == 0
    assert reasons(tmp_path / "index") == {"train/00001/00001": "duplicate", "val/00001/00000": "duplicate"}
    summary = result.summaries["bridge_dataset"]
    assert (summary.kept, summary.dropped, summary.copies, summary.leaks) == (4, {"duplicate": [2, 12]}, 0, {})
    assert Index.open(tmp_path / "index").datasets["bridge_dataset"].summary.steps_kept == 24


def test_only_files_whose_rows_change_are_rewritten(source, tmp_path):
    run(source, tmp_path / "index")
    files = Index.open(tmp_path / "index").contents
    assert [path for path, made in across.decide(files, Criteria()).files.items() if made.changed] == []
    made = across.decide(files, Criteria(duplicate=True)).files
    assert [path.rsplit("/", 1)[-1] for path in sorted(made) if made[path].changed] == [
        "train-00001-of-00002.parquet", "val-00001-of-00002.parquet",
    ]  # fmt: skip


def test_reverting_an_option_restores_the_files(source, tmp_path):
    run(source, tmp_path / "index")
    before = files(tmp_path / "index")
    run(source, tmp_path / "index", Criteria(duplicate=True))
    assert files(tmp_path / "index") != before
    run(source, tmp_path / "index")
    assert files(tmp_path / "index") == before
    run(source, tmp_path / "index", Criteria(duplicate=False))
    assert copies(tmp_path / "index") == {}


def test_the_files_do_not_depend_on_the_number_of_workers(source, tmp_path):
    for workers in (1, 2):
        run(source, tmp_path / str(workers), Criteria(duplicate=True), workers=workers)
    assert files(tmp_path / "1") == files(tmp_path / "2")


@pytest.fixture
def twins(source, tmp_path) -> tuple[Path, Path]:
    """The data set once more under another name, with a card of its own."""
    bridge.write(source, "twin", {"train": [bridge.episode(i) for i in (7, 30)]}, shards=1)
    cards = tmp_path / "cards"
    cards.mkdir()
    ours = (Path(across.__file__).parents[1] / "registry/cards/bridge_orig.yaml").read_text()
    renamed = ours.replace("name: bridge_orig", "name: twin")
    (cards / "twin.yaml").write_text("\n".join(x for x in renamed.splitlines() if not x.startswith("aliases:")))
    return source, cards


def test_the_order_of_the_data_sets_does_not_matter(twins, tmp_path):
    source, cards = twins
    keep = Criteria(duplicate=True)
    run(source, tmp_path / "both", keep, cards=cards)
    assert reasons(tmp_path / "both") == {
        "train/00001/00001": "duplicate", "val/00001/00000": "duplicate",
        "val/00000/00000": "duplicate",  # twin's train comes before bridge's val
    }  # fmt: skip
    for order in (("twin", "bridge_dataset"), ("bridge_dataset", "twin")):
        out = tmp_path / order[0]
        for name in order:
            run(source, out, keep, cards=cards, datasets=(name,))
        assert files(out) == files(tmp_path / "both")
        one, other = Index.open(out).datasets, Index.open(tmp_path / "both").datasets
        assert {n: (e.summary.kept, e.summary.dropped) for n, e in one.items()} == {
            n: (e.summary.kept, e.summary.dropped) for n, e in other.items()
        }
        assert not (out / UNFINISHED).exists()


def test_a_run_killed_while_it_rewrites_others_loses_nothing(twins, tmp_path, monkeypatch):
    source, cards = twins
    out, keep = tmp_path / "index", Criteria(duplicate=True)
    run(source, out, keep, cards=cards, datasets=("bridge_dataset",))
    with monkeypatch.context() as patch:
        patch.setattr(across, "apply_decisions", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(source, out, keep, cards=cards, datasets=("twin",))
    assert not (out / INDEX_JSON).exists()  # it would validate files that are about to change
    run(source, out, keep, cards=cards, datasets=("twin",))
    data = json.loads((out / INDEX_JSON).read_text())["datasets"]
    assert data["bridge_dataset"]["dropped"] == {"duplicate": [3, 18]}
    assert data["twin"]["kept"] == 2


def test_a_run_killed_after_it_rewrote_others_counts_them_again(twins, tmp_path, monkeypatch):
    source, cards = twins
    out, keep = tmp_path / "index", Criteria(duplicate=True)
    run(source, out, keep, cards=cards, datasets=("bridge_dataset",))
    with monkeypatch.context() as patch:
        patch.setattr(IndexJson, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(source, out, keep, cards=cards, datasets=("twin",))
    assert sorted(path.name for path in out.glob("*.json")) == ["files.json", "sources.json", UNFINISHED]
    run(source, out, keep, datasets=("twin",))
    data = json.loads((out / INDEX_JSON).read_text())["datasets"]
    assert data["bridge_dataset"]["dropped"] == {"duplicate": [3, 18]}
    assert not (out / UNFINISHED).exists()


def test_an_episode_with_an_outlier_is_dropped(tmp_path):
    made = [bridge.episode(i, 60) for i in range(6)]
    made[4]["steps"]["observation"]["state"][30:, 1] += 3.0  # the tracking jumps by 3 m
    bridge.write(tmp_path / "source", episodes=made)
    run(tmp_path / "source", tmp_path / "index", Criteria(action_outlier=3.0))
    assert reasons(tmp_path / "index") == {"train/00000/00002": "action_outlier"}
    run(tmp_path / "source", tmp_path / "index", Criteria(action_outlier=1000.0))
    assert reasons(tmp_path / "index") == {}


def test_the_real_val_split_repeats_the_train_split(shared, tmp_path):
    source = shared / "data/rlds"
    result = run(source, tmp_path, Criteria(duplicate=True), datasets=("bridge_dataset",))
    summary = result.summaries["bridge_dataset"]
    assert (summary.kept, summary.dropped) == (25, {"duplicate": [25, 200]})
    assert {name.split("/")[0] for name in reasons(tmp_path)} == {"val"}
    assert len(set(copies(tmp_path).values())) == 25


def test_what_is_unlike_its_data_set_is_marked_and_strict_drops_it(tmp_path):
    made = [bridge.episode(i, 8) for i in range(12)]
    for step in range(8):
        made[5]["steps"]["language_instruction"][step] = "TODO"
    bridge.write(tmp_path / "source", episodes={"train": made}, shards=1)
    off: dict[str, Any] = dict.fromkeys(MEASURED, False)
    result = run(tmp_path / "source", tmp_path / "index", Criteria(**off | {"meaningless_text": "report"}))
    (marked,) = [(name, row) for name, row in rows(tmp_path / "index").items() if row["marks"]]
    assert (marked[0], marked[1]["kept"], marked[1]["reason"]) == ("train/00000/00005", True, None)
    (mark,) = marked[1]["marks"]
    assert mark["criterion"] == "meaningless_text"
    assert mark["value"] > mark["limit"]
    judged = result.judged["bridge_dataset"]["meaningless_text"]
    assert (judged.measured, judged.marked, judged.dropped) == (12, 1, 0)
    assert judged.worst == "bridge_dataset/1.0.0/train/00000/00005"
    strict = run(tmp_path / "source", tmp_path / "index", Criteria(**off | {"meaningless_text": True}))
    assert strict.shards_done == 0
    assert reasons(tmp_path / "index") == {"train/00000/00005": "meaningless_text"}
    assert strict.judged["bridge_dataset"]["meaningless_text"].dropped == 1
    for criteria in (off, off | {"meaningless_text": "report", "limits": {"meaningless_text": 1e9}}):
        run(tmp_path / "source", tmp_path / "index", Criteria(**criteria))
        assert [name for name, row in rows(tmp_path / "index").items() if row["marks"]] == []
