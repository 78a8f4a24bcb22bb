import dataclasses
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

from oxe_curate.editor import analyse
from oxe_curate.editor.catalogue import Catalogue, starting_text
from oxe_curate.editor.frames import FrameViewer
from oxe_curate.editor.proposals import Proposals
from oxe_curate.editor.quantities import solve
from oxe_curate.errors import ConfigError
from oxe_curate.mixture import published
from oxe_curate.mixture.propose import propose
from oxe_curate.tokenize.pipeline import TokenizeOptions, run_tokenize
from tests.editor.conftest import MIXTURE

STEPS = [100.0, 200.0, 700.0]


def units(text: str, start: int, end: int) -> str:
    """A slice of a text in UTF-16 units, as in a browser."""
    return text.encode("utf-16-le")[2 * start : 2 * end].decode("utf-16-le")


def changed(text: str, done: dict) -> str:
    raw = text.encode("utf-16-le")
    for change in reversed(done["changes"]):
        insert = change["insert"].encode("utf-16-le")
        raw = raw[: 2 * change["from"]] + insert + raw[2 * change["to"] :]
    return raw.decode("utf-16-le")


def test_rows_have_positions_numbers_and_shares(catalogue):
    found = analyse.analyse(MIXTURE, catalogue)
    rows = found["rows"]
    assert [units(MIXTURE, row["weightFrom"], row["weightTo"]) for row in rows] == ["1.0", "0.54087122203", "2.0"]
    assert [row["line"] for row in rows] == [6, 8, 10]
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert [row["epochs"] for row in rows] == pytest.approx([1.0, 0.54087122203, 2.0])
    drawn = [row["weight"] * row["steps"] * 0.9 for row in rows]
    assert found["totals"]["samples"] == pytest.approx(sum(drawn))
    assert found["totals"]["bytes"] == pytest.approx(sum(d * row["bytes"] for d, row in zip(drawn, rows, strict=True)))
    assert rows[0]["origin"] == "index"


def test_a_mixture_by_reference_takes_little_room(catalogue):
    found = analyse.analyse(MIXTURE + "window: 2\nimage: {size: 224, copy: false}\n", catalogue)
    assert found["settings"]["image"]["copy"] is False
    assert found["totals"]["bytes"] == pytest.approx(found["totals"]["samples"] * (2 * 8 + 60))
    assert analyse.analyse(MIXTURE, catalogue)["settings"]["image"]["copy"] is True


def test_a_stride_draws_fewer_samples_of_the_same_hours(catalogue):
    every = analyse.analyse(MIXTURE, catalogue)
    some = analyse.analyse(MIXTURE + "window: 12\nstride: 6\n", catalogue)
    assert some["totals"]["samples"] == pytest.approx(every["totals"]["samples"] / 6)
    assert some["totals"]["bytes"] == pytest.approx(every["totals"]["bytes"] * 12 / 6)
    assert some["totals"]["hours"] == pytest.approx(every["totals"]["hours"])
    assert [r["share"] for r in some["rows"]] == pytest.approx([r["share"] for r in every["rows"]])
    assert [r["epochs"] for r in some["rows"]] == pytest.approx([r["epochs"] for r in every["rows"]])
    operation = {"op": "quantity", "row": 0, "quantity": "epochs", "value": 3}
    done = analyse.apply_action(MIXTURE + "window: 12\nstride: 6\n", operation, catalogue, samples=5_000)
    assert done["analysis"]["rows"][0]["epochs"] == pytest.approx(3, rel=1e-4)
    assert analyse.analyse(MIXTURE + "stride: x\n", catalogue)["totals"]["samples"] == every["totals"]["samples"]


TEXTS = "texts: # web data\n  - {name: vqa, path: vqa.parquet, weight: 0.5} # some\nstride: 1\n"


