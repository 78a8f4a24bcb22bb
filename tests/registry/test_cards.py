"""The 98 cards against the shared facts: verdicts, features and recipes, the last by a plain evaluator."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from oxe_curate import registry
from oxe_curate.registry import operations
from oxe_curate.registry.card import THIRD_PERSON
from oxe_curate.registry.features import check_features

NAMES = registry.names()


@pytest.fixture(scope="session")
def cards():
    return registry.load_all()


@pytest.fixture(scope="session")
def facts(shared):
    return yaml.load((shared / "oxe" / "facts.yaml").read_text(), yaml.CSafeLoader)["datasets"]


# ── completeness ──────────────────────────────────────────────────────────────────────────────────────────


def test_there_is_a_card_for_every_data_set(facts):
    assert sorted(facts) == NAMES
    assert len(NAMES) == 98


def test_every_name_and_alias_belongs_to_one_card(cards):
    owners = {}
    for name, card in cards.items():
        for alias in (name, *card.aliases):
            assert owners.setdefault(alias, name) == name, f"{alias} is in {owners[alias]} and {name}"
    for alias, name in owners.items():
        assert registry.load(alias) is cards[name]


def test_every_alias_and_tfds_name_of_the_facts_is_known(facts):
    for name, fact in facts.items():
        aliases = [re.sub(r"\s*\(.*\)$", "", alias) for alias in fact["aliases"]]
        for alias in [fact["canonical_tfds_name"], *(a for a in aliases if " " not in a)]:
            assert registry.load(alias).name == name


def test_verdicts(cards, shared):
    rows = re.findall(
        r"^\| (\w+) \| ([yn]) \| ([yn]) \| ([yn]) \| \*\*(\w+)\*\* \|",
        (shared / "oxe" / "verdicts.md").read_text(),
        re.MULTILINE,
    )
    found = [
        (c.name, *("yn"[not ok] for ok in (c.has_third_person_camera, c.is_single_arm, c.is_end_effector)), c.verdict)
        for c in cards.values()
    ]
    assert sorted(found) == sorted(rows)
    assert len(rows) == 98


def test_cards_have_the_recipes_of_the_facts(cards, facts):
    for name, fact in facts.items():
        expected = set()
        if fact["recipe"] and "xyz" in fact["recipe"]["action"]:
            expected = {"openvla"} | ({"documented"} if fact.get("recipe_by_documentation") else set())
        assert set(cards[name].recipes) == expected, name
    assert sum("documented" in card.recipes for card in cards.values()) == 8


def test_four_kinds_of_refusal(cards):
    assert cards["nyu_door_opening_surprising_effectiveness"].reason.startswith("no_third_person_camera: ")
    assert cards["utokyo_xarm_bimanual_converted_externally_to_rlds"].reason == "not_single_arm: bimanual"
    assert cards["roboset"].failed_criteria == ("not_end_effector",)
    assert len(cards["berkeley_gnm_recon"].failed_criteria) == 3


def test_filters_and_flags(cards):
    kuka = cards["kuka"]
    assert [(f.field, f.equals) for f in kuka.episode_filters] == [("success", True)]
    assert cards["language_table"].language.kind == "codepoints"
    assert cards["berkeley_autolab_ur5"].cameras["observation/hand_image"].channels == "bgr"
    assert cards["droid"].frame_filter
    assert all(cards["droid"].cameras[key].role in THIRD_PERSON for key in cards["droid"].random_view)
    assert cards["fractal20220817_data"].splits["train"].bytes == round(111.07 * 2**30)


# ── features.json ─────────────────────────────────────────────────────────────────────────────────────────


def read_features(path: Path) -> dict[str, dict]:
    """Flat step key -> the JSON of its feature, from both of the layouts that TFDS writes."""
    root = json.loads(path.read_text())
    features = (root.get("content") or root["featuresDict"])["features"]

    def flatten(node, prefix=""):
        for key, child in node["featuresDict"]["features"].items():
            if "featuresDict" in child:
                yield from flatten(child, f"{prefix}{key}/")
            else:
                yield prefix + key, child

    return dict(flatten(features["steps"]["sequence"]["feature"]))


def shape_of(feature: dict) -> tuple[int, ...]:
    inner = feature.get("tensor") or feature.get("image") or {}
    return tuple(int(d) for d in inner.get("shape", {}).get("dimensions", ()))


def features_of(shared: Path):
    folder = shared / "oxe" / "features"
    index = json.loads((folder / "index.json").read_text())
    for path in sorted(folder.glob("*.json")):
        if path.stem != "index":
            missing = index.get(path.stem, {}).get("missing_shapes", [])
            yield registry.load(path.stem), read_features(path), [key.removeprefix("steps/") for key in missing]


def test_cards_fit_their_features_json(shared):
    checked = 0
    for card, features, missing in features_of(shared):
        # some of the collected files lack the features whose shapes were not published
        widths = {key: shape_of(feature) for key, feature in features.items()}
        widths |= dict.fromkeys(missing, (None,))
        if "ground_truth_states" in widths:
            widths["ground_truth_states/EE"] = (None,)
        remarks = check_features(card, widths)
        lost = [r for r in remarks if not any(f"'{m}" in r for m in missing)]
        assert not lost, (card.name, lost)
        checked += 1
    assert checked == 71


def test_cameras_match_their_features_json(shared):
    for card, features, _ in features_of(shared):
        for key, camera in card.cameras.items():
            if key not in features:
                continue
            feature = features[key]
            inner = feature.get("image") or feature["tensor"]
            encoding = inner.get("encodingFormat", "unspecified") if "image" in feature else "tensor"
            assert (camera.encoding, camera.dtype) == (encoding, inner["dtype"]), (card.name, key)
            # the bridge file describes a debug copy of 64 px; the release has 256 px
            if card.name != "bridge_orig":
                assert camera.shape == shape_of(feature), (card.name, key)
        images = {key for key, feature in features.items() if "image" in feature}
        assert images <= set(card.cameras), card.name


# ── recipes, evaluated in the plainest way ────────────────────────────────────────────────────────────────


def random_steps(features: dict[str, str], length: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    steps = {}
    for key, kind in features.items():
        dtype, shape = re.match(r"(\w+)\[([\d,]*)\]", kind).groups()
        shape = (length, *(int(n) for n in shape.split(",") if n))
        if dtype == "string":
            steps[key] = np.array([b"pick up the block"] * length)
        elif dtype == "bool":
            steps[key] = rng.random(shape) < 0.5
        elif dtype.startswith("int"):
            steps[key] = rng.integers(0, 2, shape).astype(dtype)
        elif dtype.startswith("float"):
            values = rng.uniform(-1.5, 1.5, shape)
            settled = rng.choice([-1.0, 0.0, 1.0], shape)  # grippers stay at their ends
            steps[key] = np.where(rng.random(shape) < 0.5, values, settled).astype(dtype)
    return steps


def evaluate(recipe: dict, steps: dict[str, np.ndarray]) -> np.ndarray:
    """A recipe of facts.yaml, one column and one step at a time where its definition is a scan."""
    trim = recipe.get("trim", {})
    length = len(next(iter(steps.values())))
    kept = max(length - trim.get("first", 0) - trim.get("last", 0), 0)
    columns = []
    for part in ("xyz", "rpy", "gripper"):
        for piece in recipe["action"][part]:
            if "const" in piece:
                columns += [np.full(kept, piece["const"])] * piece["width"]
                continue
            x = steps[piece["src"]].reshape(length, -1)[trim.get("first", 0) :]
            x = x[:, slice(*piece["cols"])] if "cols" in piece else x
            x = x if x.dtype.kind == "f" else x.astype(np.float32)
            for op in piece.get("ops", []):
                x = OPS[op["op"]](x, op)
            columns += list(x[:kept].T)
    return np.stack(columns, axis=1).astype(np.float32)


def scan(x, op):
    out = np.empty_like(x)
    commands = [
        -1 if v > np.float32(op["threshold"]) else 1 if v < -np.float32(op["threshold"]) else 0 for v in x[:, 0]
    ]
    state = -next((c for c in commands if c), -1)
    for t, command in enumerate(commands):
        state = command or state
        out[t] = (state + 1) / 2
    return out


def backward_scan(x, op):
    out, carry = np.empty_like(x), x[-1, 0]
    for t in reversed(range(len(x))):
        carry = 1 if x[t, 0] > np.float32(op["hi"]) else 0 if x[t, 0] < np.float32(op["lo"]) else carry
        out[t] = carry
    return out


def scaled(x, op):
    if abs(op["scale"] + 1 / 255) < 1e-9:  # the facts write 1 - x / 255 with a rounded scale
        return op["offset"] - x / x.dtype.type(255)
    return x.dtype.type(op["scale"]) * x + x.dtype.type(op["offset"])


OPS = {
    "affine": scaled,
    "clip": lambda x, op: np.clip(x, op["lo"], op["hi"]),
    "delta": lambda x, op: np.diff(x, axis=0),
    "rel_to_abs": scan,
    "binarize": backward_scan,
    "euler_from_quat": lambda x, op: operations.euler_from_quat(x),  # has tests of its own
}


@pytest.mark.parametrize("name", NAMES)
def test_recipes_match_the_facts(name, facts):
    fact, card = facts[name], registry.load(name)
    rng = np.random.default_rng(0)
    for recipe, key in (("openvla", "recipe"), ("documented", "recipe_by_documentation")):
        if recipe not in card.recipes:
            continue
        for length in (20, 3):
            steps = random_steps(fact["features"], length, rng)
            with np.errstate(invalid="ignore"):
                expected = evaluate(fact[key], steps)
            result = card.standardize(steps, recipe)
            np.testing.assert_array_equal(result.action, expected)
            assert result.proprio.shape[0] == len(expected)
            empty = card.standardize({key: array[:0] for key, array in steps.items()}, recipe)
            assert empty.action.shape == (0, 7)


def test_proprio_has_the_columns_of_the_encoding(cards, facts):
    """POS_EULER, POS_QUAT, JOINT and NONE are eight columns wide; four sources have another number of keys."""
    others = {"droid": 7, "droid_wipe": 7, "dobbe": 7, "rh20t": 7}
    rng = np.random.default_rng(0)
    for name, card in cards.items():
        if not card.proprio:
            continue
        proprio = card.standardize(random_steps(facts[name]["features"], 4, rng)).proprio
        libero = 9 if name.startswith("libero") and name != "libero_4_task_suites_no_noops" else 8
        assert proprio.shape[1] == others.get(name, libero), name
