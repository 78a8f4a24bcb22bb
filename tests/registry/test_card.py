import pickle

import pytest

from oxe_curate.config import build, parse_yaml
from oxe_curate.errors import ConfigError
from oxe_curate.registry.card import DatasetCard, read_card
from oxe_curate.registry.features import check_features
from oxe_curate.registry.recipe import Piece, Trim

CARD = """
name: small
robot: Franka
arms: single
action_encoding: EEF_POS
why: a test
aliases: [tiny]
cameras:
  observation/front: {role: primary, shape: [8, 8, 3], encoding: png}
  observation/side: {role: secondary}
  observation/hand: {role: wrist}
  observation/other_hand: {role: wrist}
language: {keys: [language_instruction]}
proprio: [{src: observation/state}]
recipes:
  openvla:
    trim: {first: 1, last: 1}
    xyz: [{src: observation/state, cols: [0, 3], ops: [delta]}]
    rpy: [{const: 0, width: 3}]
    gripper: [{src: action, cols: [-1, null], ops: [{op: binarize, lo: 0.05, hi: 0.95}]}]
"""
WIDTHS = {"observation/state": (4,), "action": (7,), "language_instruction": ()}


def card(text=CARD):
    return build(DatasetCard, parse_yaml(text, "small.yaml"), "small.yaml")


def changed(old, new):
    assert old in CARD
    return CARD.replace(old, new)


def test_a_card_provides_what_the_filter_reads():
    small = card()
    assert small.cameras_by_role() == {
        "primary": "observation/front",
        "secondary": "observation/side",
        "wrist": "observation/hand",
    }
    assert small.step_keys("openvla") == {"observation/state", "action"}
    assert small.recipe("openvla").trim == Trim(first=1, last=1)
    assert (small.verdict, small.reason, small.failed_criteria) == ("pass", "a test", ())


def test_unavailable_proprio_keys_are_omitted():
    text = changed("proprio: [{src: observation/state}]", "proprio: [{src: observation/joints}]")
    assert card(text).step_keys() == {"observation/state", "action", "observation/joints"}
    assert card(text).step_keys(available=WIDTHS) == {"observation/state", "action"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("robot:", "robto:", r"unknown key 'robto'\. Did you mean 'robot'\?"),
        ("why: a test", "", "missing key 'why'"),
        ("arms: single", "arms: singel", r"arms: unknown value 'singel'\. Did you mean 'single'\?"),
        ("role: primary", "role: primry", r"cameras.observation/front.role: .*Did you mean 'primary'\?"),
        ("encoding: png", "encodng: png", r"unknown key .*encodng'\. Did you mean 'encoding'\?"),
        ("shape: [8, 8, 3]", "shape: [8]", r"expected shape \[height, width, channels\], got \[8\]"),
        ("ops: [delta]", "ops: [dleta]", r"unknown operation 'dleta'\. Did you mean 'delta'\?"),
        ("lo: 0.05", "low: 0.05", r"binarize has no parameter 'low'\. Did you mean 'lo'\?"),
        ("lo: 0.05", "lo: much", "binarize: lo must be a number, got 'much'"),
        ("{op: binarize, lo: 0.05, hi: 0.95}", "{lo: 0.05}", "an operation is written"),
        ("{op: binarize, lo: 0.05, hi: 0.95}", "{op: shift, by: 0.5}", "shift: by must be an integer"),
        ("[delta]", "[{op: euler_from_quat, order: zyx}]", "order must be one of xyzw, wxyz"),
        ("last: 1", "last: 0", "xyz.0: delta yields no value for the last step"),
        ("first: 1,", "first: -1,", "trim needs first >= 0"),
        ("cols: [0, 3]", "cols: [3, 3]", "selects no columns"),
        ("cols: [0, 3]", "cols: [0]", "cols must be a slice"),
        ("cols: [0, 3]", "cols: [0, 2]", "xyz: expected 3 columns, got 2 from its pieces"),
        ("{const: 0, width: 3}", "{const: 0}", "constant columns are written"),
        ("{const: 0, width: 3}", "{src: action, const: 0, width: 3}", "exactly one of the keys"),
        ("{const: 0, width: 3}", "{src: action, width: 3}", "'width' belongs to 'const'"),
        ("{const: 0, width: 3}", "{src: action}, {src: action}", "more than one piece takes all columns"),
        ("cols: [0, 3], ops: [delta]", "cols: [0, 3], ops: [euler_from_quat]", "needs 4 columns, got 3"),
        ("proprio: [{src: observation/state}]", "proprio: [{src: action, ops: [delta]}]", "not allowed in proprio"),
        ("aliases: [tiny]", "random_view: [observation/frnt]", "unknown camera 'observation/frnt'. Did you mean"),
    ],
)  # fmt: skip
def test_a_mistake_names_file_key_and_closest_match(old, new, message):
    with pytest.raises(ConfigError, match=message) as error:
        card(changed(old, new))
    assert str(error.value).startswith("small.yaml: ")


