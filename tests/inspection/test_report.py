"""A data set on disk -> report, draft card, contact sheet, tables."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from oxe_curate.errors import ConfigError, CorruptError
from oxe_curate.inspection import Inspection, draft_card, inspect_dataset, write_draft
from oxe_curate.inspection import report as reports
from oxe_curate.inspection import sample as samples
from oxe_curate.inspection.draft import gripper_operations, nominal
from oxe_curate.inspection.finding import Finding
from oxe_curate.inspection.sheet import contact_sheet, png
from oxe_curate.inspection.show import inspected
from oxe_curate.registry.card import DatasetCard, read_card
from oxe_curate.rlds.dataset import Shard
from oxe_curate.rlds.synthetic import write_dataset
from tests.inspection.constructed import Truth
from tests.inspection.folders import write


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("arm"), Truth("scaled", gripper="high closes", form="-1..1", idle_first=True))


@pytest.fixture(scope="module")
def report(folder: Path) -> Inspection:
    return inspect_dataset(folder)


def card_of(report: Inspection, tmp_path: Path) -> DatasetCard:
    path = tmp_path / "arm.yaml"
    path.write_text(draft_card(report))
    return read_card(path)


def shown(report: Inspection, width: int = 140) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(inspected(report))
    return out.getvalue()


def test_the_report_of_a_constructed_data_set(report: Inspection) -> None:
    assert (report.name, report.version, len(report.read)) == ("arm", "1.0.0", 8)
    assert report.splits == {"train": {"episodes": 8, "shards": 3}}
    assert [(c.key, c.encoding, c.shape) for c in report.cameras] == [
        ("observation/image", "jpeg", (96, 96, 3)),
        ("observation/image_hand", "jpeg", (96, 96, 3)),
    ]
    assert report.flags["episode_metadata/success"] == pytest.approx(7 / 8)
    assert report.metadata["episode_metadata/quality"] == "text"
    assert min(report.lengths) >= 28
    c = report.conventions
    assert [str(x) for x in (c.position, c.rotation, c.gripper)] == ["action[0:3]", "action[3:6]", "action[6]"]
    assert [str(x) for x in (c.state_position, c.state_rotation, c.aperture)] == [
        "observation/state[0:3]",
        "observation/state[3:6]",
        "observation/state[6]",
    ]


def test_the_cameras_of_a_constructed_data_set(report: Inspection) -> None:
    answers = {f.question: f.answer for f in report.findings}
    assert answers["is observation/image a wrist camera?"] == "third-person"
    assert answers["is observation/image_hand a wrist camera?"] == "wrist"


def test_a_flag_that_contradicts_the_frames(report: Inspection) -> None:
    answers = {f.question: f.answer for f in report.findings}
    assert answers["does episode_metadata/has_image match the frames?"] == "yes"
    assert answers["does episode_metadata/has_image_hand match the frames?"] == "no"


def test_texts_as_strings_and_code_points(report: Inspection) -> None:
    texts = {t.key: t for t in report.texts}
    assert report.texts[0].key == "language_instruction"
    assert (texts["language_instruction"].distinct, texts["language_instruction"].empty) == (3, 0)
    assert texts["codes"].kind == "codepoints"
    assert set(texts["codes"].samples) == set(texts["language_instruction"].samples)
    assert (texts["observation/note"].distinct, texts["observation/note"].empty) == (0, 1)


def test_quality_is_never_read(report: Inspection) -> None:
    assert "never read" not in json.dumps(report.to_json())
    assert "never read" not in shown(report) + draft_card(report)


def test_the_draft_standardizes_the_actions(report: Inspection, tmp_path: Path) -> None:
    card = card_of(report, tmp_path)
    assert card.action_encoding == "EEF_POS"
    assert {k: c.role for k, c in card.cameras.items()} == {
        "observation/image": "primary",
        "observation/image_hand": "wrist",
    }
    assert card.language.keys == ("language_instruction",)
    assert card.success_key == "episode_metadata/success"
    steps = report.sample.episodes[0]
    trajectory = card.standardize(steps)
    assert trajectory.frame_index[0] == 1  # the idle first step is gone
    moved = np.diff(steps["observation/state"][:, :3], axis=0)[1:]
    assert np.abs(trajectory.action[:-1, :3] - moved).max() < 1e-4
    turned = np.diff(steps["observation/state"][:, 3:6], axis=0)[1:]
    assert np.abs(trajectory.action[:-1, 3:6] - turned).max() < 1e-4
    assert set(trajectory.action[:, 6]) == {0.0, 1.0}
    opened = steps["observation/state"][1:, 6] > 0.9
    assert (trajectory.action[opened, 6] == 1).mean() > 0.9


def test_a_draft_gives_its_confidence(report: Inspection) -> None:
    text = draft_card(report)
    assert "TODO" in text
    assert "# 0.9" in text
    assert "scaled to the state's units: gain 0.01002, rounded to 0.01" in text
    assert all(len(line) <= 130 for line in text.splitlines())


def test_a_renamed_draft_keeps_the_data_set_name_as_an_alias(report: Inspection, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    write_draft(report, path)
    assert read_card(path).aliases == ("arm",)
    with pytest.raises(ConfigError, match="already exists"):
        write_draft(report, path)
    with pytest.raises(ConfigError, match=r"end in \.yaml"):
        write_draft(report, tmp_path / "mine.txt")


@pytest.mark.parametrize(
    ("truth", "encoding"),
    [
        (Truth("absolute", gripper="high opens"), "EEF_POSE"),
        (Truth("absolute", rotation="wxyz", aperture="low"), "EEF_POSE"),
        (Truth("delta", angles="degrees", form="relative"), "EEF_POS"),
    ],
)
def test_drafts_of_other_conventions(truth: Truth, encoding: str, tmp_path: Path) -> None:
    report = inspect_dataset(write(tmp_path, truth))
    card = card_of(report, tmp_path)
    assert card.action_encoding == encoding
    steps = report.sample.episodes[0]
    action = card.standardize(steps).action
    moved = np.diff(steps["observation/state"][:, :3], axis=0)
    if encoding == "EEF_POSE":  # the command is one step ahead of the state
        assert np.abs(action[:-1, :3] - moved[1:][: len(action) - 1]).max() < 1e-5
    else:
        assert np.abs(action[:-1, :3] - moved[: len(action) - 1]).max() < 1e-5
    assert np.abs(action[:, 3:6]).max() < 1.0  # radians per step
    assert set(action[:, 6]) <= {0.0, 1.0}


def test_an_unknown_recipe_is_commented_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    folder = write(tmp_path, Truth())
    report = inspect_dataset(folder)
    steps = [{**s, "action": rng.normal(size=s["action"].shape).astype(np.float32)} for s in report.sample.episodes]
    conventions = reports.detect(steps)
    kind = conventions.of("what does")
    assert kind is not None
    assert not kind.known
    text = draft_card(reports.Inspection(**{**_fields(report), "conventions": conventions}))
    assert "action_encoding: UNKNOWN" in text
    assert "# recipes:" in text
    assert "\nrecipes:" not in text


def _fields(report: Inspection) -> dict[str, object]:
    return {name: getattr(report, name) for name in report.__dataclass_fields__}


def test_nominal_gains() -> None:
    assert [nominal(g) for g in (0.0086, 0.98, 0.05, 0.00013)] == [0.01, 1.0, None, None]


@pytest.mark.parametrize(
    ("form", "low", "high", "closes", "expected"),
    [
        ("0..1", 0, 1, False, [0, 1]),
        ("0..1", 0, 1, True, [1, 0]),
        ("-1..1", -1, 1, True, [1, 0]),
        ("-1..1", -1, 0, True, [1, 0.5]),
        ("level", 0, 0.08, False, [0, 1]),
        ("level", 0, 0.08, True, [1, 0]),
    ],
)
def test_gripper_operations_give_1_for_open(
    form: str, low: float, high: float, closes: bool, expected: list[float]
) -> None:
    from oxe_curate.config import build, parse_yaml
    from oxe_curate.registry.recipe import Piece

    sign = Finding("", "high closes" if closes else "high opens", 0.9, "")
    operations = gripper_operations(Finding("", form, 0.9, "", {"min": low, "max": high}), sign)
    piece = build(Piece, parse_yaml(f"{{src: action, ops: [{', '.join(operations)}]}}", "test"), "test")
    x = np.array([[low], [high]], np.float32)
    for operation in piece.ops:
        x = operation.spec.function(x, **operation.parameters)
    assert x.ravel().tolist() == pytest.approx(expected, abs=1e-5)


def test_ranges_ignore_values_that_are_not_finite() -> None:
    r = reports.range_of(np.array([1.0, np.nan, 3.0, np.inf]))
    assert (r.low, r.high, r.mean, r.constant, r.not_finite) == (1, 3, 2, False, 2)
    assert reports.range_of(np.array([np.nan])).not_finite == 1


def test_code_points_are_not_counters() -> None:
    text = np.array([[104, 105, 32, 116, 111, 0, 0, 0]], np.int32)
    assert reports.looks_like_text([text])
    assert not reports.looks_like_text([np.arange(8, dtype=np.int32)[None]])
    assert not reports.looks_like_text([-text])
    assert not reports.looks_like_text([np.roll(text, 3, axis=1)])


def test_tables_show_everything(report: Inspection) -> None:
    text = shown(report)
    for expected in (
        "observation/image_hand",
        "third-person",
        "scaled delta",
        "high closes",
        "put block 1 away",
        "88 %",
    ):
        assert expected in text


def test_the_contact_sheet_contains_every_camera(report: Inspection) -> None:
    sheet = contact_sheet(report.sample, episodes=2, across=4)
    assert sheet.shape[0] > 4 * 160
    assert sheet.shape[1] >= 4 * 160
    decoded = np.asarray(Image.open(io.BytesIO(png(sheet))))
    assert (decoded == sheet).all()


def test_records_are_spread_over_shards_and_drawn_by_seed() -> None:
    shards = [Shard("d", "1", "train", i, 4, f"s{i}", 0, 10, 10) for i in range(4)]
    drawn = samples.draw_sample(shards, 6, 0)
    assert sorted(len(records) for _, records in drawn) == [1, 1, 2, 2]
    assert drawn == samples.draw_sample(shards, 6, 0)
    assert drawn != samples.draw_sample(shards, 6, 1)
    assert sum(len(records) for _, records in samples.draw_sample(shards, 99, 0)) == 40
    part = Shard("d", "1", "train", 0, 1, "s", 5, 2, 10)
    assert samples.draw_sample([part], 9, 0) == [(part, [5, 6])]


def test_more_than_one_data_set_is_an_error(folder: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path, "a", "1.0.0", folder / "features.json", 1)
    write_dataset(tmp_path, "b", "1.0.0", folder / "features.json", 1)
    with pytest.raises(ConfigError, match="contains 2 data sets"):
        inspect_dataset(tmp_path)
    with pytest.raises(ConfigError, match="must be at least 1"):
        inspect_dataset(tmp_path / "a", episodes=0)


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path, Truth(), 3)
    shard = sorted(folder.glob("*.tfrecord*"))[1]
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(CorruptError, match=shard.name):
        inspect_dataset(folder)


@pytest.mark.parametrize("name", ["taco_play", "kuka", "language_table", "droid", "fmb", "aloha_mobile", "robot_vqa"])
def test_every_structure_can_be_inspected(name: str, shared: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path, name, "0.1.0", shared / "oxe" / "features" / f"{name}.json", 3)
    report = inspect_dataset(tmp_path / name)
    path = tmp_path / f"{name}.yaml"
    path.write_text(draft_card(report))
    assert read_card(path).name == name
    assert shown(report)
    json.dumps(report.to_json())


def test_the_real_bridge_shard(shared: Path, tmp_path: Path) -> None:
    report = inspect_dataset(shared / "data" / "rlds" / "bridge_dataset")
    answers = {f.question: f.answer for f in report.findings}
    assert answers["what does action[0:3] mean?"] == "delta"
    assert answers["what does action[3:6] mean?"] == "delta"
    assert answers["is observation/state[3:6] in radians or degrees?"] == "radians"
    assert answers["does a high action[6] open or close the gripper?"] == "high opens"
    assert answers["how does action[6] command the gripper?"] == "0..1"
    assert answers["is the first step idle?"] == "yes"
    assert [answers[f"is observation/image_{i} a wrist camera?"] for i in range(4)] == ["third-person"] * 3 + [
        "unknown"
    ]
    assert answers["does episode_metadata/has_image_0 match the frames?"] == "no"
    assert answers["does episode_metadata/has_image_3 match the frames?"] == "yes"
    assert {c.key: c.black for c in report.cameras}["observation/image_3"] == 1.0
    card = DatasetCard
    path = tmp_path / "bridge_dataset.yaml"
    path.write_text(draft_card(report))
    card = read_card(path)
    assert (card.verdict, card.recipe().trim.first) == ("pass", 1)


def test_the_real_metaworld_data(shared: Path, tmp_path: Path) -> None:
    report = inspect_dataset(shared / "data" / "rlds" / "metaworld2_small")
    answers = {f.question: f for f in report.findings}
    kind = answers["what does action[0:3] mean?"]
    assert kind.answer == "scaled delta"
    assert nominal(kind.evidence["gain"]) == 0.01  # centimetres
    assert answers["what does action[3:6] mean?"].answer == "constant"
    assert answers["does a high action[6] open or close the gripper?"].answer == "high closes"
    assert answers["how does action[6] command the gripper?"].confidence < 0.5  # +1 never occurs
    assert answers["is observation/image a wrist camera?"].answer == "third-person"
    assert str(report.conventions.aperture) == "observation/state[7]"
    assert report.metadata["episode_metadata/quality"] == "text"
    path = tmp_path / "metaworld2_small.yaml"
    path.write_text(draft_card(report))
    card = read_card(path)
    action = card.standardize(report.sample.episodes[0]).action
    moved = np.linalg.norm(np.diff(report.sample.episodes[0]["observation/state"][:, :3], axis=0), axis=1).sum()
    asked = np.linalg.norm(action[:, :3], axis=1).sum()
    assert 0.6 < moved / asked < 1.1  # metres
