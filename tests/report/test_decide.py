"""The page by reason: marks, limits, the worst episodes first, and what can be done."""

import html
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

import oxe_curate.report as report
from oxe_curate.filter.criteria import Criteria
from oxe_curate.filter.pipeline import FilterOptions, run_filter
from oxe_curate.index.index_json import IndexJson
from oxe_curate.index.store import Index
from oxe_curate.quality.findings import DataFinding
from oxe_curate.report import write_report
from oxe_curate.report.entries import _COLUMNS, _entry
from tests import bridge
from tests.report.marked import mark, write_marks
from tests.report.test_report import Page


def ids(index: Index, dataset: str = "bridge_dataset") -> list[str]:
    return [id for _, table in index.tables(dataset, ["episode_id"]) for id in table["episode_id"].to_pylist()]


@pytest.fixture
def plain(tmp_path: Path) -> Index:
    """Ten episodes, all kept; no criterion that compares episodes is on."""
    off = dict.fromkeys((name for name, value in vars(Criteria()).items() if value == "report"), False)
    bridge.write(tmp_path / "source", episodes={"train": [bridge.episode(i, 20, f"task {i}") for i in range(10)]})
    options = FilterOptions(criteria=Criteria(**off), workers=1, progress=False)
    run_filter(tmp_path / "source", tmp_path / "index", options)
    return Index.open(tmp_path / "index")


@pytest.fixture
def marked(plain: Index) -> Index:
    """Three marks of one criterion, one of them on a dropped episode, and a copy."""
    a, b, c, d, *_ = ids(plain)
    spikes = {a: 3.0, b: 9.0, c: 4.5}
    marks = {id: [mark("action_spike", value, 1.5, 7, "yaw")] for id, value in spikes.items()}
    return write_marks(plain, marks, {b: "action_spike"}, {d: a}, unit="of the usual")


def written(index: Index, tmp_path: Path) -> tuple[str, Page]:
    text = write_report(index.folder.uri, tmp_path / "report.html", progress=False).read_text()
    return text, Page(text)


def words_of(page: Page) -> str:
    return re.sub(r"\s+", " ", page.words)


def test_a_section_for_each_criterion_with_limit_worst_and_counts(marked: Index, tmp_path: Path):
    text, page = written(marked, tmp_path)
    sections = re.findall(r'<details class="reason" id="reason-(\w+)"', text)
    assert sections == ["action_spike", "duplicate"]  # the one that concerns more episodes first
    words = words_of(page)
    assert "1 dropped 2 marked" in words
    assert "bridge_dataset 1.5 of the usual 10 9 of the usual 2 1" in words
    assert "3 kept episodes of 9 would be dropped by the preset strict" in words
    kept, flagged, dropped = (
        re.search(rf"(\d+) {what}", words)[1] for what in ("kept, without", "kept and marked", "dropped")
    )
    assert (kept, flagged, dropped) == ("6", "3", "1")


def test_episodes_say_what_the_criterion_saw(marked: Index, tmp_path: Path):
    a, b, c, d, *_ = ids(marked)
    _, page = written(marked, tmp_path)
    by_id = {one["id"]: one for one in page.episodes}
    assert [one["id"] for one in page.episodes][:2] == [b, d]  # the worst of each criterion
    assert by_id[b]["state"] == by_id[b]["reason"].replace("action_spike", "dropped")
    assert {id: by_id[id]["state"] for id in (a, c, d)} == dict.fromkeys((a, c, d), "marked")
    assert by_id[b]["why"] == [
        {
            "criterion": "action_spike", "value": 9, "limit": 1.5, "step": 7, "detail": "yaw",
            "unit": "of the usual", "excess": 6, "least": False,
        }
    ]  # fmt: skip
    assert [frame[0] for frame in by_id[b]["frames"]] == [1, 6, 7, 8, 13]
    assert len(by_id[b]["action"]) == 7
    assert {len(curve["points"]) for curve in by_id[b]["action"] + by_id[b]["proprio"]} == {by_id[b]["steps"]}
    assert by_id[d]["copy"] == a
    assert by_id[d]["why"][0]["criterion"] == "duplicate"


def test_the_numbers_of_criteria_that_look_at_one_episode(plain: Index, tmp_path: Path):
    first, second, *_ = ids(plain)
    criteria = {**plain.criteria, "too_short": 30, "too_long": 9}
    replace(IndexJson.read(plain.folder), criteria=criteria).finish(plain.folder)
    index = write_marks(Index.open(plain.folder), {}, {first: "too_short", second: "too_long"})
    _, page = written(index, tmp_path)
    by_reason = {one["reason"]: one["why"] for one in page.episodes}
    (short,), (long,) = by_reason["too_short"], by_reason["too_long"]
    steps = page.episodes[0]["steps"]
    assert (short["value"], short["limit"], short["least"], short["excess"]) == (steps, 30, True, 30 / steps)
    assert (long["value"], long["limit"], long["least"], long["excess"]) == (steps, 9, False, steps / 9)


