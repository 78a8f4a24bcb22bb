"""The report of small indexes whose contents are known."""

import base64
import hashlib
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from oxe_curate.actions.bounds import Bounds
from oxe_curate.errors import ConfigError, StorageError
from oxe_curate.filter.criteria import Criteria
from oxe_curate.filter.pipeline import FilterOptions, run_filter
from oxe_curate.filter.tasks import count_tasks, lost_tasks
from oxe_curate.index.index_json import Judged
from oxe_curate.index.store import Index
from oxe_curate.report import page as pieces
from oxe_curate.report import write_report
from oxe_curate.report.gather import _hashes, gather_dataset
from oxe_curate.report.page import share
from oxe_curate.report.reasons import Criterion, InDataset
from tests import bridge


def filtered(root: Path, episodes: list, criteria: Criteria | None = None) -> Index:
    bridge.write(root / "source", episodes={"train": episodes})
    run_filter(
        root / "source", root / "index", FilterOptions(criteria=criteria or Criteria(), workers=1, progress=False)
    )
    return Index.open(root / "index")


def spoiled(seed: int) -> dict:
    made = bridge.episode(seed, text="pour <b>milk</b>")
    made["steps"]["observation"]["state"][3, 0] = np.nan
    return made


@pytest.fixture
def index(tmp_path: Path) -> Index:
    """Six kept episodes of two tasks; one without text, one too short, and one that takes its task with it."""
    kept = [bridge.episode(i, 9, "lift" if i % 2 else "put & place") for i in range(6)]
    dropped = [bridge.episode(7, text=""), bridge.episode(8, 5, "lift"), spoiled(9)]
    return filtered(tmp_path, [*kept, *dropped], Criteria(too_short=4))


class Page(HTMLParser):
    """Collects tags and text; raises on an end tag that nothing opened."""

    VOID = ("meta", "img", "br", "path", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)
        (self.data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text) or [""]
        self.episodes = json.loads(self.data) if self.data else []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data + " "


def read(out: Path) -> tuple[str, Page]:
    text = out.read_text()
    page = Page(text)
    assert page.open == []
    return text, page


def test_the_page_lists_kept_episodes_and_reasons_for_drops(index: Index, tmp_path: Path):
    out = write_report(index.folder.uri, tmp_path / "report.html", progress=False)
    text, page = read(out)
    words = re.sub(r"\s+", " ", page.words)
    assert "kept 6 66.7 % " in words
    for reason in ("no_language", "too_short", "not_finite"):
        assert f"{reason} 1 11.1 % " in words
    assert {one["reason"] for one in page.episodes} == {None, "no_language", "too_short", "not_finite"}
    assert [one["state"] for one in page.episodes].count("dropped") == 3
    assert "1 task is lost: no episode with this instruction is kept pour <b>milk</b> (1)" in words
    assert "put & place 3 3 " in words
    assert "<b>milk" not in text
    assert "too_short 4 1 " in words  # a criterion that differs from its default


NAUGHTY = "<script>alert(1)</script>\"&'"


def test_texts_are_escaped(tmp_path: Path):
    index = filtered(tmp_path, [bridge.episode(1, text=NAUGHTY), bridge.episode(2, text="")])
    ((name, entry),) = index.datasets.items()
    renamed = replace(entry, version=NAUGHTY, summary=replace(entry.summary, corrupt=[NAUGHTY], leaks={NAUGHTY: 1}))
    found = gather_dataset(index, name, 2, 2)
    row = InDataset(NAUGHTY, 1, 1, Judged(limit=1, unit=NAUGHTY, measured=1, marked=1, dropped=1, worst=NAUGHTY))
    criterion = Criterion(NAUGHTY, NAUGHTY, [row], np.empty(0), [(NAUGHTY, NAUGHTY)])
    script = (files("oxe_curate.report") / "page.js").read_text()
    parts = [
        pieces.head(NAUGHTY),
        pieces.overview(NAUGHTY, NAUGHTY, renamed.summary, 1, 1, NAUGHTY),
        pieces.datasets([pieces.dataset(NAUGHTY, renamed, found, [NAUGHTY])]),
        pieces.criteria([criterion]),
        pieces.episodes([{"text": NAUGHTY, "id": "<!--<script>"}], NAUGHTY),
        pieces.foot({"idle": NAUGHTY}, {"idle": None}, NAUGHTY),
    ]
    for part in parts:
        own = part.replace('<script type="application/json" id="data">', "").replace(f"<script>{script}</script>", "")
        assert "<script" not in own
        assert "<!--" not in own
        assert "alert(1)</" not in own.replace("&lt;/", "").replace("\\u003c/", "")
    text = "".join(parts)
    page = Page(text)
    assert page.open == []
    assert page.episodes[0]["text"] == NAUGHTY
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;&#34;&amp;&#39;") >= 20


