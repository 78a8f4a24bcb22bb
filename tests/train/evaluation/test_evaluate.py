import json
import re
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

pytest.importorskip("torch")

import torch

from oxe_curate.actions.bins import ActionBins
from oxe_curate.actions.bounds import Bounds
from oxe_curate.errors import ConfigError, DataError
from oxe_curate.filter.pipeline import FilterOptions, run_filter
from oxe_curate.sealed import seal
from oxe_curate.tokenize.pipeline import TokenizeOptions, run_tokenize
from oxe_curate.train.data.batch import Rows
from oxe_curate.train.evaluation import curves
from oxe_curate.train.evaluation.evaluate import choose_episodes, evaluate_run
from oxe_curate.train.evaluation.page import Drawn, evaluation_page
from oxe_curate.train.evaluation.predict_episode import predict_batches, predict_in_order
from oxe_curate.train.evaluation.scores import Scores, score, together
from oxe_curate.train.loop import saved
from oxe_curate.train.models import base as family
from tests import bridge
from tests.train import toy_policy as toy

BOUNDS = Bounds.from_json(toy.statistics("a")["a"])  # -0.1 .. 0.1, the gripper as it is
BINS = ActionBins()


# ── scores ──


def scored(predicted, target, mask=None, bounds=BOUNDS) -> Scores:
    predicted, target = (np.asarray(a, np.float32).reshape(-1, 1, 7) for a in (predicted, target))
    return score(predicted, target, np.ones(predicted.shape[:2], bool) if mask is None else mask, bounds, BINS)


def test_errors_are_in_metres_and_degrees():
    found = scored([0.5] * 6 + [1], [0] * 6 + [0])
    np.testing.assert_allclose(found.l1[:3], 0.05)
    np.testing.assert_allclose(found.l1[3:6], np.degrees(0.05))
    assert found.l1[6] == 1
    assert found.gripper_accuracy == 0
    assert found.token_accuracy == 0
    assert found.constant_l1 == (0,) * 7  # the mean action is 0, and so is the data


def test_a_token_is_correct_if_it_decodes_to_the_same_value():
    width = 2 / 255
    target = np.array([[0.1, 0.1, 0.1, 0.1, 1.0, -1.0, 1.0]])
    inside = BINS.decode(BINS.encode(target))  # predictions with the correct tokens
    assert scored(inside, target).token_accuracy == 1  # also of 1.0, whose bin decodes as the one below
    off = inside + np.array([[width, 0, 0, 0, 0, 0, 0]])
    assert scored(off, target).token_accuracies == (0, 1, 1, 1, 1, 1, 1)


def test_gripper_accuracy_compares_sides():
    target = np.zeros((4, 7))
    target[:, 6] = [0, 0, 1, 1]
    predicted = np.zeros((4, 7))
    predicted[:, 6] = [0.49, 0.51, 0.51, 0.996]
    assert scored(predicted, target).gripper_accuracy == 0.75
    assert scored(predicted, target).constant_gripper_accuracy == 0.5  # the mean is closed, half the steps are not


def test_a_gripper_that_never_moves_has_no_accuracy():
    entry = toy.statistics("a")["a"]
    for key in ("min", "max", "mean", "q01", "q99"):
        entry["action"][key][6] = 1.0
    found = scored(np.zeros((1, 7)), np.zeros((1, 7)), bounds=Bounds.from_json(entry))
    assert found.gripper_accuracy is None
    assert found.constant_l1[6] == 0  # the data holds 0 there


def test_chunk_errors_stop_at_the_end_of_the_episode():
    target = np.zeros((2, 2, 7), np.float32)
    predicted = target.copy()
    predicted[:, 1] = 1.0
    whole = score(predicted, target, np.ones((2, 2), bool), BOUNDS, BINS)
    cut = score(predicted, target, np.array([[True, True], [True, False]]), BOUNDS, BINS)
    assert whole.l1[0] == cut.l1[0] == 0
    np.testing.assert_allclose([whole.chunk_l1[0], cut.chunk_l1[0]], [0.05, 0.1 / 3])


