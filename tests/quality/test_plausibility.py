"""Findings about a data set's actions: each defect by its name, and nothing on good data."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from oxe_curate import registry
from oxe_curate.inspection.sample import read_sample
from oxe_curate.quality.action_facts import ActionFacts, measure_actions
from oxe_curate.quality.findings import ACTION_FINDINGS, CardFacts, DataFinding, sentences
from oxe_curate.quality.kin import UsedBounds, judge_bounds, judge_kin
from oxe_curate.quality.plausibility import judge_actions
from oxe_curate.rlds.dataset import find
from oxe_curate.storage import Folder
from tests.inspection.constructed import Truth, episodes

CARD = CardFacts(control_hz=5.0, constant=(False,) * 7, published=False, kin="widowx, EEF_POS, single")
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def arrays(truth: Truth, seed: int = 0, count: int = 20) -> Arrays:
    """Actions, starts and states of constructed episodes."""
    made = episodes(truth, np.random.default_rng(seed), count)
    starts = np.concatenate([[0], np.cumsum([len(e["action"]) for e in made])])
    return (np.concatenate([e["action"] for e in made]), starts, np.concatenate([e["observation/state"] for e in made]))


def judged(
    action: np.ndarray, starts: np.ndarray, state: np.ndarray | None, card: CardFacts = CARD
) -> list[DataFinding]:
    return judge_actions(measure_actions(action.astype(np.float32), starts, state), card)


ACTION, STARTS, STATE = arrays(Truth(noise=0.0005))
NOISE = np.random.default_rng(0).normal(0, 1e-6, (len(ACTION), 6))


@pytest.mark.parametrize("rotation", ["euler", "xyzw", "wxyz"])
@pytest.mark.parametrize("follow", [1.0, 0.4])
@pytest.mark.parametrize("aperture", ["high", "low", "none"])
def test_good_data_have_no_finding(rotation: str, follow: float, aperture: str) -> None:
    for seed, down in ((1, True), (2, False)):
        truth = Truth(rotation=rotation, follow=follow, aperture=aperture, down=down, noise=0.001, idle_first=True)  # type: ignore[arg-type]
        action, starts, state = arrays(truth, seed, 8)
        assert judged(action, starts, state) == []
        assert judged(action, starts, None) == []


def column(d: int, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    def changed(action: np.ndarray) -> np.ndarray:
        action[:, d] = change(action[:, d])
        return action

    return changed


def part(columns: slice, factor: float) -> Callable[[np.ndarray], np.ndarray]:
    def changed(action: np.ndarray) -> np.ndarray:
        action[:, columns] *= factor
        return action

    return changed


def in_order(*order: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda action: action[:, order]


def wrapped_difference(action: np.ndarray) -> np.ndarray:
    """The yaw of a state near 180 degrees, subtracted without wrap."""
    yaw = (3 * STATE[:, 5]) % (2 * np.pi) - np.pi
    action[:, 5] = np.diff(yaw, append=yaw[-1])
    action[STARTS[1:] - 1, 5] = 0
    return action


def absolute(action: np.ndarray) -> np.ndarray:
    return np.hstack([np.vstack([STATE[1:, :6], STATE[-1:, :6]]), action[:, 6:]])


XYZ, RPY, GRIP = slice(0, 3), slice(3, 6), 6
DEFECTS: dict[str, tuple[str, str, str, Callable[[np.ndarray], np.ndarray]]] = {
    "millimetres": ("xyz_scale", "warning", "scale", part(XYZ, 1000)),
    "centimetres": ("xyz_scale", "warning", "0.01", part(XYZ, 100)),
    "kilometres": ("xyz_scale", "warning", "scale", part(XYZ, 1e-3)),
    "degrees": ("rpy_scale", "warning", "0.0174533", part(RPY, 57.29578)),
    "positions": ("absolute_xyz", "warning", "delta", absolute),
    "unwrapped differences": ("rotation_jumps", "error", "wrap", wrapped_difference),
    "angles across 180 degrees": ("rotation_jumps", "error", "delta and wrap",
                                  column(5, lambda x: STATE[:, 5] % (2 * np.pi) - np.pi)),
    "a rare rotation": ("bounds_collapse", "error", "constant",
                        column(3, lambda x: np.where(np.arange(len(x)) % 200 == 7, 0.3, 0.0))),
    "never moves": ("never_moves", "error", "src and cols", part(slice(0, 6), 0.0)),
    "only noise": ("never_moves", "error", "src and cols", lambda a: np.hstack([NOISE, a[:, 6:]])),
    "one action": ("same_action", "error", "src and cols", lambda a: np.hstack([np.full_like(NOISE, 0.01), a[:, 6:]])),
    "xyz never change": ("never_moves", "error", "src and cols", part(XYZ, 0.0)),
    "negative values are cut": ("one_sided", "warning", "clip", column(1, lambda x: np.maximum(x, 0))),
    "not finite": ("not_finite", "error", "not_finite: true", column(2, lambda x: np.r_[np.nan, x[1:]])),
    "gripper -1 to 1": ("gripper_range", "error", "scale: 0.5, offset: 0.5", column(GRIP, lambda g: 2 * g - 1)),
    "gripper 0 to 255": ("gripper_range", "error", "scale: 0.003922", column(GRIP, lambda g: 255 * g)),
    "gripper 0.4 to 0.6": ("gripper_narrow", "error", "scale: 5, offset: -2", column(GRIP, lambda g: 0.4 + 0.2 * g)),
    "gripper in metres": ("gripper_narrow", "error", "scale: 12.5", column(GRIP, lambda g: 0.08 * g)),
    "gripper squeezed": ("gripper_narrow", "warning", "scale: 2", column(GRIP, lambda g: 0.25 + 0.5 * g)),
    "gripper never closes": ("gripper_constant", "warning", "cols of gripper", column(GRIP, lambda g: 0 * g + 1)),
    "gripper pulses": ("gripper_pulses", "warning", "rel_to_abs", column(GRIP, lambda g: abs(np.diff(g, prepend=1)))),
    "one column twice": ("identical_dimensions", "error", "cols", lambda a: a[:, [0, 1, 0, 3, 4, 5, 6]]),
    "xyz as rpy": ("identical_dimensions", "error", "cols", lambda a: a[:, [0, 1, 2, 0, 1, 2, 6]]),
}  # fmt: skip


@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("state", [STATE, None], ids=["with state", "without"])
def test_a_defect_is_found_by_name_and_says_what_to_change(defect: str, state: np.ndarray | None) -> None:
    name, severity, advice, change = DEFECTS[defect]
    found = [f for f in judged(change(ACTION.copy()), STARTS, state) if f.name not in ("swapped_axes", "absolute_rpy")]
    assert {(f.name, f.severity) for f in found} == {(name, severity)}
    assert advice in found[0].advice
    assert any(letter.isdigit() for letter in found[0].text)


@pytest.mark.parametrize(
    ("name", "dimension", "change"),
    [
        ("gripper_inverted", "gripper", column(GRIP, lambda g: 1 - g)),
        ("inverted_axis", "y", column(1, lambda x: -x)),
        ("swapped_axes", "x", in_order(1, 0, 2, 3, 4, 5, 6)),
        ("swapped_axes", "roll", in_order(0, 1, 2, 5, 4, 3, 6)),
        ("xyz_scale", "xyz", part(XYZ, 5.0)),  # a velocity at 5 Hz
        ("absolute_rpy", "rpy", absolute),
    ],
)
def test_what_only_the_state_shows(name: str, dimension: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    found = [f for f in judged(change(ACTION.copy()), STARTS, STATE) if f.name == name]
    assert next((f.severity, f.dimension) for f in found) == ("warning", dimension)
    assert not [f for f in judged(change(ACTION.copy()), STARTS, None) if f.name == name and name != "absolute_rpy"]


def test_few_steps_are_not_judged_and_more_are_not_an_error() -> None:
    still = np.zeros((40, 7), np.float32)
    assert judged(still, np.array([0, 40]), None) == []
    (f, g) = judged(np.zeros((60, 7), np.float32), np.array([0, 30, 60]), None)
    assert (f.name, f.severity, g.name) == ("never_moves", "warning", "gripper_constant")
    still[3, 1] = np.inf
    assert [(f.name, f.severity) for f in judged(still, np.array([0, 40]), None)] == [("not_finite", "error")]


def test_a_constant_of_the_recipe_is_not_a_finding() -> None:
    action = ACTION.copy()
    action[:, 3:] = [0, 0, 0, 1]
    assert judged(action, STARTS, None, replace(CARD, constant=(False,) * 3 + (True,) * 4)) == []


def test_published_data_sets_with_other_units_only_get_warnings() -> None:
    published = replace(CARD, published=True)
    for defect in ("gripper -1 to 1", "gripper in metres", "angles across 180 degrees"):
        found = judged(DEFECTS[defect][3](ACTION.copy()), STARTS, None, published)
        assert [f.severity for f in found] == ["warning"]
    one = ACTION.copy()
    one[100, 5] = 6.2  # as in published Bridge: 0.01 % of the steps
    assert [(f.name, f.severity) for f in judged(one, STARTS, None)] == [("rotation_jumps", "warning")]


def test_facts_of_literal_actions() -> None:
    action = np.zeros((4, 7), np.float32)
    action[:, 0] = [1, 2, 3, 4]
    action[:, 2] = [1, 2, 3, 4]
    facts = measure_actions(action, np.array([0, 2, 4]), None)
    assert (facts.episodes, facts.steps, facts.same, facts.zeros[0], facts.zeros[1]) == (2, 4, ((0, 2),), 0.0, 1.0)
    assert (facts.low(0), facts.high(0), facts.at(0, 0.5), facts.distinct[:2]) == (1, 4, 2.5, (4, 1))
    assert facts.net == pytest.approx(np.sqrt(2) * 5)
    assert facts.outside(0, 0, 5) == 0
    assert facts.outside(0, 2.5, 9) == pytest.approx(0.5)
    assert facts.outside(0, 0, 2.5) == pytest.approx(0.5)
    assert facts.outside(0, 9, 10) == 1


def bounds(low: float, high: float, source: str = "stats.json") -> UsedBounds:
    return UsedBounds(np.full(7, low), np.full(7, high), np.arange(7) < 6, source)


@pytest.mark.parametrize(
    ("used", "expected"),
    [
        (bounds(-0.05, 0.05), []),
        (bounds(-0.0001, 0.0001), [("outside_bounds", "error")]),
        (bounds(-5, 5), [("wide_bounds", "warning")]),
        (bounds(0, 0), [("bounds_collapse", "error")]),
        (bounds(-5, 5, ""), []),
    ],
)
def test_the_bounds_of_a_file(used: UsedBounds, expected: list[tuple[str, str]]) -> None:
    action = np.random.default_rng(0).normal(0, 0.02, (1000, 7)).clip(-0.05, 0.05).astype(np.float32)
    facts = measure_actions(action, np.array([0, 1000]), None)
    found = list(judge_bounds(facts, CARD, used))
    assert [(f.name, f.severity) for f in found] == expected
    assert all("x, y, z, roll, pitch, yaw" in f.text for f in found)


def test_a_dimension_that_only_the_kin_uses() -> None:
    still = ACTION.copy()
    still[:, 3:6] = 0
    facts = {
        n: measure_actions(a.astype(np.float32), STARTS, None) for n, a in (("a", ACTION), ("b", still), ("c", still))
    }
    cards = {"a": CARD, "b": CARD, "c": replace(CARD, kin="franka, EEF_POS, single")}
    found = judge_kin(facts, cards)
    assert [(n, f.name, f.dimension) for n, fs in found.items() for f in fs] == [
        ("b", "constant_dimension", d) for d in ("roll", "pitch", "yaw")
    ]
    assert "varies in a (widowx" in found["b"][0].text
    assert judge_kin(facts, cards | {"b": replace(CARD, constant=(False,) * 3 + (True,) * 3 + (False,))}) == {}


def of_data(root: Path, card: str) -> tuple[ActionFacts, CardFacts]:
    (dataset,) = find(Folder.of(root))
    known = registry.load(card)
    made = [known.standardize(steps) for steps in read_sample(dataset, 50).episodes]
    starts = np.concatenate([[0], np.cumsum([len(t) for t in made])])
    facts = measure_actions(np.concatenate([t.action for t in made]), starts, np.concatenate([t.proprio for t in made]))
    return facts, CardFacts.of(known, "openvla")


def test_the_real_bridge_shard_has_no_finding(shared: Path) -> None:
    facts, card = of_data(shared / "data" / "rlds" / "bridge_dataset", "bridge_orig")
    assert (card.published, facts.episodes) == (True, 50)
    assert judge_actions(facts, card) == []
    assert facts.xyz is not None
    assert facts.xyz.moves == pytest.approx((1, 1, 1), abs=1e-3)  # Bridge's actions are its state's displacements


def test_card_facts_of_the_registry() -> None:
    for name, card in registry.load_all().items():
        for recipe in card.recipes:
            facts = CardFacts.of(card, recipe)
            assert len(facts.constant) == 7, name
            assert facts.published == (recipe == "openvla")
    assert CardFacts.of(registry.load("language_table"), "openvla").constant == (False, False, *(True,) * 5)
    assert CardFacts.of(registry.load("robo_net"), "openvla").constant[3:] == (False, True, True, False)


def test_every_finding_has_a_name_and_a_sentence() -> None:
    names = {judged(change(ACTION.copy()), STARTS, STATE)[0].name for *_, change in DEFECTS.values()}
    assert names <= set(ACTION_FINDINGS)
    (line,) = sentences(judged(np.zeros((200, 7), np.float32), np.array([0, 200]), None)[:1], "mine")
    assert line.startswith("mine: xyz and rpy are zero at all 200 steps")
    assert line.endswith("[never_moves]")