def test_the_page_loads_no_external_resources(index: Index, tmp_path: Path):
    text, page = read(write_report(index.folder.uri, tmp_path / "report.html", progress=False))
    assert "default-src 'none'" in text
    assert not re.search(r"https?://(?!www.w3.org/2000/svg)|url\(|@import|<link|<script [^t]|src=\"[^$]", text)
    script = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(script) == 1
    assert f"script-src 'sha256-{base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()}'" in text
    assert not [tag for tag, _ in page.tags if tag == "img"]  # drawn from the data, when an episode is shown


@pytest.mark.parametrize("located", ["exact", "span"])
def test_images_are_frames_of_the_episode(index: Index, tmp_path: Path, located):
    options = FilterOptions(criteria=Criteria(too_short=4), workers=1, progress=False, frames=located)
    run_filter(tmp_path / "source", tmp_path / located, options)
    index = Index.open(tmp_path / located)
    sources = {
        row["episode_id"]: row["frame_index"]
        for _, table in index.tables("bridge_dataset", ["episode_id", "frame_index"])
        for row in table.to_pylist()
    }
    assert any(source[0] for source in sources.values())  # the recipe trims
    _, page = read(write_report(index.folder.uri, tmp_path / "report.html", progress=False))
    assert len(page.episodes) == 9
    assert {one["camera"] for one in page.episodes} == {"primary"}
    colours = set()
    for one in page.episodes:
        steps = one["steps"]
        assert [frame[0] for frame in one["frames"]] == sorted(set(np.linspace(0, steps - 1, 5).round().astype(int)))
        for step, width, height, jpeg, problem in one["frames"]:
            image = Image.open(io.BytesIO(base64.b64decode(jpeg)))
            assert (*image.size, problem) == (width, height, "") == (16, 16, "")
            red, green, _ = image.getpixel((8, 8))
            assert round(green / 10) == sources[one["id"]][step]  # green identifies the step of the source
            if one["text"] == "put & place":
                colours.add(round(red / 20))
    assert colours == {0, 2, 4}  # red identifies the episode: 0, 40, 80


def test_charts_and_tables_have_captions(index: Index, tmp_path: Path):
    _, page = read(write_report(index.folder.uri, tmp_path / "report.html", progress=False))
    tags = [tag for tag, _ in page.tags]
    assert tags.count("table") == tags.count("caption")
    charts = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(charts) == 10
    assert all(chart["role"] == "img" and chart["aria-label"] for chart in charts)


def test_statistics_are_those_of_all_and_of_the_kept(index: Index):
    found = gather_dataset(index, "bridge_dataset", 2, 2)
    rows = [row for _, table in index.tables("bridge_dataset", ["kept", "action"]) for row in table.to_pylist()]
    every = np.concatenate([np.float32(row["action"]).reshape(-1, 7) for row in rows])
    kept = np.concatenate([np.float32(row["action"]) for row in rows if row["kept"]])
    every = every[np.isfinite(every).all(axis=1)]
    for summary, actions in ((found.actions.seen, every), (found.actions.kept, kept)):
        expected = Bounds.fit(actions)
        assert np.array_equal(summary.q01, expected.q01)
        assert np.array_equal(summary.q99, expected.q99)
    for histogram in found.actions.histograms:
        assert (histogram.seen.sum(), histogram.kept.sum()) == (len(every), len(kept))
        assert (histogram.kept <= histogram.seen).all()
    assert (found.lengths.seen.sum(), found.lengths.kept.sum()) == (9, 6)
    assert found.lengths.kept[7] == 6  # nine steps are seven after the trim
    assert {reason: len(examples) for reason, examples in found.flagged.worst.items()} == {
        "no_language": 1, "not_finite": 1, "too_short": 1,
    }  # fmt: skip
    assert len(found.kept) == 2


def test_a_large_data_set_counts_evenly_spaced_steps_of_some_files(index: Index, tmp_path: Path, monkeypatch):
    every = gather_dataset(index, "bridge_dataset", 2, 2)
    part = gather_dataset(index, "bridge_dataset", 2, 2, steps=15)
    steps = index.datasets["bridge_dataset"].summary.steps_seen
    assert every.actions.counted == every.actions.steps == steps == 57
    assert part.actions.steps == steps
    assert 10 < part.actions.counted <= 15 < part.actions.read < steps
    assert len(index.files("bridge_dataset")) == 2  # of which one is read
    rows = index.table(index.files("bridge_dataset")[0], ["kept", "action"]).to_pylist()
    for some, chosen in ((part.actions.seen, rows), (part.actions.kept, [row for row in rows if row["kept"]])):
        actions = np.concatenate([np.float32(row["action"]).reshape(-1, 7) for row in chosen])
        actions = actions[np.isfinite(actions).all(axis=1)]
        assert np.array_equal(some.min, actions.min(axis=0))
        assert np.array_equal(some.max, actions.max(axis=0))
        assert not np.array_equal(some.mean, actions.mean(axis=0, dtype=np.float64))
    assert all(h.seen.sum() == part.actions.counted for h in part.actions.histograms)
    assert all(np.isfinite(values).all() for values in (part.actions.seen.min, part.actions.seen.max))
    assert (part.tasks, part.medians) == (every.tasks, every.medians)
    monkeypatch.setattr("oxe_curate.report.STEPS", 15)
    monkeypatch.setattr("oxe_curate.report._LEAST_STEPS", 1)
    _, page = read(write_report(index.folder.uri, tmp_path / "report.html", progress=False))
    assert f"Counted: {part.actions.counted} of 57 steps, evenly spaced" in page.words
    assert f"of {part.actions.read} steps" in page.words