def test_data_sets_are_weighted_by_steps():
    one = replace(scored(np.zeros((1, 7)), np.zeros((1, 7))), gripper_accuracy=None)
    three = scored(np.full((3, 7), 0.4), np.zeros((3, 7)))
    found = together({"a": one, "b": three})
    assert (found.steps, found.share) == (4, 1)
    np.testing.assert_allclose(found.l1[0], 0.75 * three.l1[0])
    assert found.token_accuracy == 0.25
    assert found.gripper_accuracy == three.gripper_accuracy


# ── curves and page ──


def test_a_curve_is_interrupted_at_missing_steps():
    steps = np.array([0, 1, 2, 5, 6])
    found = curves.chart("x", "m", steps, np.zeros(5), np.array([0, 1, np.nan, 1, 0.5]))
    assert re.findall("[ML]", found.target) == ["M", "L", "L", "M", "L"]
    assert re.findall("[ML]", found.predicted) == ["M", "L", "M", "L"]


def test_a_gripper_is_drawn_as_stairs():
    found = curves.chart("gripper", "", np.arange(3), np.array([0, 1, 1.0]), np.array([0, 0, 1.0]), stairs=True)
    assert re.findall("[A-Z]", found.target) == ["M", "H", "V", "H", "V"]


def test_curves_are_drawn_to_scale():
    found = curves.chart("x", "m", np.arange(3), np.array([0, 1, 2.0]), np.array([2.0, 2.0, 2.0]))
    heights = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", found.target)]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.11)
    assert heights[2] == float(re.search(r"M[\d.]+ ([\d.]+)", found.predicted)[1])
    assert (found.error, found.unit, found.steps) == ("1", "m", 3)


@pytest.mark.parametrize("value", [0.0, 5.0, -1e-9])
def test_a_constant_curve_of_one_step_can_be_drawn(value):
    found = curves.chart("x", "m", np.array([7]), np.array([value]), np.array([value]))
    assert "nan" not in repr(found)
    assert "inf" not in repr(found)


def test_a_page_makes_no_request_and_escapes_every_text():
    part = scored(np.full((3, 7), 0.4), np.zeros((3, 7)))
    attack = """<script>alert("1")</script>' onerror='x"""
    drawn = Drawn(
        attack, f"e/{attack}", attack, np.arange(3), np.zeros((3, 7)), np.ones((3, 7)), np.zeros((1, 8, 8, 3), np.uint8)
    )
    found = evaluation_page(attack, {attack: attack}, {attack: part, "b": part}, part, [drawn], [attack])
    escaped = "&lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt;&#39; onerror=&#39;x"
    assert "<script" not in found
    assert "' onerror='" not in found
    assert found.count(escaped) == 10  # title and heading, fact twice, row, section, instruction, id, alt text, note
    assert "http" not in found.replace("http-equiv", "")
    assert 'class="num worse"' in found
    assert found.count("<svg") == 7
    assert "x: mean error 1 m over 3 steps" in found
    assert 'href="#data-set-1"' in found
    assert 'id="data-set-1"' in found


# ── predicting episodes ──


def rows_of(steps, window=1, chunk=1):
    """Rows of an episode whose frame at step t is red t and whose action at step t is t / 100."""
    times = steps[:, None] + np.arange(1 - window, 1)
    n = len(steps)
    images = np.zeros((n, window, 1, toy.SIZE, toy.SIZE, 3), np.uint8)
    images[..., 0] = np.maximum(times, 0)[:, :, None, None, None]
    actions = (np.maximum(times, 0)[:, :, None] + np.arange(chunk))[..., None] / 100 * np.ones(7)
    return Rows(
        position=steps, dataset=np.zeros(n, np.int64), instruction=[f"step {s}" for s in steps], images=images,
        observation_mask=times >= 0, actions=actions.astype(np.float32), bins=np.zeros(actions.shape, np.uint8),
        action_mask=np.repeat((times >= 0)[:, :, None], chunk, 2), proprio=np.zeros((n, 0), np.float32),
        random=np.zeros((n, 8), np.float32), sample_id=[str(s) for s in steps],
    )  # fmt: skip