def test_a_recipe_without_any_source_is_refused():
    text = CARD[: CARD.index("    trim")] + (
        "    xyz: [{const: 0, width: 3}]\n    rpy: [{const: 0, width: 3}]\n    gripper: [{const: 0, width: 1}]\n"
    )
    with pytest.raises(ConfigError, match="does not read any step key"):
        card(text)


@pytest.mark.parametrize(
    ("old", "new", "verdict", "reason"),
    [
        ("arms: single", "arms: bimanual", "fail", "not_single_arm: a test"),
        ("EEF_POS", "JOINT_POS", "fail", "not_end_effector: a test"),
        ("role: primary", "role: wrist", "pass", "a test"),
        ("arms: single", "arms: single\njudgement: unknown", "unknown", "a test"),
    ],
)
def test_the_verdict_follows_from_the_facts(old, new, verdict, reason):
    small = card(changed(old, new))
    assert (small.verdict, small.reason) == (verdict, reason)


def test_without_an_outside_camera_the_card_fails():
    text = CARD.replace("role: primary", "role: wrist").replace("role: secondary", "role: body")
    assert card(text).failed_criteria == ("no_third_person_camera",)
    assert card(text).reason == "no_third_person_camera: a test"


def test_an_unknown_recipe_suggests_a_known_one():
    with pytest.raises(ConfigError, match=r"card 'small' has no recipe 'opnvla'\. Did you mean 'openvla'\?"):
        card().recipe("opnvla")
    with pytest.raises(ConfigError, match="no 7-D end-effector recipe"):
        card(CARD[: CARD.index("recipes:")]).standardizer()


def test_a_card_fits_features_json():
    remarks = check_features(card(), WIDTHS | {"observation/front": (8, 8, 3)})
    assert remarks == (
        "camera 'observation/side' is missing",
        "camera 'observation/hand' is missing",
        "camera 'observation/other_hand' is missing",
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observation/state": (2,)}, r"xyz.0.cols: \[0, 3\] reaches beyond 'observation/state', 2 wide in here"),
        ({"observation/state": (4, 4)}, r"xyz.0.src: 'observation/state' has shape \(4, 4\)"),
        ({"observation/state": ()}, "1 wide"),
        ({"action": None}, r"gripper.0.src: here has no step key 'action'"),
        ({"language_instruction": None}, "language.keys: here has no 'language_instruction'"),
    ],
)  # fmt: skip
def test_an_error_locates_a_mismatch_with_features_json(change, message):
    widths = {key: shape for key, shape in (WIDTHS | change).items() if shape is not None}
    with pytest.raises(ConfigError, match=message) as error:
        check_features(card(), widths, "here")
    assert str(error.value).startswith("small.yaml: ")


def test_the_closest_step_key_is_suggested():
    widths = {"observation/sate": (4,), "action": (7,), "language_instruction": ()}
    with pytest.raises(ConfigError, match="Did you mean 'observation/sate'"):
        check_features(card(), widths)


def test_unknown_lengths_are_not_an_error_and_missing_proprio_is_a_remark():
    assert check_features(card(), WIDTHS | {"action": (None,)})
    text = changed("proprio: [{src: observation/state}]", "proprio: [{src: observation/joints}]")
    assert check_features(card(text), WIDTHS)[0] == "proprio is omitted: its keys are missing"
    with pytest.raises(ConfigError, match=r"proprio\.0\.src"):
        check_features(card(text), WIDTHS | {"observation/joints": (4, 4)})


def test_a_whole_source_must_have_the_width_of_its_part():
    text = changed("{src: observation/state, cols: [0, 3], ops: [delta]}", "{src: observation/state}")
    with pytest.raises(ConfigError, match=r"recipes\.openvla\.xyz: expected 3 columns, got 4 from features\.json"):
        check_features(card(text), WIDTHS)


def test_only_the_recipe_in_use_is_checked_where_one_is_named():
    other = CARD[CARD.index("    trim") :].replace("src: action", "src: action_delta")
    both = card(CARD + "  documented:\n" + other)
    check_features(both, WIDTHS, recipe="openvla")
    with pytest.raises(ConfigError, match="action_delta"):
        check_features(both, WIDTHS, recipe="documented")


@pytest.mark.parametrize(
    ("cols", "needed", "columns"),
    [(None, 0, 7), ([0, 3], 3, 3), ([-1, None], 1, 1), ([-8, -5], 8, None), ([2, -1], 3, 4), ([5, 4, 3], 6, 3)],
)
def test_columns_of_a_piece(cols, needed, columns):
    piece = Piece(src="action", cols=cols)
    assert piece.needed_width == needed
    if columns is not None:
        assert piece.columns(7) == columns


def test_the_file_name_must_be_the_name(tmp_path):
    path = tmp_path / "other.yaml"
    path.write_text(CARD)
    with pytest.raises(ConfigError, match="expected the file's name 'other' as the card's name, got 'small'"):
        read_card(path)


def test_a_card_that_has_standardised_can_be_pickled():
    small = card()
    small.standardizer()
    assert pickle.loads(pickle.dumps(small)) == small
