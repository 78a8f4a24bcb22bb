import json
from typing import Any

import numpy as np
import pytest

from oxe_curate import registry
from oxe_curate.config import build
from oxe_curate.errors import ConfigError, DataError
from oxe_curate.registry.card import DatasetCard
from oxe_curate.registry.text import read_texts

CASES = [
    "berkeley_autolab_ur5", "bridge_orig", "cmu_stretch", "droid", "fractal20220817_data",
    "furniture_bench_dataset_converted_externally_to_rlds", "jaco_play", "kuka", "language_table",
    "libero_spatial_no_noops", "taco_play", "viola",
]  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_golden_case(name, shared):
    with np.load(shared / "parity" / "actions" / f"{name}.npz") as case:
        steps = {key: case[key] for key in case if not key.startswith(("expected/", "__"))}
        expected = {key[9:]: case[key] for key in case if key.startswith("expected/")}
        assert json.loads(str(case["__meta__"]))["dataset"] == name
    before = {key: array.copy() for key, array in steps.items()}
    card = registry.load(name)
    result = card.standardize(steps)
    quaternion = any(o.op == "euler_from_quat" for _, p in card.recipe().pieces() for o in p.ops)
    np.testing.assert_allclose(result.action, expected["action"], rtol=0, atol=5e-6 if quaternion else 0)
    np.testing.assert_array_equal(result.frame_index, expected["frame_index"])
    np.testing.assert_array_equal(result.proprio, expected["proprio"])
    texts = [result.instructions[i].encode() for i in result.instruction_index]
    assert texts == expected["language_instruction"].tolist()
    assert [result.action.dtype, result.proprio.dtype, result.frame_index.dtype] == ["f4", "f4", "i4"]
    for key, array in before.items():
        np.testing.assert_array_equal(steps[key], array)


def test_every_golden_case_is_run(shared):
    assert sorted(p.stem for p in (shared / "parity" / "actions").glob("*.npz")) == sorted(CASES)


# ── a small card ──────────────────────────────────────────────────────────────────────────────────────────


def make_card(recipe, proprio=(), language=("text",), kind="string"):
    card = {
        "name": "small", "robot": "Franka", "arms": "single", "action_encoding": "EEF_POS", "why": "a test",
        "language": {"keys": language, "kind": kind}, "recipes": {"openvla": recipe}, "proprio": proprio,
    }  # fmt: skip
    return build(DatasetCard, card, "small.yaml")


PLAIN = {
    "xyz": [{"src": "action", "cols": [0, 3]}],
    "rpy": [{"src": "action", "cols": [5, 4, 3]}],
    "gripper": [{"src": "gripper"}],
}
BRIDGE = {
    "trim": {"first": 1, "last": 1},
    "xyz": [{"src": "state", "cols": [0, 3], "ops": ["delta"]}],
    "rpy": [{"src": "state", "cols": [3, 6], "ops": ["delta"]}],
    "gripper": [{"src": "gripper"}],
}


def texts(*values):
    return np.array([v.encode() for v in values])


def steps(length=3, **changes):
    made = {
        "action": np.arange(6 * length, dtype=np.float32).reshape(length, 6),
        "gripper": np.linspace(0, 1, length, dtype=np.float32),
        "state": (np.arange(6 * length, dtype=np.float32) ** 2).reshape(length, 6),
        "text": np.array([b"push"] * length),
    }
    return {key: array for key, array in (made | changes).items() if array is not None}


def test_columns_are_selected_permuted_and_a_scalar_is_one_column():
    result = make_card(PLAIN).standardize(steps())
    expected = [[0, 1, 2, 5, 4, 3, 0], [6, 7, 8, 11, 10, 9, 0.5], [12, 13, 14, 17, 16, 15, 1]]
    np.testing.assert_array_equal(result.action, np.array(expected, np.float32))
    np.testing.assert_array_equal(result.frame_index, [0, 1, 2])
    assert result.proprio.shape == (3, 0)
    assert (result.instruction, result.instructions) == ("push", ("push",))


def test_delta_and_trim_keep_the_middle():
    given = steps(4)
    result = make_card(BRIDGE, proprio=[{"src": "state"}]).standardize(given)
    np.testing.assert_array_equal(result.frame_index, [1, 2])
    np.testing.assert_array_equal(result.action[:, :6], given["state"][2:] - given["state"][1:-1])
    np.testing.assert_array_equal(result.action[:, 6], given["gripper"][1:3])
    np.testing.assert_array_equal(result.proprio, given["state"][1:3])


def test_stride_comes_before_the_operations():
    recipe = BRIDGE | {"trim": {"first": 1, "last": 1, "stride": 2}}
    given = steps(6)
    result = make_card(recipe).standardize(given)
    np.testing.assert_array_equal(result.frame_index, [1, 3])
    np.testing.assert_array_equal(result.action[:, :6], given["state"][[3, 5]] - given["state"][[1, 3]])