def toy_model(tmp_path, **spec):
    run = toy.write_run(tmp_path / "run", toy.write_base(tmp_path / "base", gain=255.0), scale=1.0, **spec)
    opened = saved.open_saved(run)
    return toy.ToyFamily.restore(opened.config, opened.spec, opened.weights, torch.device("cpu")), opened.config


def reader(steps, **form):
    return lambda start, stop: rows_of(steps[start:stop], **form)


def test_batches_cover_an_episode_in_order(tmp_path):
    model, config = toy_model(tmp_path, chunk=2)
    steps = np.arange(10)
    found = predict_batches(model, config, reader(steps, chunk=2), steps, False, batch_size=4)
    np.testing.assert_allclose(found.predicted[:, 0, 0], steps, atol=1e-4)  # the model's output is the red value
    np.testing.assert_allclose(found.target[:, :, 3] * 100, steps[:, None] + [0, 1], atol=1e-4)
    np.testing.assert_array_equal(found.frames[:, 0, 0, 0], [0, 3, 6, 9])
    assert found.instruction == "step 0"


def test_the_center_crop_is_the_same_in_batches_and_step_by_step(tmp_path):
    model, config = toy_model(tmp_path)
    steps = np.arange(3)
    spot = rows_of(steps)
    spot.images[..., 0] = 200
    spot.images[:, :, :, 0] = 0  # a dark edge, of which the cut leaves a part
    for crop, red in ((False, 200 * 7 / 8), (True, (200 * 7 + 36) / 8)):
        one = predict_batches(model, config, lambda a, b: spot, steps, crop, 4).predicted
        other = predict_in_order(model, lambda a, b: spot, steps, crop).predicted
        np.testing.assert_allclose(one, other)
        np.testing.assert_allclose(one[:, 0, 0], red, atol=0.3)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_every_step_is_predicted_with_any_stride(tmp_path, stride):
    model, _ = toy_model(tmp_path, window=3)
    steps = np.arange(0, 10, stride)
    found = predict_in_order(model, reader(steps, window=3), steps, False, rows_at_once=2)
    times = np.arange(steps[-1] + 1)
    np.testing.assert_array_equal(found.steps, times)
    np.testing.assert_allclose(found.target[:, 0, 0] * 100, times, atol=1e-4)
    # the toy's output is the mean red of its last three frames: 0, 0.5, 1, 2, 3 ...
    expected = [np.mean(times[max(t - 2, 0) : t + 1]) for t in times]
    np.testing.assert_allclose(found.predicted[:, 0, 0], expected, atol=1e-4)
    assert found.mask.all()


def test_the_controller_is_reset_after_a_gap(tmp_path):
    model, _ = toy_model(tmp_path, window=2)
    steps = np.array([0, 1, 8, 9])
    found = predict_in_order(model, reader(steps, window=2), steps, False)
    np.testing.assert_array_equal(found.steps, [0, 1, 7, 8, 9])
    np.testing.assert_allclose(found.predicted[:, 0, 0], [0, 0.5, 7, 7.5, 8.5], atol=1e-4)


def test_episodes_are_chosen_from_data_sets_in_turn():
    chosen = choose_episodes({"a": ["a1", "a2", "a3"], "b": ["b1"]}, 3)
    assert [name for name, _ in chosen] == ["a", "a", "b"]
    assert chosen == choose_episodes({"a": ["a3", "a2", "a1"], "b": ["b1"]}, 3)
    assert len(choose_episodes({"a": ["a1", "a2", "a3"], "b": ["b1"]}, 99)) == 4


# ── a run ──