def test_commands_to_act_are_next_to_each_section(marked: Index, tmp_path: Path):
    text, _ = written(marked, tmp_path)
    commands = [html.unescape(one) for one in re.findall(r"<code>(oxe-curate screen .*?)</code>", text)]
    assert any("--preset strict" in one for one in commands)
    for change in ("action_spike=report", "limits.action_spike=1.5", "action_spike=false", "duplicate=true"):
        assert any(one.endswith(f"--criterion {change}") for one in commands)


def test_the_original_of_a_copy_is_on_the_page_even_if_nothing_concerns_it(plain: Index, tmp_path: Path, monkeypatch):
    first, *_, last = ids(plain)
    index = write_marks(plain, {}, copies={last: first})
    monkeypatch.setattr(report, "_KEPT", 0)
    _, page = written(index, tmp_path)
    assert [(one["id"], one["state"]) for one in page.episodes] == [(last, "marked"), (first, "kept")]


def test_an_index_without_marks(plain: Index, tmp_path: Path):
    text, page = written(plain, tmp_path)
    assert "No episode is dropped or marked." in words_of(page)
    assert "No episode is dropped or marked; 6 kept episodes without a mark" in words_of(page)
    assert '<details class="reason"' not in text
    assert {one["state"] for one in page.episodes} == {"kept"}


def test_the_page_is_bounded(plain: Index, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(report, "_FLAGGED", 4)
    monkeypatch.setattr(report, "_KEPT", 1)
    some = ids(plain)
    index = write_marks(plain, {id: [mark("odd", 2.0 + i)] for i, id in enumerate(some[:8])})
    _, page = written(index, tmp_path)
    assert [one["id"] for one in page.episodes[:4]] == [some[7], some[6], some[5], some[4]]
    assert len(page.episodes) == 5
    assert "4 of the 8 dropped and marked episodes, those furthest above the limit" in words_of(page)
    for one in page.episodes:
        assert len(one["frames"]) <= 6


def test_long_texts_and_wide_states_are_cut(tmp_path: Path):
    bridge.write(tmp_path / "source", episodes={"train": [bridge.episode(1, 20, "lift " * 40_000)]})
    run_filter(tmp_path / "source", tmp_path / "index", FilterOptions(workers=1, progress=False))
    text, page = written(Index.open(tmp_path / "index"), tmp_path)
    assert len(text) < 200_000
    assert page.episodes[0]["text"] == "lift " * 80 + " …"
    assert page.episodes[0]["hidden"] == 0
    row = {**dict.fromkeys(_COLUMNS), "proprio": [[0.5] * 60] * 3, "num_steps": 3, "camera_spans": [], "kept": True}
    one = _entry(Index.open(tmp_path / "index"), "bridge_dataset/1.0.0/train-00000-of-00001.parquet", row, 5, _none)
    assert (len(one["proprio"]), one["hidden"]) == (24, 36)


def _none(dataset: str) -> frozenset[str]:
    return frozenset()


def test_numbers_that_json_does_not_have(plain: Index, tmp_path: Path):
    first, second, *_ = ids(plain)
    bad = {first: [mark("odd", float("inf"))], second: [mark("odd", float("nan"), float("-inf"))]}
    _, page = written(write_marks(plain, bad), tmp_path)
    by_id = {one["id"]: one for one in page.episodes}
    assert by_id[first]["why"][0]["value"] is None
    assert by_id[second]["why"][0]["limit"] is None
    json.dumps(page.episodes, allow_nan=False)


def test_a_histogram_of_the_values_above_the_limit(plain: Index, tmp_path: Path):
    some = ids(plain)
    index = write_marks(plain, {id: [mark("odd", 3.0 + i, 2.0)] for i, id in enumerate(some[1:7])})
    text, page = written(index, tmp_path)
    assert "6 episodes from 1.47 to 4," in re.search(r'aria-label="Value / limit. (.*?)"', text)[1]
    assert "values of the others are not stored" in words_of(page)


def test_findings_about_a_data_set_come_first_errors_before_warnings(plain: Index, tmp_path: Path):
    data = IndexJson.read(plain.folder)
    some = [
        DataFinding(name=name, severity=severity, dimension=axis, text="Measured <b>.", advice="Set `wrap: true`.")
        for name, severity, axis in (("wide_bounds", "warning", None), ("rotation_jumps", "error", "yaw"))
    ]
    entry = replace(data.datasets["bridge_dataset"], findings=tuple(some))
    replace(data, datasets={"bridge_dataset": entry}).finish(plain.folder)
    text, page = written(Index.open(plain.folder), tmp_path)
    words = words_of(page)
    assert "1 error and 1 warning rotation_jumps, wide_bounds" in words
    first, second = words.index("Error: rotation_jumps (yaw)."), words.index("Warning: wide_bounds. Measured <b>. Set")
    assert first < second < words.index("Kept and dropped")
    assert "Set <code>wrap: true</code>." in text
    assert "Measured &lt;b&gt;" in text