@pytest.mark.parametrize("length", [0, 1, 2])
def test_episodes_too_short_for_the_trim_are_empty(length):
    result = make_card(BRIDGE, proprio=[{"src": "state"}]).standardize(steps(length))
    assert (result.action.shape, result.proprio.shape) == ((0, 7), (0, 6))
    assert (len(result.frame_index), len(result.instruction_index), result.instruction) == (0, 0, "")


def test_an_empty_episode_is_empty():
    result = make_card(PLAIN).standardize(steps(0))
    assert result.action.shape == (0, 7)
    assert len(result) == 0


def test_one_step_is_enough_without_a_trim():
    np.testing.assert_array_equal(make_card(PLAIN).standardize(steps(1)).action, [[0, 1, 2, 5, 4, 3, 0]])


@pytest.mark.parametrize("dtype", [bool, np.int32, np.int64, np.uint8, np.float16])
def test_numbers_of_any_kind_become_float32(dtype):
    result = make_card(PLAIN).standardize(steps(gripper=np.array([0, 1, 1], dtype)))
    np.testing.assert_array_equal(result.action[:, 6], np.array([0, 1, 1], np.float32))


def test_float64_is_cast_after_the_operations():
    recipe = PLAIN | {"gripper": [{"src": "gripper", "ops": [{"op": "affine", "scale": -1, "offset": 1}]}]}
    gripper = np.random.default_rng(0).uniform(0, 1, 100)
    result = make_card(recipe).standardize(steps(100, gripper=gripper))
    np.testing.assert_array_equal(result.action[:, 6], (1 - gripper).astype(np.float32))


def test_values_that_are_not_finite_pass_without_a_warning():
    state = np.array([[np.nan] * 6, [np.inf] * 6, [np.inf] * 6, [1e39] * 6])
    result = make_card(BRIDGE).standardize(steps(4, state=state))
    assert not np.isfinite(result.action[:, :6]).any()


def test_proprio_has_no_columns_where_its_keys_are_absent():
    card = make_card(PLAIN, proprio=[{"src": "joints"}, {"const": 0, "width": 1}])
    assert card.standardize(steps()).proprio.shape == (3, 0)
    joints = np.ones((3, 2), np.float32)
    np.testing.assert_array_equal(card.standardize(steps(joints=joints)).proprio, [[1, 1, 0]] * 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gripper": None}, "the step key 'gripper' is missing"),
        ({"gripper": None, "griper": np.zeros(3)}, "Did you mean 'griper'"),
        ({"gripper": np.zeros(4)}, "'gripper' has 4 steps, the other keys have 3"),
        ({"gripper": np.zeros((3, 2))}, "gripper: 'gripper' gives 2 columns, expected 1"),
        ({"action": np.zeros((3, 5))}, r"'action' has shape \(3, 5\), expected \(steps, at least 6 columns\)"),
        ({"gripper": np.float32(1)}, "'gripper' is a single value"),
        ({"action": np.zeros((3, 6, 1))}, r"'action' has shape \(3, 6, 1\)"),
        ({"gripper": np.array(["a", "b", "c"])}, "'gripper' has dtype <U1, expected numbers"),
        ({"text": None}, "the step key 'text' is missing"),
        ({"text": texts("a", "b")}, "'text' has 2 steps"),
        ({"text": np.zeros(3)}, r"'text' holds float64 of shape \(3,\), expected one text per step"),
        ({"text": np.array([1, b"a", b"b"], object)}, "'text' holds int, expected text"),
        ({"text": np.array([b"\xff"] * 3)}, "'text' holds text that is not UTF-8"),
    ],
)
def test_data_that_does_not_fit_names_the_key(changes, message):
    with pytest.raises(DataError, match=message) as error:
        make_card(PLAIN).standardize(steps(**changes))
    assert str(error.value).startswith("card 'small', recipe 'openvla': ")


def test_a_quaternion_needs_four_columns():
    recipe = PLAIN | {"rpy": [{"src": "quat", "ops": ["euler_from_quat"]}]}
    with pytest.raises(DataError, match="'quat': euler_from_quat needs 4 columns, got 3"):
        make_card(recipe).standardize(steps(quat=np.zeros((3, 3), np.float32)))


def test_a_card_without_a_recipe_refuses():
    with pytest.raises(ConfigError, match=r"card 'roboset' has no 7-D end-effector recipe \(JOINT_POS\)"):
        registry.load("roboset").standardize({})


