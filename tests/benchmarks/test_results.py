"""The store of measured rows, the page that is made of it, and the runner of the groups."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import editor, far, groups, page, recorded, reference, run, scan
from benchmarks.contenders import Bench
from benchmarks.measure import Measurement
from benchmarks.rows import Anchor, Row, at_least, at_most, round_ratio, takes_part
from benchmarks.settings import Settings
from benchmarks.store import STORE, Store

FACTS = {"date": "2026-01-02 03:04", "commit": "abc1234", "processor": "a, 2 cores"}
FAST = Row("scan", "filter, 256 px", 0.5, "s", (0.4, 0.6), Anchor("raw read", 0.2, 0.4, "speed", 0.3), at_least(0.5))
SMALL = Row("scan", "memory", 1234.4, "MB", limit=at_most(2000), note="one process")


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_limit_is_for_the_ratio_and_without_an_anchor_for_the_number():
    assert (FAST.judged, FAST.met) == (0.4, False)
    assert (SMALL.judged, SMALL.met) == (1234.4, True)
    assert Row("scan", "x", 1, "s").met is None
    with pytest.raises(ValueError, match="no topic is named skan"):
        Row("skan", "x", 1, "s")
    assert not Row("scan", "failed", float("nan"), "", limit=at_most(0)).met


def test_a_slow_spell_of_the_machine_leaves_the_ratio():
    ours, theirs = [1.0, 10.0, 1.0], [2.0, 20.0, 2.0]  # all is ten times slower in the second round
    assert round_ratio(theirs, ours) == 2
    assert round_ratio([3.0], [1.0, 99.0]) == 3  # the slow one took part in one round


@pytest.mark.parametrize(
    ("spent", "budget", "expected"), [([], 0, True), ([4, 4], 12, True), ([4, 4], 11, False), ([30], 20, False)]
)
def test_a_contender_takes_part_while_another_round_fits_its_budget(spent, budget, expected):
    assert takes_part(spent, budget) == expected


# ── store ────────────────────────────────────────────────────────────────────────────────────────────────


def test_rows_survive_the_store(tmp_path: Path):
    store = Store()
    store.update("scan-256", [FAST, SMALL], FACTS, complete=True)
    store.write(tmp_path / "results.json")
    assert Store.read(tmp_path / "results.json") == store
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert Store.read(tmp_path / "none.json") == Store()


def test_a_partial_run_replaces_what_it_measured_and_keeps_the_rest():
    store = Store()
    store.update("scan-256", [FAST, SMALL], FACTS, complete=True)
    store.update("far", [SMALL], FACTS, complete=True)
    faster = Row("scan", "filter, 256 px", 0.1, "s", anchor=Anchor("raw read", 0.2, 2, "speed"))
    later = FACTS | {"date": "2026-02-03 04:05"}
    store.update("scan-256", [faster], later, complete=False)
    assert [stored.row for stored in store.groups["scan-256"]] == [faster, SMALL]
    assert [store.runs[stored.run]["date"] for stored in store.groups["scan-256"]] == [later["date"], FACTS["date"]]
    store.update("scan-256", [faster], later, complete=True)
    assert [stored.row for stored in store.groups["scan-256"]] == [faster]
    assert sorted(store.runs) == ["far 2026-01-02 03:04", "scan-256 2026-02-03 04:05"]  # the first run has no rows left


def test_rows_that_are_named_alike_are_refused():
    with pytest.raises(ValueError, match="scan-256: several rows are named alike"):
        Store().update("scan-256", [SMALL, SMALL], FACTS, complete=False)


# ── page ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_row_of_the_page():
    store = Store()
    store.update("scan-256", [groups.with_command(FAST, "scan-256"), SMALL], FACTS, complete=True)
    text = page.render(store, {})
    assert (
        "| filter, 256 px | 0.5 s (0.4 to 0.6) | raw read, 0.2 s | 0.4x the speed | 0.3x | ≥ 0.5x | no | "
        "`make bench ONLY=scan-256` | 1 |"
    ) in text
    assert "| memory; one process | 1,234 MB |  |  |  | ≤ 2,000 MB | yes |  | 1 |" in text
    assert "1 of 2 limits are met." in text
    assert "1. scan-256: date 2026-01-02 03:04, commit abc1234, processor a, 2 cores" in text
    assert "## Statistics" not in text  # no row
    assert page.line(FAST).endswith("0.4x the speed of raw read, 0.2 s (0.3x by processor time); limit ≥ 0.5x: no")


def test_the_page_links_only_to_files_that_exist(tmp_path: Path):
    store = Store()
    store.update("scan-256", [FAST], FACTS, complete=True)
    (tmp_path / "there.md").touch()
    page.write(store, tmp_path, {"scan": [("there.md", "more"), ("gone.md", "more")]})
    text = (tmp_path / "README.md").read_text()
    assert "[there.md](there.md): more." in text
    assert "gone.md" not in text


def test_the_page_of_the_repository_is_that_of_its_rows(tmp_path: Path):
    page.write(recorded.with_recorded(Store.read(STORE), STORE.parent), tmp_path, {})
    expected = (tmp_path / "README.md").read_text().splitlines()
    found = [text for text in (STORE.parent / "README.md").read_text().splitlines() if not text.startswith("More: ")]
    assert [text for text in found if text] == [text for text in expected if text]


def test_recorded_files_give_rows_with_the_worst_ratio_of_the_heads():
    rows = [
        {"kind": f"{model}{kind}", "head": head, "variant": variant, "samples_per_second": speed, "peak_gib": gib}
        for model in ("3b", "9b")
        for head, kind, variant, speed, gib in (
            ("lstm", "-reference", "float32", 2, 10), ("lstm", "", "bf16, checkpointing", 8, 6),
            ("gpt", "-reference", "float32", 2, 20), ("gpt", "", "bf16, checkpointing", 6, 8),
        )
    ]  # fmt: skip
    speed, memory = list(recorded.flamingo_rows({"rows": rows}))[:2]
    assert (speed.note, speed.judged, speed.met) == ("worst of 2 heads: gpt", 3, True)
    assert (memory.note, memory.judged, memory.met) == ("worst of 2 heads: lstm", 0.6, False)


# ── groups ───────────────────────────────────────────────────────────────────────────────────────────────


def _bench(tmp_path: Path, seconds: dict[str, list[float]], **result: object) -> Bench:
    bench = Bench(tmp_path, tmp_path, Settings(tmp_path, tmp_path))
    for name, found in seconds.items():
        said = {"cpu": 1.0, "source_steps": 1000, "steps": 1000, **result}
        bench.warm[name] = [Measurement(s, s, 2_000_000, 1_000_000, 0, result=said) for s in found]
    return bench


def test_the_ratio_of_a_comparison_is_speed_or_time(tmp_path: Path):
    bench = _bench(tmp_path, {"filter": [1, 2], "raw read": [3, 6], "statistics": [1]})
    speed = scan.compared(bench, scan.Comparison("scan", "filter", "raw read", "speed", {256: at_least(2)}), 256)
    assert speed
    assert (speed.value, speed.spread, speed.judged, speed.met) == (1.5, (1, 2), 3, True)
    time = scan.compared(bench, scan.Comparison("scan", "filter", "raw read", "time", {256: at_least(2)}), 64)
    assert time
    assert (round(time.judged, 3), time.limit) == (0.333, None)
    assert scan.compared(bench, scan.Comparison("scan", "filter", "no such", "time", {}), 64) is None


def test_a_contender_that_stopped_early_is_scaled(tmp_path: Path):
    bench = _bench(tmp_path, {"peer": [2], "statistics": [1]})
    bench.warm["peer"][0].result.update(partial=True, steps=100)
    assert bench.seconds("peer") == [20]
    row = scan.compared(bench, scan.Comparison("scan", "statistics", "peer", "speed", {}), 64)
    assert row
    assert row.anchor == Anchor("~peer", 20, 20, "speed", 10)


def test_far_rows_compare_with_a_downloader():
    found = {
        "seconds": 6.0, "reading": 4.0, "downloader": 3.0, "cpu": 1.0, "at_once": 4,
        "fewest": 2.0, "requests": 3.0, "least": 1000.0, "bytes": 1500.0,
    }  # fmt: skip
    reading, whole, requests, size = far.rows_of("filter", 1.0, [found])
    assert (reading.judged, reading.met) == (0.75, False)
    assert (whole.judged, whole.met) == (0.5, None)
    assert (requests.judged, size.judged, size.value) == (1.5, 1.5, 1.5)


def test_reading_by_reference_is_compared_with_copies_and_with_the_link():
    run = {"samples": 600, "cpu": 1.0, "seconds": 1.0}
    runs = {
        f"references, {name}": [run] for name in ("bytes", "decoded", "mixture on the disk", "mixture in the store")
    }
    runs |= {f"copies, {name}": [{**run, "cpu": 0.5}] for name in ("bytes", "decoded")}
    size = 5e6  # bytes of a frame: 0.05 s on the way
    local, _, far_away, _ = reference.read_rows({**runs, "size": [size]})
    assert local.judged == 0.5
    assert far_away.judged == pytest.approx(600 / 320)


def test_the_editor_s_table_is_read():
    text = "rows  open (s)  slider\n  98      0.46                 40 / 69                  50 / 77\n"
    opened, typed, shared = editor.parsed(text)
    assert (opened.value, typed.value, typed.note, shared.value) == (0.46, 40, "p95 69 ms", 50)


def test_every_group_s_function_is_there():
    assert all(callable(group.measure.load()) for group in groups.GROUPS.values())


def test_make_bench_takes_less_than_half_an_hour():
    assert sum(group.minutes for group in groups.GROUPS.values()) < 30


def test_a_group_that_fails_keeps_its_rows_and_those_of_others(tmp_path: Path, monkeypatch, capsys):
    def broken(settings: Settings) -> Iterator[Row]:
        yield FAST
        raise RuntimeError("no more")

    monkeypatch.setattr(groups, "GROUPS", {"broken": groups.Group("fails", 1, broken)})
    store = Store()
    store.update("broken", [SMALL], FACTS, complete=True)
    store.write(tmp_path / "results.json")
    settings = Settings(tmp_path, tmp_path)
    with pytest.raises(RuntimeError, match="no more"):
        run.measure_group("broken", settings, tmp_path / "results.json")
    rows = [stored.row for stored in Store.read(tmp_path / "results.json").groups["broken"]]
    assert [row.what for row in rows] == ["memory", "filter, 256 px"]
    assert rows[1].command == "make bench ONLY=broken"
    assert "filter, 256 px: 0.5 s" in capsys.readouterr().out


def test_rows_that_a_group_no_longer_has_go_unless_some_were_skipped(tmp_path: Path, monkeypatch):
    def skipping(settings: Settings) -> Iterator[Row]:
        settings.skip("peers", "not installed")
        yield FAST

    def whole(settings: Settings) -> Iterator[Row]:
        yield FAST

    found = {"a": groups.Group("skips", 1, skipping), "b": groups.Group("measures all", 1, whole)}
    monkeypatch.setattr(groups, "GROUPS", found)
    for name, expected in (("a", 2), ("b", 1)):
        path = tmp_path / name / "results.json"
        store = Store()
        store.update(name, [SMALL], FACTS, complete=True)
        store.write(path)
        run.measure_group(name, Settings(tmp_path, tmp_path), path)
        assert len(json.loads(path.read_text())["groups"][name]) == expected


def test_the_others_run_when_a_group_fails(tmp_path: Path, monkeypatch, capsys):
    done = []

    def run_group(name: str, arguments: object, minutes: float) -> str:
        done.append(name)
        return "exit code 1" if name == "scan-256" else ""

    monkeypatch.setattr(run, "run_group", run_group)
    assert run.main(["--only", "^scan", "--data", str(tmp_path), "--store", str(tmp_path / "results.json")]) == 1
    assert done == ["scan-256", "scan-64"]
    assert "1 of 2 groups done" in (said := capsys.readouterr().out)
    assert "again: make bench ONLY='scan-256'" in said
    assert (tmp_path / "README.md").exists()
    assert run.main(["--only", "64", "--data", str(tmp_path), "--quick"]) == 0
    assert (tmp_path / "quick" / "README.md").exists()  # not the repository's


def test_a_group_that_takes_too_long_is_stopped(tmp_path: Path, monkeypatch):
    class Child:
        pid = 1

        def wait(self, timeout: float | None = None) -> int:
            if timeout:
                raise run.subprocess.TimeoutExpired("x", timeout)
            return -9

        def poll(self) -> None:
            return None

    killed = []
    monkeypatch.setattr(run.subprocess, "Popen", lambda *_, **__: Child())
    monkeypatch.setattr(run.os, "killpg", lambda pid, signal: killed.append(pid))
    assert run.run_group("scan-256", [], 2) == "not done after 2 minutes"
    assert killed == [1]


@pytest.mark.parametrize("given", [["--only", "nonsense"], ["--only", "64", "--peers", "/no/such"]])
def test_mistakes_are_refused(given: list[str], tmp_path: Path):
    with pytest.raises(SystemExit, match=r"nonsense: no group matches|/no/such does not exist"):
        run.main([*given, "--data", str(tmp_path), "--store", str(tmp_path / "results.json")])


def test_a_busy_machine_is_noticed():
    assert run.is_busy(0.6, 2)
    assert not run.is_busy(0.4, 2)
