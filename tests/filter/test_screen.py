"""Every criterion: what it drops, what it keeps, and that its switch works."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from oxe_curate import registry
from oxe_curate.episode import EpisodeId, Trajectory
from oxe_curate.errors import ConfigError
from oxe_curate.filter.criteria import MEASURED, PRESETS, Criteria, read_criteria
from oxe_curate.filter.decisions import ORDER, own_reasons
from oxe_curate.filter.pipeline import FilterOptions, run_filter
from oxe_curate.filter.screen import CRITERIA, Candidate, screen, success
from oxe_curate.index.table import IndexRow, index_table
from oxe_curate.registry.card import EpisodeFilter
from oxe_curate.rlds.example import BYTES, Span
from oxe_curate.rlds.reader import RawEpisode
from tests import bridge

BRIDGE = registry.load("bridge_orig")


def trajectory(steps: int = 4, **change: Any) -> Trajectory:
    action = np.ones((steps, 7), np.float32)
    index = np.arange(steps, dtype=np.int32)
    made = Trajectory(action, index, np.zeros((steps, 8), np.float32), "lift", ("lift",), np.zeros(steps, np.int32))
    return replace(made, **change)


def candidate(**change: Any) -> Candidate:
    camera = {"observation/image_0": Span(BYTES, 0, 100)}
    episode = RawEpisode(6, change.pop("steps", {}), change.pop("cameras", camera), change.pop("metadata", {}))
    return replace(Candidate(BRIDGE, episode, trajectory()), **change)


def reason(criteria: Criteria | None = None, **change: Any) -> str | None:
    """The reason to drop an episode, by way of its row in the index."""
    one, chosen = candidate(**change), criteria or Criteria()
    row = IndexRow(
        id=EpisodeId("d", "1.0.0", "train", 0, 0), shard="s", record=(0, 1), record_crc=0,
        source_steps=one.episode.num_steps, applies=screen(one, chosen), success=success(one),
        trajectory=one.trajectory, frames={}, spans={}, control_hz=None,
    )  # fmt: skip
    (found,) = own_reasons(index_table([row]), chosen).tolist()
    return found


def moving(share: float, steps: int = 10) -> np.ndarray:
    action = np.zeros((steps, 7), np.float32)
    action[: round(share * steps), 0] = 1
    return action


KUKA = replace(BRIDGE, episode_filters=(EpisodeFilter("success", True),))
DROPPED: dict[str, tuple[Criteria, dict[str, Any]]] = {
    "no_third_person_camera": (Criteria(), {"cameras": {"observation/image_0": Span(BYTES, 0, 0)}}),
    "not_single_arm": (Criteria(), {"card": replace(BRIDGE, arms="bimanual")}),
    "not_end_effector": (Criteria(), {"card": replace(BRIDGE, action_encoding="JOINT_POS")}),
    "failed": (Criteria(), {"card": KUKA, "metadata": {"success": np.bool_(False)}}),
    "too_short": (Criteria(too_short=5), {}),
    "too_long": (Criteria(too_long=3), {}),
    "not_finite": (Criteria(), {"trajectory": trajectory(proprio=np.full((4, 1), np.inf, np.float32))}),
    "no_language": (Criteria(), {"trajectory": trajectory(instruction="", instructions=())}),
    "idle": (Criteria(idle=0.5), {"trajectory": trajectory(10, action=moving(0.4))}),
}


def test_a_good_episode_is_kept():
    assert reason() is None
    assert reason(Criteria(too_short=4, too_long=4, idle=0.5, success_key=True)) is None


@pytest.mark.parametrize("name", DROPPED)
def test_a_criterion_drops_and_its_switch_keeps(name):
    criteria, change = DROPPED[name]
    assert reason(criteria, **change) == name
    off = replace(criteria, **{name: {"too_short": 1, "too_long": None, "idle": None}.get(name, False)})
    assert reason(off, **change) is None


def test_every_criterion_is_tested_and_has_a_key():
    assert set(DROPPED) | {"bad_image"} == set(ORDER)
    assert set(CRITERIA) <= set(ORDER)
    assert {*ORDER, *MEASURED} <= set(Criteria.__dataclass_fields__)


def test_the_defaults_are_openvlas():
    defaults = Criteria()
    assert [name for name in ORDER if getattr(defaults, name) not in (None, False)] == [
        "no_third_person_camera", "not_single_arm", "not_end_effector", "failed", "too_short", "not_finite",
        "no_language",
    ]  # fmt: skip
    assert defaults.duplicate == "report"
    assert {getattr(defaults, name) for name in MEASURED} <= {"report"}  # marked, not dropped


def test_the_strict_preset_drops_what_the_defaults_mark(tmp_path: Path):
    strict = read_criteria(preset="strict")
    assert {name: getattr(strict, name) for name in (*MEASURED, "duplicate")} == dict.fromkeys(
        (*MEASURED, "duplicate"), True
    )
    file = tmp_path / "criteria.yaml"
    file.write_text("preset: strict\nduplicate: report\ntoo_short: 4\n")
    assert read_criteria(file) == replace(strict, duplicate="report", too_short=4)
    assert read_criteria(file, preset="default") == Criteria(too_short=4)
    file.write_text("preset: strikt")
    with pytest.raises(ConfigError, match=r"preset: unknown preset 'strikt'\. Did you mean 'strict'"):
        read_criteria(file)
    assert set(PRESETS) == {"default", "strict"}


def test_idle_means_more_than_the_share():
    half = trajectory(10, action=moving(0.5))
    assert reason(Criteria(idle=0.5), trajectory=half) is None
    assert reason(Criteria(idle=0.49), trajectory=half) == "idle"
    assert reason(Criteria(idle=0), trajectory=trajectory(10, action=moving(1))) is None
    slow = trajectory(10, action=np.full((10, 7), 3e-5, np.float32))
    assert reason(Criteria(idle=0.5, idle_rule="libero"), trajectory=slow) == "idle"
    assert reason(Criteria(idle=0.5, idle_rule="droid"), trajectory=slow) is None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"metadata": {"success": 0}}, "failed"),
        ({"metadata": {"episode_metadata/success": np.bool_(True)}}, None),
        ({"metadata": {}}, None),  # a flag that is not stored has no effect
        ({"steps": {"success": np.array([0.0, 0.0, 1.0])}}, None),  # bc_z repeats it at every step
        ({"steps": {"success": np.array([1.0, 1.0, 0.0])}}, "failed"),
    ],
)
def test_the_success_flag_is_checked_on_request(change, expected):
    card = replace(BRIDGE, success_key="success")
    assert reason(Criteria(success_key=True), card=card, **change) == expected
    assert reason(Criteria(), card=card, **change) is None


def test_a_wrist_camera_is_not_a_third_person_camera():
    card = registry.load("nyu_door_opening_surprising_effectiveness")
    assert reason(card=card, cameras={key: Span(BYTES, 0, 100) for key in card.cameras}) == "no_third_person_camera"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("too_shrt: 3", "Did you mean 'too_short'"),
        ("too_short: 0", "too_short"),
        ("idle: 1.5", "idle"),
        ("idle_rule: libreo", "Did you mean 'libero'"),
        ("duplicate: drop", "duplicate"),
        ("limits: {idl: 3}", "limits: unknown criterion 'idl'"),
        ("preset: loose", "preset: unknown preset 'loose'"),
        ("- 1", "expected a mapping of criteria"),
        ("too_short: 9\ntoo_long: 5", "too_long 5 is below"),
    ],
)
def test_a_wrong_criteria_file_is_refused(tmp_path: Path, text: str, message: str):
    file = tmp_path / "criteria.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_criteria(file)
    assert str(file) in str(caught.value)


def test_a_criteria_file_is_read(tmp_path: Path):
    file = tmp_path / "criteria.yaml"
    file.write_text("duplicate: true\nidle: 0.8\nno_language: false\naction_outlier: 3\n")
    assert read_criteria(file) == Criteria(duplicate=True, idle=0.8, no_language=False, action_outlier=3)
    file.write_text("")
    assert read_criteria(file) == read_criteria(None) == Criteria()


def test_only_criteria_that_need_the_source_scan_again():
    one = Criteria().of_the_scan()
    assert (
        Criteria(duplicate=True, action_outlier=2.0, allow_leak=True, too_short=7, no_language=False).of_the_scan()
        == one
    )
    assert all(
        Criteria(**{name: value}).of_the_scan() != one
        for name, value in {"black_level": 3, "bad_image": True, "drop_idle_frames": "droid"}.items()
    )


def filtered(tmp_path: Path, episodes: list[Any], criteria: Criteria) -> list[dict[str, Any]]:
    """Rows of a one-shard data set."""
    if not (tmp_path / "source").exists():
        bridge.write(tmp_path / "source", episodes={"train": episodes}, shards=1)
    run_filter(tmp_path / "source", tmp_path / "index", FilterOptions(criteria=criteria, workers=1, progress=False))
    return pq.ParquetFile(next((tmp_path / "index").rglob("*.parquet"))).read().to_pylist()


def with_frames(seed: int, **cameras: Any) -> dict[str, Any]:
    made = bridge.episode(seed)
    made["steps"]["observation"].update(cameras)
    return made


BLACK = [np.zeros((16, 16, 3), np.uint8)] * 8


def test_cameras_with_black_frames_do_not_count(tmp_path: Path):
    dark = {f"image_{i}": BLACK for i in range(4)}
    empty = {f"image_{i}": [b""] * 8 for i in range(4)}
    episodes = [
        with_frames(1), with_frames(2, **dark), with_frames(3, **{**dark, "image_1": [bridge.colour(9, 9, 1)] * 8}),
        with_frames(4, **empty),
    ]  # fmt: skip
    expected = [None, "no_third_person_camera", None, "no_third_person_camera"]
    assert [row["reason"] for row in filtered(tmp_path, episodes, Criteria())] == expected
    blind = filtered(tmp_path, episodes, Criteria(black_level=0))
    assert [row["reason"] for row in blind] == [None] * 4


def test_undecodable_images_are_dropped_on_request_only(tmp_path: Path):
    episodes = [with_frames(1), with_frames(2, image_1=[b"\xff\xd8 damaged"] * 8)]
    assert [row["reason"] for row in filtered(tmp_path, episodes, Criteria())] == [None, None]
    checked = filtered(tmp_path, episodes, Criteria(bad_image=True))
    assert [row["reason"] for row in checked] == [None, "bad_image"]


def test_idle_frames_are_removed_with_their_images(tmp_path: Path):
    made = bridge.episode(1, 8)
    state = made["steps"]["observation"]["state"]
    state[3:5] = state[2]  # steps 2 and 3 are idle
    made["steps"]["action"][:, 6] = 1
    (whole,) = filtered(tmp_path, [made], Criteria())
    (cut,) = filtered(tmp_path, [made], Criteria(drop_idle_frames="libero"))
    assert (whole["frame_index"], cut["frame_index"]) == ([1, 2, 3, 4, 5, 6], [1, 4, 5, 6])
    assert (cut["num_steps"], cut["source_steps"]) == (4, 8)
    assert cut["action"] == [whole["action"][i] for i in (0, 3, 4, 5)]
    whole_frames, cut_frames = dict(whole["cameras"])["primary"], dict(cut["cameras"])["primary"]
    assert cut_frames == [whole_frames[i] for i in (0, 3, 4, 5)]
    assert cut["metrics"]["idle_share"] == 0
