"""How often the detectors are right: on constructed conventions, on numbers without any, and on the drawn demo data."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from oxe_curate.demo import DATASETS
from oxe_curate.demo.structure import features_json
from oxe_curate.inspection import check_dataset, inspect_dataset
from oxe_curate.inspection.conventions import detect
from oxe_curate.rlds.synthetic import write_dataset
from tests.inspection.constructed import Truth, episodes

WIDTHS = {"action": 7, "observation/state": 8}


def draw(rng: np.random.Generator) -> Truth:
    def one(*choices: object) -> object:
        return choices[rng.integers(len(choices))]

    return Truth(
        kind=one("delta", "scaled", "velocity", "absolute"), unit=one(0.01, 0.001), hz=one(3, 5, 10, 20),
        follow=one(1.0, 0.7, 0.4), noise=one(0.0, 0.0005, 0.002), rotation=one("euler", "xyzw", "wxyz"),
        angles=one("radians", "degrees"), down=one(True, False), gripper=one("high opens", "high closes"),
        form=one("0..1", "-1..1", "relative"), aperture=one("high", "low", "none"), idle_first=one(True, False),
    )  # type: ignore[arg-type]  # fmt: skip


def score(truth: Truth, rng: np.random.Generator, count: int) -> dict[str, bool]:
    c = detect(episodes(truth, rng, count), truth.hz)

    def answers(question: str, answer: str) -> bool:
        finding = c.of(question)
        return finding is not None and finding.answer == answer

    kind = {"scaled": "scaled delta"}.get(truth.kind, truth.kind)
    found = {
        "columns": str(c.position) == "action[0:3]" and str(c.state_position) == "observation/state[0:3]",
        "gripper column": str(c.gripper) == "action[6]",
        "kind": answers("what does action[0:3]", kind),
        "form": answers("how does action[6]", truth.form),
        "polarity": answers("does a high action[6]", truth.gripper),
        "idle": answers("is the first step idle", "yes" if truth.idle_first else "no"),
    }
    if truth.rotation != "euler" and truth.kind != "absolute":  # an action of Euler angles does not determine the order
        found["quaternion order"] = answers("in which order is the quaternion observation/state", truth.rotation)
    elif truth.rotation == "euler":
        found["unit"] = answers("is observation/state[3:6] in radians", truth.angles)
    return found


@pytest.mark.parametrize("count", [4, 8])
def test_constructed_conventions(count: int) -> None:
    rng = np.random.default_rng(count)
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for _ in range(10):
        for question, hit in score(draw(rng), rng, count).items():
            right[question] += hit
            asked[question] += 1
    rates = {question: right[question] / asked[question] for question in asked}
    assert min(rates.values()) >= 0.9, rates


def test_numbers_without_any_convention_are_seldom_given_one() -> None:
    rng = np.random.default_rng(0)
    sure = 0
    for _ in range(8):
        walks = [
            {key: np.cumsum(rng.normal(size=(20, width)), axis=0) for key, width in WIDTHS.items()} for _ in range(6)
        ]
        kind = detect(walks).of("what does action[0:3]")
        sure += kind is not None and kind.confidence >= 0.5
    assert sure <= 1


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few episodes of each; all the demo's take ten seconds to draw."""
    root = tmp_path_factory.mktemp("demo")
    for d in DATASETS:
        made = [d.make(index, np.random.default_rng(index)) for index in range(6)]
        write_dataset(root, d.name, d.version, features_json(d.name), made, shards=2)
    return root


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "bridge_dataset",
            {
                "what does action[0:3] mean?": "delta",
                "what does action[3:6] mean?": "delta",
                "does a high action[6] open or close the gripper?": "high opens",
                "is the first step idle?": "yes",
                "is observation/image_0 a wrist camera?": "third-person",
            },
        ),
        (
            "fractal20220817_data",
            {
                "what does action/world_vector[0:3] mean?": "delta",
                "what does action/rotation_delta[0:3] mean?": "delta",
                "in which order is the quaternion observation/base_pose_tool_reached[3:7] stored?": "xyzw",
                "how does action/gripper_closedness_action[0] command the gripper?": "relative",
                "does a high action/gripper_closedness_action[0] open or close the gripper?": "high closes",
                "is observation/image a wrist camera?": "third-person",
            },
        ),
        (
            "jaco_play",
            {
                "what does action/world_vector[0:3] mean?": "delta",
                "how does action/gripper_closedness_action[0] command the gripper?": "relative",
                "does a high action/gripper_closedness_action[0] open or close the gripper?": "high closes",
                "is observation/image a wrist camera?": "third-person",
                "is observation/image_wrist a wrist camera?": "wrist",
            },
        ),
        (
            "nyu_door_opening_surprising_effectiveness",
            {
                "does a high action/gripper_closedness_action[0] open or close the gripper?": "high closes",
                "is observation/image a wrist camera?": "wrist",
            },
        ),
    ],
)
def test_the_drawn_demo_data(name: str, expected: dict[str, str], demo: Path) -> None:
    answers = {f.question: f.answer for f in inspect_dataset(demo / name).findings}
    assert {question: answers[question] for question in expected} == expected
    assert check_dataset(name, demo).contradictions == ()
