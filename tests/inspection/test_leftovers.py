"""Joints, second arms and unused columns are found, doubt the rest, and stop filter until somebody answers."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from oxe_curate.errors import ConfigError
from oxe_curate.filter.pipeline import FilterOptions, run_filter
from oxe_curate.inspection import check_dataset, inspect_dataset, write_draft
from oxe_curate.inspection.conventions import Conventions, detect
from oxe_curate.inspection.leftovers import ARMS_QUESTION, JOINT_QUESTION, UNUSED_QUESTION
from oxe_curate.inspection.show import inspected
from oxe_curate.registry.card import read_card
from oxe_curate.rlds.synthetic import write_dataset
from tests.inspection.constructed import Truth, episodes
from tests.inspection.folders import _dict, _image, _tensor
from tests.inspection.jointed import joint_episodes


def found(made: list[dict[str, np.ndarray]]) -> tuple[dict[str, str], Conventions]:
    c = detect(made)
    asked = (JOINT_QUESTION, ARMS_QUESTION, UNUSED_QUESTION)
    return {f.question: f.answer for f in c.findings if f.question in asked}, c


def sure(c: Conventions) -> float:
    kind = c.of("what does action[0:3] mean?")
    assert kind is not None
    return kind.confidence


@pytest.mark.parametrize("deltas", [False, True])
def test_seven_joints_and_a_gripper(deltas: bool) -> None:
    answers, c = found(joint_episodes(np.random.default_rng(0), deltas=deltas))
    assert answers == {JOINT_QUESTION: "joints", UNUSED_QUESTION: "action[6]"}
    assert sure(c) < 0.2
    assert c.findings[0].question == JOINT_QUESTION  # the loudest first
    assert c.findings[0].confidence > 0.9


@pytest.mark.parametrize("state", ["joints", "pose"])
@pytest.mark.parametrize("joints", [6, 7])
def test_two_arms(state: Any, joints: int) -> None:
    answers, c = found(joint_episodes(np.random.default_rng(1), joints=joints, arms=2, state=state))
    assert answers[ARMS_QUESTION] == "two"
    assert answers[UNUSED_QUESTION].startswith("action[")
    assert sure(c) < 0.1


def test_a_state_of_poses_under_joint_commands() -> None:
    for deltas in (False, True):
        answers, c = found(joint_episodes(np.random.default_rng(2), state="pose", deltas=deltas))
        assert answers[UNUSED_QUESTION] == "action[6]"
        assert sure(c) < 0.3


def test_six_joints_and_a_gripper_are_wider_than_a_workspace() -> None:
    answers, c = found(joint_episodes(np.random.default_rng(3), joints=6))
    assert answers == {JOINT_QUESTION: "joints"}
    assert sure(c) < 0.5


def test_seven_joints_without_a_gripper() -> None:
    answers, c = found(joint_episodes(np.random.default_rng(4), gripper=False))
    assert answers[JOINT_QUESTION] == "joints"
    assert sure(c) < 0.2


def end_effector(*extra: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(5)
    made = episodes(Truth(), rng)
    for steps in made:
        more = rng.normal(0, 0.1, (len(steps["action"]), sum(extra))).astype(np.float32)
        steps["action"] = np.hstack([steps["action"], more])
    return made


def test_columns_of_a_mobile_base() -> None:
    answers, c = found(end_effector(3))
    assert answers == {UNUSED_QUESTION: "action[7:10]"}
    assert 0.3 < sure(c) < 0.6
    made = episodes(Truth(), np.random.default_rng(6))
    for steps in made:
        steps["action/base_velocity"] = np.random.default_rng(0).normal(size=(len(steps["action"]), 2))
    named = detect(made).of(UNUSED_QUESTION)
    assert named is not None
    assert named.answer == "action/base_velocity[0:2]"
    assert "by its name, a base" in named.why


def test_arms_that_are_called_left_and_right() -> None:
    made = [
        {
            "action/left_arm": one["action"],
            "action/right_arm": one["action"][::-1],
            "observation/state": one["observation/state"],
        }
        for one in episodes(Truth(), np.random.default_rng(7))
    ]
    assert found(made)[0][ARMS_QUESTION] == "two"


@pytest.mark.parametrize("kind", ["delta", "scaled", "velocity", "absolute"])
@pytest.mark.parametrize("rotation", ["euler", "xyzw", "wxyz"])
def test_end_effectors_raise_no_question(kind: Any, rotation: Any) -> None:
    for seed in range(3):
        made = episodes(Truth(kind=kind, rotation=rotation, follow=0.7, noise=0.001), np.random.default_rng(seed))
        assert found(made)[0] == {}
        for steps in made:
            steps["action/terminate_episode"] = (np.arange(len(steps["action"])) == 3).astype(np.float32)
            steps["action/base"] = np.zeros((len(steps["action"]), 2))
        assert found(made)[0] == {}
    without = [{**steps, "action": steps["action"][:, :6]} for steps in made]
    assert found(without)[0] == {}


def test_the_real_data_raise_no_question(shared: Path) -> None:
    for name in ("bridge_dataset", "metaworld2_small"):
        c = inspect_dataset(shared / "data" / "rlds" / name).conventions
        assert [f for f in c.findings if f.question in (JOINT_QUESTION, ARMS_QUESTION, UNUSED_QUESTION)] == []


def folder(root: Path, made: list[dict[str, np.ndarray]]) -> Path:
    """Write episodes as `root`/arm/1.0.0 with a camera and an instruction."""
    width, state = made[0]["action"].shape[1], made[0]["observation/state"].shape[1]
    features = "tensorflow_datasets.core.features."
    steps = _dict(
        observation=_dict(state=_tensor(state), image=_image()), action=_tensor(width),
        language_instruction=_tensor(dtype="string"),
    )  # fmt: skip
    sequence = {"pythonClassName": f"{features}dataset_feature.Dataset", "sequence": {"feature": steps}}
    structure = {
        "type": f"{features}features_dict.FeaturesDict", "proto_cls": "tensorflow_datasets.FeaturesDict",
        "content": {"features": {"steps": sequence}},
    }  # fmt: skip
    image = np.random.default_rng(0).integers(0, 255, (96, 96, 3), np.uint8)
    written = [
        {
            "steps": {
                "observation": {"state": e["observation/state"], "image": [image] * len(e["action"])},
                "action": e["action"],
                "language_instruction": [b"put the block away"] * len(e["action"]),
            }
        }
        for e in made
    ]
    return write_dataset(root, "arm", "1.0.0", structure, written, shards=1).path


@pytest.mark.parametrize(
    ("made", "questions", "encoding", "arms"),
    [
        (joint_episodes(np.random.default_rng(0)), 2, "JOINT_POS", "single"),
        (joint_episodes(np.random.default_rng(0), joints=6, arms=2, state="pose"), 2, "EEF_POS_BIMANUAL", "bimanual"),
        (end_effector(3), 1, "EEF_POS", "single"),
    ],
    ids=["seven joints", "two arms", "base"],
)
def test_filter_refuses_an_unedited_draft(
    made: list[dict[str, np.ndarray]], questions: int, encoding: str, arms: str, tmp_path: Path
) -> None:
    report = inspect_dataset(folder(tmp_path / "raw", made))
    out = io.StringIO()
    Console(file=out, width=1000).print(inspected(report))
    assert out.getvalue().count("open question: ") == questions == len(report.to_json()["open_questions"])
    (tmp_path / "cards").mkdir()
    path = tmp_path / "cards" / "arm.yaml"
    write_draft(report, path)
    card = read_card(path)
    assert (len(card.open_questions), card.action_encoding, card.arms) == (questions, encoding, arms)
    assert bool(card.recipes) == (encoding == "EEF_POS")
    assert max(map(len, path.read_text().splitlines())) <= 130
    options = FilterOptions(cards=tmp_path / "cards", workers=1, progress=False)
    with pytest.raises(ConfigError) as caught:
        run_filter(tmp_path / "raw", tmp_path / "index", options)
    message = str(caught.value)
    assert message.startswith(f"{path}: open_questions: ")
    assert all(question in message for question in card.open_questions)
    assert "then remove each answered question from open_questions" in message
    verdicts = [c for c in check_dataset(path, tmp_path / "raw").comparisons if c.question.startswith("open question")]
    assert [c.why for c in verdicts] == list(card.open_questions)
    answered = {**yaml.safe_load(path.read_text()), "open_questions": []}
    (tmp_path / "answered").mkdir()  # cards are read once
    (tmp_path / "answered" / "arm.yaml").write_text(yaml.safe_dump(answered))
    options = FilterOptions(cards=tmp_path / "answered", workers=1, progress=False)
    kept = run_filter(tmp_path / "raw", tmp_path / "index", options).summaries["arm"].kept
    assert (kept > 0) == (encoding == "EEF_POS")