@pytest.fixture(scope="module")
def mixtures(tmp_path_factory):
    root = tmp_path_factory.mktemp("mixtures")
    episodes = {"train": [bridge.episode(i, 9 + i % 3, text=f"task {i}") for i in range(12)]}
    bridge.write(root / "rlds", episodes=episodes)
    run_filter(root / "rlds", str(root / "index"), FilterOptions(workers=1, progress=False))
    for name, keys in (("plain", "chunk: 2"), ("windows", "window: 3\nstride: 2"), ("none", "validation: 0")):
        text = f"name: {name}\ndatasets: [{{name: bridge_dataset, weight: 1.0}}]\n{keys}\n"
        (root / f"{name}.yaml").write_text(text + ("" if name == "none" else "validation: 0.4\n"))
        run_tokenize(
            root / f"{name}.yaml", str(root / "index"), str(root / name), TokenizeOptions(workers=1, progress=False)
        )
    return root


@pytest.fixture
def toys(monkeypatch):
    monkeypatch.setitem(family._FAMILIES, "openvla", "tests.train.toy_policy:ToyFamily")


def make(tmp_path, data, **config):
    return toy.write_run(tmp_path / "run", toy.write_base(tmp_path / "base"), data=data, checkpoints=(3,), **config)


def test_a_run_is_evaluated_on_held_out_episodes(mixtures, tmp_path, toys):
    run = make(tmp_path, mixtures / "plain", chunk=2)
    result = evaluate_run(run, progress=False)
    assert sorted(p.name for p in result.folder.iterdir()) == ["evaluation.json", "index.html", "predictions.parquet"]
    assert result.folder == run / "evaluation"
    assert result.how == "batches"
    read = json.loads((run / "evaluation" / "evaluation.json").read_text())
    assert read == json.loads(json.dumps(result.to_json()))
    table = pl.read_parquet(run / "evaluation" / "predictions.parquet")
    manifest = json.loads((mixtures / "plain" / "manifest.json").read_text())
    assert len(table) == result.whole.steps == sum(manifest["rows"]["validation"].values())
    assert read["episodes"] == {"bridge_dataset": table["episode_id"].n_unique()}
    # the table matches the scores
    error = (table["predicted_x"] - table["target_x"]).abs().mean()
    assert result.whole.l1[0] == pytest.approx(error, rel=1e-5)
    # the toy's output: gain 2 x scale 0.25 x red / 255, the color of the episode
    seed = table["instruction"].cast(pl.String).str.extract(r"task (\d+)").cast(pl.Int32)
    np.testing.assert_allclose(table["predicted_gripper"], 0.5 * (seed * 20 % 256) / 255, atol=0.01)
    chunks = np.array(table["predicted_chunk"].to_list())
    np.testing.assert_allclose(chunks[:, 1, 6], 1.01 * chunks[:, 0, 6], rtol=1e-5)


def test_targets_are_the_actions_of_the_mixture(mixtures, tmp_path, toys):
    result = evaluate_run(make(tmp_path, mixtures / "plain", chunk=2), progress=False)
    table = pl.read_parquet(result.folder / "predictions.parquet")
    shards = pl.concat(pl.read_parquet(p) for p in sorted((mixtures / "plain").glob("validation-*.parquet")))
    bounds = Bounds.from_json(json.loads((mixtures / "plain/dataset_statistics.json").read_text())["bridge_dataset"])
    expected = {(e, s): bounds.denormalize(np.array(a))[0] for e, s, a in
              shards.select("episode_id", "step", "action").iter_rows()}  # fmt: skip
    for row in table.iter_rows(named=True):
        real = [row[f"target_{name}"] for name in ("x", "y", "z", "roll", "pitch", "yaw", "gripper")]
        np.testing.assert_allclose(real, expected[row["episode_id"], row["step"]], rtol=1e-5, atol=1e-7)


def test_a_model_with_a_window_predicts_all_steps(mixtures, tmp_path, toys):
    result = evaluate_run(make(tmp_path, mixtures / "windows", window=3), progress=False)
    assert result.how == "controller"
    table = pl.read_parquet(result.folder / "predictions.parquet")
    for (_,), episode in table.group_by("episode_id"):
        steps = episode["step"].to_numpy()
        np.testing.assert_array_equal(steps, np.arange(steps[-1] + 1))  # also those between the stride's


