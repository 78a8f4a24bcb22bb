"""Correct cards and wrong cards."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from oxe_curate.errors import ConfigError
from oxe_curate.inspection import check_dataset, draft_card, inspect_dataset
from oxe_curate.inspection.check import Checked, _judge
from oxe_curate.inspection.finding import Finding, unknown
from oxe_curate.inspection.show import checked
from tests.inspection.constructed import Truth
from tests.inspection.folders import write


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("arm"), Truth(gripper="high opens", rotation="xyzw", idle_first=True))


@pytest.fixture(scope="module")
def draft(folder: Path) -> dict:
    return yaml.safe_load(draft_card(inspect_dataset(folder)))


def run(card: dict, folder: Path, tmp_path: Path) -> Checked:
    path = tmp_path / f"{card['name']}.yaml"
    path.write_text(yaml.safe_dump(card))
    return check_dataset(path, folder.parent.parent)


def contradicted(card: dict, folder: Path, tmp_path: Path) -> list[str]:
    return [c.question for c in run(card, folder, tmp_path).contradictions]


def test_a_draft_does_not_contradict_its_own_data(draft: dict, folder: Path, tmp_path: Path) -> None:
    result = run(draft, folder, tmp_path)
    assert result.contradictions == ()
    agreed = {c.question for c in result.comparisons if c.verdict == "agrees"}
    assert {"native action", "xyz of recipe openvla", "gripper of recipe openvla", "first step"} <= agreed
    json.dumps(result.to_json())


def test_the_wrong_gripper_is_found(draft: dict, folder: Path, tmp_path: Path) -> None:
    gripper = [{"src": "action", "cols": [6, 7], "ops": [{"op": "affine", "scale": -1, "offset": 1}]}]
    card = draft | {"recipes": {"openvla": draft["recipes"]["openvla"] | {"gripper": gripper}}}
    assert contradicted(card, folder, tmp_path) == ["gripper of recipe openvla"]


def test_a_gripper_out_of_range_is_found(draft: dict, folder: Path, tmp_path: Path) -> None:
    gripper = [{"src": "action", "cols": [6, 7], "ops": [{"op": "affine", "scale": 2, "offset": -1}]}]
    card = draft | {"recipes": {"openvla": draft["recipes"]["openvla"] | {"gripper": gripper}}}
    assert contradicted(card, folder, tmp_path) == ["gripper range of recipe openvla"]


def test_poses_passed_off_as_displacements_are_found(draft: dict, folder: Path, tmp_path: Path) -> None:
    xyz = [{"src": "action", "cols": [0, 3], "ops": ["delta"]}]
    recipe = draft["recipes"]["openvla"] | {"xyz": xyz, "trim": {"first": 1, "last": 1}}
    card = draft | {"action_encoding": "EEF_POSE", "recipes": {"openvla": recipe}}
    assert "native action" in contradicted(card, folder, tmp_path)


def test_exchanged_cameras_and_encodings_are_found(draft: dict, folder: Path, tmp_path: Path) -> None:
    cameras = {
        "observation/image": {"role": "wrist", "encoding": "png"},
        "observation/image_hand": {"role": "primary", "encoding": "jpeg"},
    }
    found = contradicted(draft | {"cameras": cameras}, folder, tmp_path)
    assert found == [
        "encoding of observation/image", "where is observation/image mounted?",
        "where is observation/image_hand mounted?",
    ]  # fmt: skip


def test_missing_and_unlisted_cameras_are_found(draft: dict, folder: Path, tmp_path: Path) -> None:
    cameras = {"observation/image": {"role": "primary"}, "observation/image_9": {"role": "extra"}}
    result = run(draft | {"cameras": cameras}, folder, tmp_path)
    assert [(c.question, c.data) for c in result.contradictions] == [
        ("does the card match features.json?", "missing"),
        ("camera observation/image_hand", "present"),
    ]


def test_a_recipe_beyond_the_feature_is_found_and_not_run(draft: dict, folder: Path, tmp_path: Path) -> None:
    xyz = [{"src": "action", "cols": [6, 9]}]
    card = draft | {"recipes": {"openvla": draft["recipes"]["openvla"] | {"xyz": xyz}}}
    result = run(card, folder, tmp_path)
    assert "reaches beyond 'action'" in result.contradictions[0].why
    assert not any("of recipe" in c.question for c in result.comparisons)


def test_texts_that_are_empty_or_of_another_kind_are_found(draft: dict, folder: Path, tmp_path: Path) -> None:
    assert contradicted(draft | {"language": {"keys": ["observation/note"]}}, folder, tmp_path) == [
        "where is the instruction?"
    ]
    language = {"keys": ["codes"], "kind": "string"}
    assert contradicted(draft | {"language": language}, folder, tmp_path)[0] == "text encoding"


def test_an_episode_filter_on_a_missing_flag_is_found(draft: dict, folder: Path, tmp_path: Path) -> None:
    filters = [{"field": "good", "equals": True}, {"field": "success", "equals": True}]
    assert contradicted(draft | {"episode_filters": filters}, folder, tmp_path) == ["episode filter good"]


def test_weak_findings_never_contradict() -> None:
    assert _judge("q", "rgb", Finding("", "bgr", 0.35, ""), False).verdict == "undecided"
    assert _judge("q", "rgb", Finding("", "bgr", 0.6, ""), False).verdict == "contradicts"
    assert _judge("q", "rgb", Finding("", "rgb", 0.6, ""), True).verdict == "agrees"
    assert _judge("q", "rgb", unknown("", ""), True).verdict == "undecided"


def test_the_table_counts_contradictions(draft: dict, folder: Path, tmp_path: Path) -> None:
    result = run(draft, folder, tmp_path)
    out = io.StringIO()
    Console(file=out, width=120).print(checked(result))
    assert "0 contradictions" in out.getvalue()
    wrong = replace(result.comparisons[0], verdict="contradicts")
    out = io.StringIO()
    Console(file=out, width=120).print(checked(replace(result, comparisons=(wrong,))))
    assert "1 contradiction," in out.getvalue()


def test_a_card_without_its_data_set_names_the_closest(draft: dict, folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "two", Truth(), 2)
    (tmp_path / "two" / "other").mkdir()
    for file in (tmp_path / "two" / "arm").rglob("*.*"):
        if file.is_file():
            target = tmp_path / "two" / "brm" / "1.0.0" / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    with pytest.raises(ConfigError, match="contains no data set for card 'bridge_orig'"):
        check_dataset("bridge_orig", tmp_path / "two")
    with pytest.raises(ConfigError, match="no recipe 'openvl'"):
        check_dataset("bridge_orig", folder, recipe="openvl")


def test_the_real_bridge_shard_agrees_with_its_card(shared: Path) -> None:
    result = check_dataset("bridge_orig", shared / "data" / "rlds")
    assert result.contradictions == ()
    verdicts = {c.question: c.verdict for c in result.comparisons}
    for question in (
        "native action",
        "gripper of recipe openvla",
        "where is observation/image_0 mounted?",
        "first step",
    ):
        assert verdicts[question] == "agrees"
    assert verdicts["size of observation/image_0"] == "undecided"  # a copy of 64 x 64
    assert verdicts["does observation/image_3 show an image?"] == "undecided"