def test_each_index_file_is_read_once_for_all_numbers(index: Index, monkeypatch):
    reads = []
    table = Index.table
    monkeypatch.setattr(Index, "table", lambda self, path, columns: reads.append(path) or table(self, path, columns))
    ticks = []
    gather_dataset(index, "bridge_dataset", 0, 0, lambda: ticks.append(1))
    assert sorted(reads) == index.files("bridge_dataset")
    assert len(ticks) == len(reads) > 1


def test_a_data_set_without_rows_has_no_numbers(index: Index, monkeypatch):
    monkeypatch.setattr(Index, "files", lambda self, dataset: [])
    found = gather_dataset(index, "bridge_dataset", 2, 2)
    assert (found.actions, found.lengths, found.flagged.worst, found.medians) == (None, None, {}, {})


def test_two_reports_are_equal(index: Index, tmp_path: Path):
    one, two = (write_report(index.folder.uri, tmp_path / f"{n}.html", progress=False) for n in "ab")
    assert one.read_bytes() == two.read_bytes()


def test_a_missing_source_still_shows_the_numbers(index: Index, tmp_path: Path):
    (tmp_path / "source").rename(tmp_path / "elsewhere")
    _, page = read(write_report(index.folder.uri, tmp_path / "report.html", progress=False))
    assert len(page.episodes) == 9
    for one in page.episodes:
        assert one["frames"] == [[0, 144, 144, "", "source shard not found"]]
        assert len(one["action"]) == 7


def test_undecodable_frames_are_reported(tmp_path: Path):
    made = bridge.episode(1)
    made["steps"]["observation"]["image_0"] = [b"\xff\xd8 damaged"] * 8
    index = filtered(tmp_path, [made, bridge.episode(2)])
    _, page = read(write_report(index.folder.uri, tmp_path / "report.html", progress=False))
    assert [frame[4] for one in page.episodes for frame in one["frames"]].count("cannot be decoded") == 5


def test_an_index_that_keeps_nothing_and_one_that_keeps_everything(tmp_path: Path):
    nothing = filtered(tmp_path / "a", [bridge.episode(i, text="") for i in range(2)])
    _, page = read(write_report(nothing.folder.uri, tmp_path / "a.html", progress=False))
    assert "kept 0 All 2 episodes of bridge_dataset are dropped: 2 for no_language." in re.sub(r"\s+", " ", page.words)
    assert "The verdict of its card bridge_orig is pass" in page.words
    assert "No episode has an instruction." in page.words
    everything = filtered(tmp_path / "b", [bridge.episode(i) for i in range(2)])
    _, page = read(write_report(everything.folder.uri, tmp_path / "b.html", progress=False))
    assert "all episodes are kept" in page.words
    assert "lost" not in page.words


def test_unwritable_and_unreadable_files_are_errors(index: Index, tmp_path: Path):
    with pytest.raises(StorageError, match="file or folder not found"):
        write_report(index.folder.uri, tmp_path / "missing" / "report.html", progress=False)
    with pytest.raises(ConfigError, match=r"index\.json not found"):
        write_report(tmp_path / "missing", tmp_path / "report.html", progress=False)
    assert list(tmp_path.glob("*.html")) == []


def test_lost_tasks_are_named_by_data_set(index: Index):
    assert lost_tasks(index) == {"bridge_dataset": ["pour <b>milk</b>"]}
    tasks = count_tasks(index, "bridge_dataset")
    assert tasks.seen == {"put & place": 3, "lift": 4, "pour <b>milk</b>": 1}
    assert tasks.kept == {"put & place": 3, "lift": 3}


def test_shares_round_to_0_and_100_only_if_exact():
    assert [share(1, 3), share(0, 3), share(3, 3), share(0, 0)] == ["33.3 %", "0.0 %", "100.0 %", "–"]
    assert [share(1, 100_000), share(99_999, 100_000)] == ["<0.1 %", "99.9 %"]


def test_the_real_shard(shared: Path, tmp_path: Path):
    options = FilterOptions(datasets=("bridge_dataset",), criteria=Criteria(duplicate=True), progress=False)
    run_filter(shared / "data/rlds", tmp_path / "index", options)
    out = write_report(tmp_path / "index", tmp_path / "report.html", progress=False)
    _, page = read(out)
    assert out.stat().st_size < 1 << 20
    assert "duplicate 25 50.0 %" in re.sub(r"\s+", " ", page.words)


def test_example_episodes_are_the_same_in_every_release():
    hashes = _hashes(pl.Series([f"bridge_dataset/1.0.0/train/00000/{row:05d}" for row in range(40)]))
    assert sorted(hashes.arg_sort().to_list()[:4]) == [23, 27, 33, 37]