def test_a_checkpoint_is_evaluated_in_its_own_folder(mixtures, tmp_path, toys):
    run = make(tmp_path, mixtures / "plain", chunk=2)
    result = evaluate_run(run, checkpoint=3, episodes=1, split="train", progress=False)
    assert result.folder == run / "evaluation" / "checkpoint-3"
    assert result.episodes == {"bridge_dataset": 1}
    table = pl.read_parquet(result.folder / "predictions.parquet")
    assert table["predicted_gripper"][0] == pytest.approx(2 * 0.75 * bridge_red(table) / 255, abs=0.02)


def test_an_output_folder_that_belongs_to_something_else_is_refused(mixtures, tmp_path, toys):
    run = make(tmp_path, mixtures / "plain", chunk=2)
    for out, match in (
        (tmp_path / "base", "is the base model"),
        (mixtures / "plain" / "evaluation", "is inside the mixture"),
        (run, "holds a training run"),
        (mixtures / "index", "holds an episode index"),
    ):
        before = sorted(out.rglob("*"))
        with pytest.raises(ConfigError, match=f"--out .*: {match}"):
            evaluate_run(run, out=out, progress=False)
        assert sorted(out.rglob("*")) == before


def bridge_red(table):
    return int(table["instruction"][0].split()[1]) * 20 % 256


def test_another_mixture_is_refused(mixtures, tmp_path, toys):
    run = make(tmp_path, mixtures / "plain", chunk=2)
    other = tmp_path / "other"
    other.mkdir()
    for file in (mixtures / "plain").iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    statistics = json.loads((other / "dataset_statistics.json").read_text())
    statistics["bridge_dataset"]["action"]["q99"][0] *= 0.9
    (other / "dataset_statistics.json").write_text(json.dumps(statistics))
    manifest = json.loads((other / "manifest.json").read_text())
    sha256 = saved.file_sha256(other / "dataset_statistics.json")
    size = (other / "dataset_statistics.json").stat().st_size
    manifest["outputs"]["dataset_statistics.json"] = {"bytes": size, "sha256": sha256}
    del manifest["checksum"]
    (other / "manifest.json").write_text(json.dumps(seal(manifest)))
    with pytest.raises(DataError, match="its statistics differ from those"):
        evaluate_run(run, data=str(other), progress=False)


def test_a_missing_split_or_mixture_is_refused(mixtures, tmp_path, toys):
    run = make(tmp_path, mixtures / "none")
    with pytest.raises(ConfigError, match="'validation' has no rows"):
        evaluate_run(run, progress=False)
    with pytest.raises(ConfigError, match=r"manifest.json not found"):
        evaluate_run(run, data=str(tmp_path), progress=False)


def test_a_diverged_model_is_reported(mixtures, tmp_path, toys):
    run = make(tmp_path, mixtures / "plain", chunk=2)
    opened = saved.open_saved(run)
    model = toy.ToyFamily.restore(opened.config, opened.spec, opened.weights, torch.device("cpu"))
    toy._save(model, float("nan"), run / "adapter")
    with pytest.raises(DataError, match="not finite"):
        evaluate_run(run, progress=False)
    assert not (run / "evaluation" / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, ["bridge 3"]),
        (3, ["bridge 3", "bridge 2", "kuka 1"]),
        (5, ["bridge 3", "bridge 2", "bridge 5", "kuka 1", "kuka 3"]),
    ],
)
def test_episodes_are_chosen_alike_in_every_release(count, expected):
    ids = {name: [f"{name}/1.0.0/train/00000/{i:05d}" for i in range(n)] for name, n in (("bridge", 6), ("kuka", 4))}
    assert [f"{name} {int(one[-5:])}" for name, one in choose_episodes(ids, count)] == expected
