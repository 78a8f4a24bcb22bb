import subprocess
import sys

import pytest

from oxe_curate import registry
from oxe_curate.errors import ConfigError

OWN = """
name: {name}
robot: Franka
arms: single
action_encoding: EEF_POS
why: mine
aliases: [{aliases}]
cameras:
  observation/front: {{role: primary}}
language: {{keys: [language_instruction]}}
recipes:
  openvla:
    xyz: [{{src: action, cols: [0, 3]}}]
    rpy: [{{src: action, cols: [3, 6]}}]
    gripper: [{{src: action, cols: [6, 7]}}]
"""


@pytest.fixture
def folder(tmp_path):
    def add(name, aliases="", text=OWN):
        (tmp_path / f"{name}.yaml").write_text(text.format(name=name, aliases=aliases))
        return tmp_path

    return add


def test_load_by_name_and_alias():
    for name in ("bridge_dataset", "bridge_orig", "bridge_v2", "bridge_data_v2"):
        assert registry.load(name).name == "bridge_orig"
    assert registry.load("bridge").name == "bridge_oxe"
    assert registry.load("robo_set") is registry.load("roboset")


@pytest.mark.parametrize(
    ("name", "suggestion"), [("bridge_orgi", "bridge_orig"), ("bridge_datset", "bridge_dataset"), ("kuk", "kuka")]
)
def test_an_unknown_name_suggests_the_closest(name, suggestion):
    with pytest.raises(ConfigError, match=f"no card for data set '{name}'. Did you mean '{suggestion}'"):
        registry.load(name)
    with pytest.raises(ConfigError, match="no card for data set ''"):
        registry.load("")


def test_a_users_cards_come_first(folder):
    cards = folder("kuka", "rt_1")
    assert registry.load("kuka", cards).why == "mine"
    assert registry.load("kuka").why != "mine"
    assert registry.load("rt_1", cards).name == "kuka"  # ours has it as an alias of fractal
    assert len(registry.load_all(cards)) == len(registry.load_all())
    assert set(registry.names(folder("my_arm"))) == {*registry.names(), "my_arm"}


def test_an_alias_in_two_of_the_users_cards_is_an_error(folder):
    folder("one", "shared_alias")
    with pytest.raises(ConfigError, match="the alias 'shared_alias' is ambiguous; it is in the cards one, two"):
        registry.load("shared_alias", folder("two", "shared_alias"))


def test_a_wrong_card_of_the_user_names_its_file(folder):
    cards = folder("wrong", text=OWN.replace("role: primary", "role: prime"))
    with pytest.raises(ConfigError, match=r"wrong.yaml: .*role: unknown value 'prime'. Did you mean 'primary'"):
        registry.load("wrong", cards)
    with pytest.raises(ConfigError, match="folder of cards not found"):
        registry.load("kuka", cards / "absent")


def test_table_rows():
    rows = registry.table()
    assert [row["name"] for row in rows] == registry.names()
    kuka = next(row for row in rows if row["name"] == "kuka")
    assert kuka == {
        "name": "kuka", "verdict": "pass", "failed": [], "arms": "single", "robot": "Kuka iiwa",
        "reason": "fixed over-the-shoulder camera; single arm; EEF delta; keep success==True only",
        "cameras": {"primary": ["observation/image"]}, "action_encoding": "EEF_POS", "control_hz": 10.0,
        "simulated": False, "episodes": 580392, "bytes": round(778.02 * 2**30), "num_transitions": 2455879,
        "recipes": ["openvla"], "aliases": ["qt_opt", "rlds.kuka"],
    }  # fmt: skip


def test_table_filters():
    counts = {v: len(registry.table(verdict=v)) for v in ("pass", "fail", "conditional", "unknown")}
    assert counts == {"pass": 62, "fail": 27, "conditional": 5, "unknown": 4}
    assert all("wrist" in row["cameras"] for row in registry.table(role="wrist"))
    assert {row["arms"] for row in registry.table(arms="bimanual")} == {"bimanual"}
    assert {row["name"] for row in registry.table(text="BRIDGE_V2")} == {"bridge_orig"}
    assert registry.table(text="no robot is called this") == []


def test_table_refuses_unknown_filters():
    with pytest.raises(ConfigError, match=r"unknown verdict 'passed'. Did you mean 'pass'\?"):
        registry.table(verdict="passed")
    with pytest.raises(ConfigError, match="camera role 'rist'"):
        registry.table(role="rist")
    with pytest.raises(ConfigError, match="arms 'two'"):
        registry.table(arms="two")


def test_importing_the_registry_reads_no_card_and_one_name_reads_few():
    code = (
        "import sys; from oxe_curate import registry; assert 'pydantic' not in sys.modules;"
        "registry.names(); assert 'pydantic' not in sys.modules;"
        "registry.load('bridge_dataset'); print(registry._read.cache_info().currsize)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 4