def test_texts_survive_every_edit_and_are_shown(catalogue, tmp_path):
    text = MIXTURE + TEXTS
    found = analyse.analyse(text, catalogue)
    assert found["texts"] == [{"name": "vqa", "path": "vqa.parquet", "weight": 0.5}]
    for operation in (
        {"op": "set", "path": ["stride"], "value": 4},
        {"op": "weights", "rows": {"0": 0.25}},
        {"op": "remove", "rows": [1]},
        {"op": "add", "datasets": {"kuka": 1.0}},
    ):
        done = analyse.apply_action(text, operation, catalogue)
        assert TEXTS.removesuffix("stride: 1\n") in changed(text, done)
        assert done["analysis"]["texts"] == found["texts"]
    assert changed(text, analyse.apply_action(text, {"op": "set", "path": ["stride"], "value": 4}, catalogue)).endswith(
        "stride: 4\n"
    )
    for wrong in ("texts: 5\n", "texts: [5]\n", "texts: [{name: a, weight: {}}]\n"):
        assert analyse.analyse(MIXTURE + wrong, catalogue)["ok"]
    with pytest.raises(ConfigError, match="'texts' is not a setting"):
        analyse.apply_action(text, {"op": "set", "path": ["texts"], "value": 1}, catalogue)
    (finding,) = [f for f in analyse.problems(text, catalogue, None, tmp_path) if f["level"] == "error"]
    assert (finding["code"], finding["key"], finding["line"]) == ("no_text_source", "texts.0.path", 14)
    assert "no such file or folder" in finding["message"]


def test_epochs_depend_on_the_training_samples(catalogue):
    rows = analyse.analyse(MIXTURE, catalogue, samples=10_000)["rows"]
    assert sum(row["epochs"] * row["steps"] * 0.9 for row in rows) == pytest.approx(10_000)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("name: [\n", 2, "expected"),
        ("# 🤖\nname: m\nname: n\n", 3, "duplicate key"),
        ("- a\n", 1, "keys and values"),
        ("", 1, "keys and values"),
        ("name: m\ndatasets: 3\n", 2, "list"),
        ("name: m\ndatasets:\n  - a\n", 3, "datasets: entry 1 has no name"),
    ],
)
def test_an_invalid_text_has_an_error_with_its_line(catalogue, text, line, message):
    found = analyse.analyse(text, catalogue)
    assert found["ok"] is False
    assert found["error"]["line"] == line
    assert message in found["error"]["message"]


def test_a_row_with_a_problem_remains_editable(catalogue):
    text = "name: m\ndatasets:\n  - name: brigde_orig\n    weight: -1\n  - name: viola\n"
    rows = analyse.analyse(text, catalogue)["rows"]
    assert "Did you mean 'bridge_orig'" in rows[0]["problem"]
    assert "above zero" in rows[1]["problem"]
    fixed = changed(text, analyse.apply_action(text, {"op": "weights", "rows": {"0": 1.0, "1": 2.0}}, catalogue))
    assert fixed == "name: m\ndatasets:\n  - name: brigde_orig\n    weight: 1.0\n  - name: viola\n    weight: 2.0\n"


@pytest.mark.parametrize(
    ("quantity", "value"), [("weight", 0.7), ("share", 0.25), ("epochs", 3.0), ("hours", 0.05)],
)  # fmt: skip
@pytest.mark.parametrize("samples", [None, 50_000.0])
def test_a_quantity_that_is_set_is_shown(catalogue, quantity, value, samples):
    key = {"hours": "passHours"}.get(quantity, quantity)
    done = analyse.apply_action(
        MIXTURE, {"op": "quantity", "row": 2, "quantity": quantity, "value": value}, catalogue, samples
    )
    assert len(done["changes"]) == 1
    assert done["analysis"]["rows"][2][key] == pytest.approx(value, rel=1e-5)
    assert analyse.analyse(changed(MIXTURE, done), catalogue, samples) == done["analysis"]


