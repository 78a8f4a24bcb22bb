"""DROID as OpenVLA and openpi use it: idle steps, ranges to keep, a random exterior camera, one of three texts."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from tensorflow_datasets.core import features as tfds

from oxe_curate import registry
from oxe_curate.errors import ConfigError
from oxe_curate.filter.criteria import Criteria
from oxe_curate.filter.keep_ranges import read_keep_ranges
from oxe_curate.filter.pipeline import FilterOptions, run_filter
from oxe_curate.index.images import decode
from oxe_curate.registry.card import EpisodeFilter
from oxe_curate.rlds.synthetic import write_dataset
from oxe_curate.tokenize.materialize import MaterializeOptions, run_materialize
from oxe_curate.tokenize.pipeline import TokenizeOptions, run_tokenize

IMAGE = tfds.Image(shape=(16, 16, 3), encoding_format="png")
CAMERAS = ("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left")
TEXTS = ("language_instruction", "language_instruction_2", "language_instruction_3")
STRUCTURE: Any = tfds.FeaturesDict(
    {
        "steps": tfds.Dataset(
            {
                "action_dict": {
                    "cartesian_velocity": tfds.Tensor(shape=(6,), dtype=np.float64),
                    "gripper_position": tfds.Tensor(shape=(1,), dtype=np.float64),
                },
                "observation": {
                    "cartesian_position": tfds.Tensor(shape=(6,), dtype=np.float64),
                    "gripper_position": tfds.Tensor(shape=(1,), dtype=np.float64),
                    **dict.fromkeys(CAMERAS, IMAGE),
                },
                **dict.fromkeys(TEXTS, tfds.Text()),
                "is_first": np.bool_,
            }
        ),
        "episode_metadata": {"file_path": tfds.Text(), "recording_folderpath": tfds.Text()},
    }
).to_json()
STEPS, IDLE = 8, (2, 3, 6)


def key(i: int) -> str:
    return f"gs://lab/success/{i}/recordings/MP4--gs://lab/success/{i}/trajectory.h5"


def episode(i: int, texts: tuple[str, ...] = ("pick", "lift", "take")) -> dict[str, Any]:
    rng = np.random.default_rng(i)
    velocity = rng.uniform(0.1, 0.5, (STEPS, 6))
    velocity[list(IDLE)] = 1e-7
    folder, _, file = key(i).partition("--")
    # the camera's number and the step, as a colour
    images = {
        name: [np.full((16, 16, 3), 60 * c + 60 + t, np.uint8) for t in range(STEPS)] for c, name in enumerate(CAMERAS)
    }
    return {
        "steps": {
            "action_dict": {"cartesian_velocity": velocity, "gripper_position": rng.uniform(0, 1, (STEPS, 1))},
            "observation": {
                "cartesian_position": np.cumsum(velocity, 0), "gripper_position": rng.uniform(0, 1, (STEPS, 1)),
                **images,
            },
            **{name: [text] * STEPS for name, text in zip(TEXTS, texts, strict=True)},
            "is_first": np.arange(STEPS) == 0,
        },
        "episode_metadata": {"file_path": file, "recording_folderpath": folder},
    }  # fmt: skip


def filtered(root: Path, out: Path, criteria: Criteria | None = None, name: str = "droid") -> list[dict[str, Any]]:
    run_filter(root, out, FilterOptions((name,), criteria=criteria or Criteria(), progress=False, workers=1))
    return [row for path in sorted(out.glob(f"{name}/*/*.parquet")) for row in pq.read_table(path).to_pylist()]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("droid")
    for name in ("droid", "droid_wipe"):
        write_dataset(folder, name, "1.0.1", STRUCTURE, [episode(i) for i in range(40)], shards=2)
    return folder


def test_idle_steps_are_dropped_as_the_card_says(root: Path, tmp_path: Path) -> None:
    moving = [t for t in range(STEPS) if t not in IDLE]
    assert all(row["frame_index"] == moving for row in filtered(root, tmp_path / "card"))
    off = filtered(root, tmp_path / "off", Criteria(drop_idle_frames=None))
    assert all(row["frame_index"] in (None, list(range(STEPS))) for row in off)
    wipe = filtered(root, tmp_path / "wipe", name="droid_wipe")  # OpenVLA does not filter it
    assert all(row["num_steps"] == STEPS for row in wipe)


def test_the_ranges_of_a_file_are_kept(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "ranges.json"
    ranges = {key(0): [[0, 2], [3, 4], [7, 99]], **{key(i): [[1, STEPS]] for i in range(2, 40)}}
    file.write_text(json.dumps(ranges))
    rows = filtered(root, tmp_path / "out", Criteria(keep_ranges=str(file)))
    found = {row["episode_id"].split("/", 3)[3]: row for row in rows}
    assert found["00000/00000"]["frame_index"] == [0, 1, 3, 7]  # idle steps are kept: the file decides
    assert found["00000/00001"]["frame_index"] == list(range(1, STEPS))
    assert (found["00001/00000"]["num_steps"], found["00001/00000"]["reason"]) == (0, "too_short")
    both = filtered(root, tmp_path / "both", Criteria(keep_ranges=str(file), drop_idle_frames="droid"))
    assert both[0]["frame_index"] == [0, 1, 7]
    file.write_text(json.dumps({key(i): [[0, 3]] for i in range(40)}))  # other contents: scanned again
    assert all(row["num_steps"] == 3 for row in filtered(root, tmp_path / "out", Criteria(keep_ranges=str(file))))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "ranges.json: keep_ranges: not JSON"),
        ("[]", r"ranges.json: keep_ranges: expected \{.*\}, got \[\]"),
        ('{"a--b": [[3, 1]]}', r"'a--b': expected steps \[\[start, stop\], ...\], got \[\[3, 1\]\]"),
        ('{"a--b": [[0, 1.5]]}', "expected steps"),
        ('{"a--b": [0, 1]}', "expected steps"),
        (
            '{"a--b": [[0, 1]]}',
            r"none of the first 20 episodes of droid/1.0.1 is in this file. Its keys are like 'a--b'",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_an_error(root: Path, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "ranges.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        filtered(root, tmp_path / "out", Criteria(keep_ranges=str(tmp_path / "ranges.json")))


def test_ranges_need_the_metadata_that_name_episodes(tmp_path: Path) -> None:
    from tests import bridge

    bridge.write(tmp_path / "in", episodes={"train": [bridge.episode(0)]})
    (tmp_path / "ranges.json").write_text(json.dumps({key(0): [[0, 1]]}))
    with pytest.raises(ConfigError, match="no data set has the metadata episode_metadata/recording_folderpath"):
        filtered(
            tmp_path / "in", tmp_path / "out", Criteria(keep_ranges=str(tmp_path / "ranges.json")), "bridge_dataset"
        )
    ranges = read_keep_ranges(str(tmp_path / "ranges.json"))
    assert ranges.mask(key(0), 3).tolist() == [True, False, False]
    assert not ranges.mask(key(1), 3).any()


def shown(index: Path, out: Path, image: str, seed: int = 0) -> dict[str, dict[str, int]]:
    """Episode -> column -> the number of the camera that it shows at every step."""
    out.parent.mkdir(exist_ok=True)
    path = out.with_suffix(".yaml")
    path.write_text(f"name: m\nseed: {seed}\nvalidation: 0\nimage: {image}\ndatasets: [{{name: droid, weight: 1}}]\n")
    run_tokenize(path, index, out, TokenizeOptions(progress=False, workers=1))
    found: dict[str, dict[str, int]] = {}
    for file in out.glob("train-*.parquet"):
        for row in pq.read_table(file).to_pylist():
            cameras = found.setdefault(row["episode_id"], {})
            for column in (name for name in row if name.startswith("image_")):
                value = int(decode(row[column]["bytes"])[0, 0, 0]) - 60
                camera, step = divmod(value, 60)
                assert cameras.setdefault(column, camera) == camera  # the same camera in the whole episode
                assert step in range(STEPS)
    return found


@pytest.mark.parametrize("frames", ["exact", "span"])
def test_the_exterior_cameras_change_places_at_random(root: Path, tmp_path: Path, frames: Any) -> None:
    options = FilterOptions(("droid",), frames=frames, progress=False, workers=1)
    index = tmp_path / "index"
    run_filter(root, index, options)
    one = shown(index, tmp_path / "one", "{cameras: [primary]}")
    assert len(one) == 40
    assert 10 < sum(cameras["image_primary"] for cameras in one.values()) < 30
    three = shown(index, tmp_path / "three", "{cameras: [primary, secondary, wrist]}")
    for name, cameras in three.items():
        assert cameras["image_primary"] == one[name]["image_primary"]
        assert cameras["image_secondary"] == 1 - cameras["image_primary"]
        assert cameras["image_wrist"] == 2
    assert shown(index, tmp_path / "other", "{cameras: [primary]}", seed=1) != one
    fixed = shown(index, tmp_path / "fixed", "{cameras: [primary], random_view: false}")
    assert all(cameras["image_primary"] == 0 for cameras in fixed.values())


def test_cameras_that_change_places_do_so_by_reference(root: Path, tmp_path: Path) -> None:
    run_filter(root, tmp_path / "index", FilterOptions(("droid",), frames="span", progress=False, workers=1))
    text = "name: m\nvalidation: 0\ndatasets: [{name: droid, weight: 1}]\nimage: {cameras: [primary, secondary]"
    for kind, copy in (("reference", ", copy: false"), ("copy", "")):
        (tmp_path / f"{kind}.yaml").write_text(f"{text}{copy}}}\n")
        options = TokenizeOptions(progress=False, workers=1)
        run_tokenize(tmp_path / f"{kind}.yaml", tmp_path / "index", tmp_path / kind, options)
    run_materialize(tmp_path / "reference", tmp_path / "made", MaterializeOptions(progress=False, workers=1))
    made, copied = ({p.name: p.read_bytes() for p in (tmp_path / kind).iterdir()} for kind in ("made", "copy"))
    assert made == copied


def test_one_of_the_texts_is_drawn(tmp_path: Path) -> None:
    texts = [("pick", "lift", "take")] * 60 + [("", "lift", "")] * 5 + [("pick", "", "take")] * 20 + [("", "", "")]
    write_dataset(tmp_path / "in", "droid", "1.0.1", STRUCTURE, [episode(i, t) for i, t in enumerate(texts)], shards=1)
    rows = filtered(tmp_path / "in", tmp_path / "out")
    said = [row["instruction"] for row in rows]
    assert {said[:60].count(text) > 8 for text in ("pick", "lift", "take")} == {True}
    assert said[60:65] == ["lift"] * 5
    assert {*said[65:85]} == {"pick", "take"}
    assert rows[85]["reason"] == "no_language"
    assert [row["instruction"] for row in filtered(tmp_path / "in", tmp_path / "again")] == said


def test_a_part_of_a_text_decides_which_episodes_are_kept() -> None:
    rule = EpisodeFilter("episode_metadata/file_path", contains="success")
    assert [rule.accepts(value) for value in ("gs://lab/success/1", "gs://lab/failure/1", None, True)] == [
        True, False, False, False,
    ]  # fmt: skip
    with pytest.raises(ValueError, match="exactly one of the keys 'equals' and 'contains'"):
        EpisodeFilter("success")
    with pytest.raises(ValueError, match="exactly one of the keys 'equals' and 'contains'"):
        EpisodeFilter("success", True, contains="x")


def test_a_rule_in_words_becomes_a_note() -> None:
    card = registry.load("droid")
    assert card.frame_rule == "droid"
    old = replace(card, frame_filter="drop a step when it is idle")
    assert (old.frame_rule, old.notes[-1]) == (None, "frame_filter: drop a step when it is idle")