# ── texts ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_distinct_texts_in_order_and_the_index_of_each_step():
    result = make_card(PLAIN).standardize(steps(4, text=texts("", "b", "a", "b")))
    assert (result.instruction, result.instructions) == ("b", ("b", "a"))
    np.testing.assert_array_equal(result.instruction_index, [-1, 0, 1, 0])
    assert result.instruction_index.dtype == np.int32


def test_texts_of_trimmed_steps_do_not_count():
    result = make_card(BRIDGE).standardize(steps(4, text=texts("first", "a", "a", "last")))
    assert result.instructions == ("a",)


def test_a_later_key_fills_in_where_the_first_is_empty():
    card = make_card(PLAIN, language=("text", "text_2", "text_3"))
    result = card.standardize(steps(text=texts("", "a", ""), text_2=texts("b", "b", ""), text_3=texts(*"ccc")))
    assert [result.instructions[i] for i in result.instruction_index] == ["b", "a", "c"]
    assert card.standardize(steps(text=None, text_3=texts(*"ccc"))).instruction == "c"
    assert card.standardize(steps(text=texts("", "", ""), text_3=texts(*"ccc"))).instructions == ("c",)


@pytest.mark.parametrize("dtype", ["S", "U", object])
def test_texts_may_be_bytes_str_or_objects(dtype):
    given = np.array(["schöb", "schöb", ""] if dtype == "U" else ["schöb".encode()] * 2 + [b""], dtype)
    result = make_card(PLAIN).standardize(steps(text=given))
    assert result.instructions == ("schöb",)
    np.testing.assert_array_equal(result.instruction_index, [0, 0, -1])


def test_no_language_keys_and_no_texts_give_no_instruction():
    for card, given in ((make_card(PLAIN, language=()), steps()), (make_card(PLAIN), steps(text=texts("", "", "")))):
        result = card.standardize(given)
        assert (result.instruction, result.instructions) == ("", ())
        np.testing.assert_array_equal(result.instruction_index, [-1, -1, -1])


def test_code_points_are_cut_at_the_first_zero():
    codes = np.zeros((3, 8), np.int32)
    codes[0, :2] = [0x4F, 0xE9]
    codes[1, :4] = [0x41, 0, 0x42, 0x43]
    codes[2, :3] = [0x1F600, 0xD800, -1]
    result = make_card(PLAIN, kind="codepoints").standardize(steps(text=codes))
    assert result.instructions == ("Oé", "A", "\U0001f600\ufffd\ufffd")
    full = make_card(PLAIN, kind="codepoints").standardize(steps(text=np.full((3, 2), 0x41)))
    assert full.instructions == ("AA",)
    with pytest.raises(DataError, match=r"expected \(steps, code points\)"):
        make_card(PLAIN, kind="codepoints").standardize(steps())


@pytest.mark.parametrize(
    "texts",
    [
        np.array([[b"", b"pick"], [b"pick", b"place"], [b"", b""]], object),
        np.array([[b"", b"pick"], [b"pick"], []], dtype=object),
    ],
    ids=["tensor", "sequence"],
)
def test_of_several_texts_per_step_the_first_that_is_not_empty_counts(texts: Any) -> None:
    found, index = read_texts({"text": texts}, ("text",), False, 3, slice(0, 3, 1))
    assert (found, index.tolist()) == (("pick",), [0, 0, -1])


def test_episodes_of_a_shard_are_standardised_as_if_each_were_alone(shared):
    rng = np.random.default_rng(0)
    for name in CASES:
        with np.load(shared / "parity" / "actions" / f"{name}.npz") as case:
            steps = {key: case[key] for key in case if not key.startswith(("expected/", "__"))}
        count = min(map(len, steps.values()))
        cuts = [(0, 0), (0, count), *(sorted(rng.integers(0, count + 1, 2).tolist()) for _ in range(6)), (0, 1)]
        episodes = [{key: array[first:last] for key, array in steps.items()} for first, last in cuts]
        standardizer = registry.load(name).standardizer()
        for one, together in zip(episodes, standardizer.many(episodes), strict=True):
            alone = standardizer(one)
            for field in ("action", "frame_index", "proprio", "instruction_index"):
                np.testing.assert_array_equal(getattr(together, field), getattr(alone, field))
                assert getattr(together, field).dtype == getattr(alone, field).dtype
            assert together.instructions == alone.instructions


def test_episodes_that_differ_in_kind_are_refused_together():
    standardizer = make_card(PLAIN).standardizer()
    one = {"action": np.zeros((3, 6), "f4"), "gripper": np.zeros(3, "f4"), "text": np.array([b"go"] * 3)}
    other = {**one, "gripper": np.zeros(3, "f8")}
    assert len(standardizer.many([one, one])) == 2
    assert standardizer.many([]) == []
    with pytest.raises(DataError, match="'gripper' has several shapes or dtypes"):
        standardizer.many([one, other])