@pytest.mark.parametrize(("quantity", "value"), [("weight", 3.0), ("share", 0.5), ("epochs", 3.0)])
def test_rebalancing_keeps_the_size_of_a_pass_and_locked_rows(quantity, value):
    new = solve([1.0, 1.0, 1.0], STEPS, 0, quantity, value, samples=1000.0, keep_total=True, locked={1})
    weights = [new.get(i, 1.0) for i in range(3)]
    assert np.dot(weights, STEPS) == pytest.approx(1000, rel=1e-5)
    assert 1 not in new
    if quantity == "share":
        assert weights[0] * 100 / 1000 == pytest.approx(0.5, rel=1e-5)
    else:
        assert weights[0] == pytest.approx(3.0, rel=1e-5)


def test_rows_of_unknown_size_are_not_changed():
    assert solve([1.0, 1.0, 1.0], [100.0, None, 300.0], 0, "share", 0.5) == {0: 3.0}
    with pytest.raises(ConfigError, match="steps is unknown"):
        solve([1.0, 1.0], [None, 100.0], 0, "share", 0.5)
    assert solve([1.0, 1.0], [None, 100.0], 0, "weight", 0.5) == {0: 0.5}


@pytest.mark.parametrize(
    ("quantity", "value", "message"),
    [("share", 1.0, "share"), ("share", 0.0, "above zero"), ("weight", -1, "above zero"), ("mass", 1, "Known|mean"),
     ("epochs", 1e9, "are more than"), ("hours", 1, "control rate")],
)  # fmt: skip
def test_an_impossible_quantity_is_rejected(quantity, value, message):
    with pytest.raises(ConfigError, match=message):
        solve([1.0, 1.0], [100.0, 100.0], 0, quantity, value, samples=1000.0)


def test_bulk_changes(catalogue):
    done = analyse.apply_action(MIXTURE, {"op": "scale", "rows": [0, 2], "factor": 2}, catalogue)
    assert [row["weight"] for row in done["analysis"]["rows"]] == [2.0, 0.54087122203, 4.0]
    after = changed(MIXTURE, done)
    assert after == MIXTURE.replace("weight: 1.0 ", "weight: 2.0 ").replace("weight: 2.0\nval", "weight: 4.0\nval")


def test_adopting_a_published_mixture(catalogue):
    weights = dict(catalogue.references["openvla_rtx"].weights)
    done = analyse.apply_action(MIXTURE, {"op": "adopt", "weights": weights}, catalogue)
    rows = done["analysis"]["rows"]
    assert {row["id"]: row["weight"] for row in rows} == weights
    assert "# the first" in changed(MIXTURE, done)
    one = analyse.apply_action(MIXTURE, {"op": "adopt", "weights": weights, "only": ["viola"]}, catalogue)
    assert [row["id"] for row in one["analysis"]["rows"]][-1] == "viola"
    assert len(one["changes"]) == 1


def test_every_published_mixture_can_be_edited():
    catalogue = Catalogue(None)
    for entry in published.published_mixtures().values():
        text = entry.path.read_text(encoding="utf-8")
        done = analyse.apply_action(text, {"op": "weights", "rows": {"0": 0.123}}, catalogue)
        assert len(done["changes"]) == 1
        assert all(row["problem"] is None for row in done["analysis"]["rows"])


def test_checks_equal_those_of_the_command_line(catalogue):
    findings = analyse.problems(MIXTURE.replace("jaco_play", "dobbe"), catalogue, None)
    first = findings[0]
    assert (first["level"], first["code"], first["line"]) == ("error", "fails_criterion", 10)


def test_the_starting_text_has_the_data_sets_of_the_index(index):
    text = starting_text("mine", index)
    assert [row["weight"] for row in analyse.analyse(text, Catalogue(index))["rows"]] == [1.0, 1.0, 1.0]
    assert analyse.analyse(starting_text("mine", None), Catalogue(None))["rows"] == []


