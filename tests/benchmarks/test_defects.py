import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg

from benchmarks import defects, defects_cost, defects_metaworld
from benchmarks.defects_episode import decode, read_episodes, write_episodes
from benchmarks.defects_judge import Judgement, judged
from benchmarks.defects_kinds import KINDS, Scene, plant
from benchmarks.defects_sources import Clean, Columns, Parts, Source
from benchmarks.defects_states import observed
from benchmarks.defects_table import Trial, markdown, recalls
from oxe_curate.rlds.encode import encode_example, flatten_episode
from oxe_curate.rlds.synthetic import write_dataset

STATE, ACTION = "steps/observation/state", "steps/action"
PARTS = Parts(
    position=Columns(STATE, 0, 3),
    angles=Columns(STATE, 3, 6),
    aperture=Columns(STATE, 7, 8),
    xyz=Columns(ACTION, 0, 3),
    rpy=Columns(ACTION, 3, 6),
    gripper=Columns(ACTION, 6, 7),
    gripper_range=(-1, 1),
    text="steps/language_instruction",
    cameras=("steps/observation/image", "steps/observation/image_wrist"),
    success="episode_metadata/success",
)
TEXTS = ("open the drawer", "push a cup left", "lift that green block", "press button")


def frame(step, shade):
    pixels = np.full((40, 40, 3), shade, np.uint8)
    pixels[5:20, step : step + 12] = (250, 30, 10)
    return simplejpeg.encode_jpeg(pixels, colorsubsampling="420")


