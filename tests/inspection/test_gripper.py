"""Form, polarity and aperture of grippers."""

import numpy as np
import pytest

from oxe_curate.inspection import gripper
from oxe_curate.inspection.series import Columns
from tests.inspection.constructed import Truth, episodes

COMMAND = Columns("action", 6, 7)
STATE = Columns("observation/state", 0, 7)
POSE = [Columns("observation/state", 0, 6)]


def one(values: list[float], key: str = "action") -> list[dict[str, np.ndarray]]:
    return [{key: np.array(values, np.float32)}]


@pytest.mark.parametrize(
    ("values", "answer"),
    [
        ([1, 1, 0, 0.4, 0, 1], "0..1"),
        ([-1, -1, 1, 1, -1], "-1..1"),
        ([0, 0, 0, 0, 0, 1, 0, 0, 0, 0, -1, 0, 0], "relative"),
        ([0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0], "relative"),
        ([0, 0.02, 0.08, 0.08], "level"),
        ([1, 1, 1], "constant"),
    ],
)
def test_the_form_of_a_command(values: list[float], answer: str) -> None:
    assert gripper.command_form(one(values), Columns("action", 0, 1)).answer == answer


def test_half_of_a_symmetric_range_has_low_confidence() -> None:
    finding = gripper.command_form(one([-1, -1, 0, 0]), Columns("action", 0, 1))
    assert finding.answer == "-1..1"
    assert finding.confidence < 0.5


@pytest.mark.parametrize("aperture", ["high", "low"])
@pytest.mark.parametrize("sign", ["high opens", "high closes"])
@pytest.mark.parametrize("form", ["0..1", "-1..1", "relative"])
def test_polarity_both_ways(aperture: str, sign: str, form: str) -> None:
    found = episodes(Truth(gripper=sign, aperture=aperture, form=form), np.random.default_rng(0), 12)  # type: ignore[arg-type]
    relative = form == "relative"
    follows = gripper.find_aperture(found, COMMAND, [STATE], POSE, relative=relative)
    assert follows is not None
    assert str(follows.state) == "observation/state[6]"
    finding = gripper.polarity(found, COMMAND, follows, relative=relative)
    assert finding.answer == sign
    assert finding.confidence > 0.6


def test_fingers_that_stop_at_objects_outweigh_how_episodes_begin() -> None:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(8):
        held = rng.uniform(0.2, 0.5)
        found.append({"w": np.repeat([held, 1.0, held, 1.0], 6)})
    sense = gripper.aperture_sense(found, Columns("w", 0, 1))
    assert sense.answer == "high"
    assert sense.confidence < 0.7
    assert "begin low" in sense.why


def test_the_name_of_an_aperture_counts() -> None:
    found = [{"observation/gripper_closed": np.repeat([0.0, 1.0, 0.0], 5)}] * 4
    assert gripper.aperture_sense(found, Columns("observation/gripper_closed", 0, 1)).answer == "low"


def test_an_aperture_without_any_cue_is_unknown() -> None:
    found = [{"w": np.repeat([0.0, 1.0], 6)}, {"w": np.repeat([1.0, 0.0], 6)}] * 3
    sense = gripper.aperture_sense(found, Columns("w", 0, 1))
    assert not sense.known


def test_how_episodes_begin_is_not_enough() -> None:
    found = episodes(Truth(aperture="none"), np.random.default_rng(0))
    finding = gripper.polarity(found, COMMAND, None)
    assert finding.answer == "high opens"
    assert finding.confidence < 0.5


def test_a_constant_command_has_no_polarity() -> None:
    assert not gripper.polarity(one([1, 1, 1]), Columns("action", 0, 1), None).known


def test_the_command_is_found_by_name_or_place() -> None:
    rng = np.random.default_rng(0)
    steps = {"action/world_vector": rng.normal(size=(20, 3)), "action/gripper_closedness_action": rng.normal(size=20)}
    keys = [Columns("action/gripper_closedness_action", 0, 1), Columns("action/world_vector", 0, 3)]
    assert str(gripper.find_command([steps], keys, [keys[1]])) == "action/gripper_closedness_action[0]"
    found = episodes(Truth(), rng, 3)
    assert gripper.find_command(found, [Columns("action", 0, 7)], [Columns("action", 0, 6)]) == COMMAND
    assert gripper.find_command([steps], keys[1:], [keys[1]]) is None


def test_a_commanded_position_is_not_mistaken_for_the_aperture() -> None:
    closed = np.repeat([0.0, 1.0, 0.0], 8)
    late = np.roll(closed, 2) * 0.8
    steps = {"action": 1 - closed, "observation/gripper_commanded": closed, "observation/gripper_closed": late}
    states = [Columns("observation/gripper_closed", 0, 1), Columns("observation/gripper_commanded", 0, 1)]
    follows = gripper.find_aperture([steps] * 3, Columns("action", 0, 1), states, [])
    assert follows is not None
    assert follows.state.key == "observation/gripper_closed"
    assert follows.lag == 2