def test_a_proposal_is_computed_in_the_background(catalogue):
    proposals = Proposals(catalogue)
    mixture = analyse.parse_mixture(MIXTURE, "my.yaml")
    assert proposals.state() == {"state": "idle"}
    with pytest.raises(ConfigError, match="unknown method"):
        proposals.start(mixture, "guess")
    with pytest.raises(ConfigError, match="--index"):
        Proposals(Catalogue(None)).start(mixture, "diversity")
    assert proposals.start(mixture, "diversity")["state"] == "running"
    deadline = time.monotonic() + 60
    while (state := proposals.state())["state"] == "running" and time.monotonic() < deadline:
        time.sleep(0.05)
    expected = propose(catalogue.index, mixture, "diversity")
    assert state["weights"] == catalogue.weights(expected.mixture)
    assert set(state["reasons"]) == {"bridge_dataset", "fractal20220817_data", "jaco_play"}


# ── frames ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def frames(catalogue, index) -> FrameViewer:
    return FrameViewer(catalogue, index)


@pytest.mark.parametrize("more", ["", "window: 3\nstride: 2\n"])
def test_the_next_samples_equal_the_rows_that_tokenize_writes(frames, index, tmp_path, more):
    mixture = analyse.parse_mixture(MIXTURE + more, "my.yaml")
    found = frames.next_samples(mixture, "my.yaml", 0, 64)
    later = frames.next_samples(mixture, "my.yaml", 64, 16)
    path = tmp_path / "my.yaml"
    path.write_text(MIXTURE + more, encoding="utf-8")
    run_tokenize(path, str(index.folder), tmp_path / "out", TokenizeOptions(workers=1, progress=False))
    table = pq.read_table(tmp_path / "out" / found["shard"])
    shown = [sample["sampleId"] for sample in found["samples"] + later["samples"]]
    assert shown == table["sample_id"].to_pylist()[:80]
    assert [s["instruction"] for s in found["samples"]] == table["instruction"].to_pylist()[:64]
    assert found["rows"] == len(table)
    other = frames.next_samples(dataclasses.replace(mixture, seed=4), "my.yaml", 0, 64)
    assert [s["sampleId"] for s in other["samples"]] != shown[:64]


def test_histograms_have_bounds_and_the_clipped_share(frames, index):
    found = frames.histograms(["bridge_dataset", "jaco_play"], 0.05, 0.95)
    assert [d["axis"] for d in found["dimensions"]] == ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]
    for dimension in found["dimensions"]:
        for series in dimension["series"]:
            assert sum(series["counts"]) == pytest.approx(1, abs=1e-4)
            assert series["low"] <= series["high"]
    assert found["dimensions"][0]["series"][0]["clipped"] == pytest.approx(0.1, abs=0.02)
    assert found["dimensions"][6]["series"][0]["clipped"] is None
    assert found["steps"]["jaco_play"] == index.datasets["jaco_play"].summary.steps_kept


def test_details(frames):
    found = frames.details("bridge_dataset")
    assert [example["roles"] for example in found["examples"]] == [["primary", "secondary", "extra"]] * 6
    assert sum(text["episodes"] for text in found["instructions"]) > 10
    with pytest.raises(ConfigError, match="keeps no episode"):
        frames.details("nyu_door_opening_surprising_effectiveness")
    with pytest.raises(ConfigError, match="is not in the index"):
        frames.details("viola")


def test_a_swapped_frame_has_red_and_blue_exchanged(frames):
    import io

    from PIL import Image

    encoded = [frames.image("bridge_dataset", "primary", 0, 0, 3, 72, swap) for swap in (False, True)]
    plain, swapped = (np.asarray(Image.open(io.BytesIO(p)), np.float64) for p in encoded)
    assert np.abs(plain[..., 0] - swapped[..., 2]).mean() < 6
    assert np.abs(plain[..., 0] - plain[..., 2]).mean() > 8


def test_real_bridge(shared, tmp_path):
    from oxe_curate.filter.pipeline import FilterOptions, run_filter
    from oxe_curate.index.store import Index

    options = FilterOptions(datasets=("bridge_dataset",), workers=1, progress=False)
    run_filter(shared / "data" / "rlds", tmp_path / "index", options)
    index = Index.open(tmp_path / "index")
    frames = FrameViewer(Catalogue(index), index)
    assert frames.thumbnail("bridge_dataset", 72).startswith(b"\xff\xd8")
    assert len(frames.details("bridge_dataset")["examples"]) == 6