def toy(number, steps=24):
    rng = np.random.default_rng(number)
    state = np.cumsum(rng.normal(0, 0.01, (steps, 8)), axis=0)
    state[:, 7] = np.arange(steps) < steps // 2
    action = np.zeros((steps, 7))
    action[:-1, :6] = np.diff(state[:, :6], axis=0)
    action[:, 6] = np.where(np.arange(steps) < steps // 2 - 1, -1, 1)
    last = np.arange(steps) == steps - 1
    return {
        "steps": {
            "observation": {
                "image": [frame(step, 60 + 20 * number) for step in range(steps)],
                "image_wrist": [frame(steps - step, 200) for step in range(steps)],
                "state": state.astype(np.float32),
            },
            "action": action.astype(np.float32),
            "language_instruction": [TEXTS[number % 4]] * steps,
            "is_first": np.arange(steps) == 0,
            "is_last": last,
            "is_terminal": last,
            "reward": last.astype(np.float32),
            "discount": np.ones(steps, np.float32),
        },
        "episode_metadata": {"success": True, "task": "toy"},
    }


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Clean:
    root = tmp_path_factory.mktemp("toy")
    structure = defects_metaworld.structure()
    made = write_dataset(root, "toy", "1.0.0", structure.to_json(), [toy(0)], shards=1)
    # numbers stored one by one, as no writer here does: records that are written again have other bytes
    records = [encode_example(flatten_episode(structure, toy(number)), packed=False) for number in range(8)]
    write_episodes(made.path, made.path, {"train": records})
    source = Source("toy", "toy", "1.0.0", PARTS, lambda _: made.path)
    return Clean(source, made.path, tuple(read_episodes(made.path)))


FOREIGN = [[frame(step, 5) for step in range(10)]]


def allowed(kind, episode):
    """Names in the record that the kind may change."""
    names = set()
    for touched in kind.touches:
        if touched == "camera":
            names.add(PARTS.cameras[0])
        elif touched == "camera2":
            names.add(PARTS.cameras[1])
        elif touched == "observed":
            names |= set(observed(episode))
        elif touched == "steps":
            names |= set(episode.step_names)
        elif touched == "embedding":
            names |= set(PARTS.embedding)
        else:
            part = getattr(PARTS, touched)
            names.add(part.name if isinstance(part, Columns) else part)
    return names


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_a_kind_changes_what_it_says_and_nothing_else(clean, kind, tmp_path):
    planted = plant(clean, kind, FOREIGN)
    assert planted.reason == ""
    assert len(planted.spoiled) == 3
    write_episodes(clean.folder, tmp_path / "toy" / "1.0.0", planted.splits)
    for split, expected in planted.splits.items():
        found = read_episodes(tmp_path / "toy" / "1.0.0", split)
        assert len(found) == len(expected)
        for number, episode in enumerate(found):
            origin = planted.spoiled.get((split, number))
            if origin is None:
                assert episode.record == clean.episodes[number].record
                continue
            before = clean.episodes[origin]
            if kind.copies:
                assert ("train", origin) in planted.originals
                continue
            assert episode.record != before.record
            changed = {name for name in before.values if not same(before.values[name], episode.values[name])}
            assert changed
            assert changed <= allowed(kind, before)
            other_columns_are_kept(kind, before, episode)


def same(one, two):
    return np.array_equal(one, two, equal_nan=one.dtype.kind == "f") if isinstance(one, np.ndarray) else one == two


def other_columns_are_kept(kind, before, after):
    parts = [getattr(PARTS, name, None) for name in kind.touches]
    if "steps" in kind.touches or "observed" in kind.touches:
        return
    for name in (STATE, ACTION):
        kept = np.ones(before.values[name].shape[1], bool)
        for part in parts:
            if isinstance(part, Columns) and part.name == name:
                kept[part.start : part.stop] = False
        assert np.array_equal(before.values[name][:, kept], after.values[name][:, kept])


def scene(clean, seed=0):
    return Scene(clean.episodes[0], PARTS, clean.episodes[1:], FOREIGN, np.random.default_rng(seed))


def test_a_flipped_axis_is_one_column_with_the_other_sign(clean):
    before, after = clean.episodes[0].values[ACTION], KINDS["action_sign"].plant(scene(clean)).values[ACTION]
    flipped = [axis for axis in range(7) if not np.array_equal(before[:, axis], after[:, axis])]
    assert len(flipped) == 1
    assert np.array_equal(before[:, flipped], -after[:, flipped])


def test_an_idle_head_holds_still_and_ends_like_the_episode(clean):
    before, after = clean.episodes[0], KINDS["idle_head"].plant(scene(clean))
    count = after.steps - before.steps
    assert count >= 8
    assert np.all(after.values[ACTION][:count, :6] == 0)
    assert np.abs(after.values[STATE][:count, :3] - before.values[STATE][0, :3]).max() < 1e-3
    assert np.array_equal(after.values[ACTION][count:], before.values[ACTION])
    frames = after.values[PARTS.cameras[0]][:count]
    assert len(set(frames)) == count  # a camera that goes on
    assert np.abs(decode(frames[0]).astype(int) - decode(before.values[PARTS.cameras[0]][0])).mean() < 5


@pytest.mark.parametrize("name", ["cut_truncated", "idle_tail", "time_reversed", "time_joined"])
def test_the_flags_of_first_and_last_steps_fit_the_new_steps(clean, name):
    after = KINDS[name].plant(scene(clean))
    assert np.flatnonzero(after.values["steps/is_first"]).tolist() == [0]
    assert np.flatnonzero(after.values["steps/is_last"]).tolist() == [after.steps - 1]


def test_a_noisy_copy_is_near_its_original(clean):
    before, after = clean.episodes[0], KINDS["duplicate_noisy"].plant(scene(clean))
    difference = np.abs(before.values[STATE] - after.values[STATE]).max(axis=0)
    assert np.all(difference[:3] > 0)
    assert np.all(difference <= 0.05 * np.ptp(before.values[STATE], axis=0) + 1e-9)


def test_a_kind_that_the_card_cannot_show_is_not_planted(clean):
    bare = Parts(position=PARTS.position, text=PARTS.text, cameras=PARTS.cameras[:1])
    few = Clean(Source("bare", "toy", "1.0.0", bare, lambda _: None), clean.folder, clean.episodes)
    reasons = {name: plant(few, kind, FOREIGN).reason for name, kind in KINDS.items()}
    assert reasons["action_sign"] == "the card reads no displacement from the action"
    assert reasons["image_other_camera"] == "it has one camera"
    assert reasons["text_empty"] == ""


def test_judged_reads_reasons_copies_and_marks(tmp_path):
    rows = {
        "episode_id": ["toy/1.0.0/train/00000/00003", "toy/1.0.0/val/00000/00000"],
        "reason": ["idle", None],
        "duplicate_of": [None, "toy/1.0.0/train/00000/00001"],
        "marks": [[], [{"criterion": "spike", "value": 3.0}]],
    }
    (tmp_path / "toy").mkdir()
    pq.write_table(pa.table(rows), tmp_path / "toy" / "train-00000-of-00001.parquet")
    assert judged(tmp_path) == {
        ("train", 3): Judgement("idle", frozenset()),
        ("val", 0): Judgement(None, frozenset({"duplicate", "spike"})),
    }


def test_what_filter_said_before_does_not_count(clean):
    planted = plant(clean, KINDS["action_sign"], FOREIGN)
    before = {("train", number): Judgement(None, frozenset({"pause"})) for number in range(8)}
    first, second, third = planted.spoiled
    after = before | {first: Judgement("sign", frozenset({"pause", "sign"})), second: before[second]}
    del after[third]  # its record cannot be read
    trial = Trial("toy", "action_sign")
    defects.count(trial, "strict", planted, after, before)
    assert (trial.planted, trial.marked["strict"], trial.dropped["strict"]) == (3, 2, 2)
    assert trial.by["strict"] == {"sign": 1, "unreadable": 1}
    assert (trial.clean, trial.alarms["strict"], trial.losses["strict"]) == (5, 5, 0)
    assert recalls([trial], "strict") == {"action_sign": 2 / 3}


def test_the_report_of_the_real_shard(shared: Path, tmp_path, capsys):
    options = ["--sources", "bridge", "--kinds", "^(duplicate_exact|cut_two_steps|cut_aborted)$"]
    defects.main(["--folder", str(tmp_path), "--shared", str(shared), *options, "--out", str(tmp_path / "out")])
    capsys.readouterr()
    found = json.loads((tmp_path / "out" / "defects.json").read_text())
    trials = {(t["source"], t["kind"]): t for t in found["trials"]}
    assert trials["bridge", ""]["clean"] == 25
    copies = trials["bridge", "duplicate_exact"]
    assert (copies["planted"], copies["marked"]["default"], copies["dropped"]["strict"]) == (4, 4, 4)
    assert copies["clean"] == 21
    assert trials["bridge", "cut_aborted"]["skipped"] == "its episodes are pieces of demonstrations"
    text = (tmp_path / "out" / "defects.md").read_text()
    assert "| duplicate_exact: the same episode once more | 4 | 4 | 0 | 4 | 4 | 1.00 | duplicate 4 |" in text


def test_a_report_without_findings_says_so():
    trial = Trial("toy", "text_empty", 3, 5, {"default": 0, "strict": 0}, {"default": 0, "strict": 0})
    trial.by = trial.alarms_by = {"default": {}, "strict": {}}
    trial.alarms = trial.losses = {"default": 0, "strict": 0}
    text = markdown([trial], {"text_empty": "no text"}, {"commit": "x", "look": 0, "seconds": 1, "missing": []})
    assert "kinds that strict drops with recall 0.9 (0 of 1)" in text


def test_the_cost_is_compared_in_turn(shared: Path, tmp_path):
    source = shared / "data" / "rlds" / "bridge_dataset"
    chosen = defects_cost.contenders(None, look=0)
    assert [contender.name for contender in chosen] == ["off", "default", "strict"]
    runs = defects_cost.measure_all(chosen[:2], source, tmp_path, rounds=1, workers=1)
    assert [run.result["seen"] for found in runs.values() for run in found] == [50, 50]
    assert defects_cost.table(runs).splitlines()[2].startswith("| off | ")


@pytest.mark.parametrize("by", [3, -3])
def test_a_shifted_camera_shows_other_steps_and_repeats_none(clean, by):
    before, camera = clean.episodes[0], PARTS.cameras[0]
    after = scene(clean).shifted([camera], by)
    assert after.steps == before.steps - 3
    assert len(set(after.values[camera])) == after.steps
    row = [step.tobytes() for step in before.values[STATE]].index(after.values[STATE][0].tobytes())
    assert before.values[camera].index(after.values[camera][0]) == row - by
