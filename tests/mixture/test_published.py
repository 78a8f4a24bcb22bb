import re
from pathlib import Path

import pytest
import yaml

from oxe_curate import registry
from oxe_curate.errors import ConfigError
from oxe_curate.mixture import published
from oxe_curate.mixture.members import members
from oxe_curate.mixture.shares import breakdown


@pytest.mark.parametrize("name", published.published_mixtures())
def test_every_published_mixture_has_known_data_sets(name: str) -> None:
    mixture = published.load_published(name)
    assert mixture.name == name
    found = [registry.load(entry.name).name for entry in mixture.datasets]
    assert len(set(found)) == len(found)
    assert published.find_published(name).source


def test_the_list_of_published_mixtures() -> None:
    assert len(published.published_mixtures()) == 30
    sizes = {
        n: len(published.load_published(n).datasets)
        for n in published.published_mixtures()
        if "soup" in n or "rtx" in n
    }
    assert sizes == {
        "octo_oxe_flex_act_soup": 32, "octo_oxe_magic_soup": 25, "octo_rtx": 11, "octo_rtx_franka": 25,
        "openvla_oxe_magic_soup": 23, "openvla_oxe_magic_soup_plus": 27, "openvla_oxe_magic_soup_plus_minus": 25,
        "openvla_rtx": 10, "openvla_rtx_franka": 24,
    }  # fmt: skip


def test_weights_equal_the_collected_facts(shared: Path) -> None:
    facts = yaml.safe_load((shared / "oxe" / "facts.yaml").read_text())["datasets"]
    expected: dict[str, dict[str, float]] = {}
    for card, entry in facts.items():
        for key, weight in (entry.get("mixture_weights") or {}).items():
            project, mixture = re.sub(r"\(.*\)", "", key).split(":")
            expected.setdefault(f"{project}_{mixture}", {})[card] = float(weight)
    expected["octo_oxe_flex_act_soup"]["aloha_mobile"] = 2.0  # under another name in the facts
    assert len(expected) == 24
    for name, weights in expected.items():
        found = {registry.load(entry.name).name: entry.weight for entry in published.load_published(name).datasets}
        assert found == weights, name


def test_magic_soup_plus_has_the_shares_of_openvla() -> None:
    mixture = published.load_published("oxe_magic_soup_plus")
    share = {row.name: round(100 * row.share, 2) for row in breakdown(mixture, members(mixture)).rows if row.share}
    assert share["fractal20220817_data"] == 13.33
    assert (share["droid"], share["bc_z"], share["language_table"], share["bridge_orig"]) == (10.56, 7.83, 4.59, 13.90)


def test_rt1x_has_the_shares_of_its_colab() -> None:
    colab = {
        "fractal20220817_data": 150, "bridge_orig": 50, "taco_play": 5, "jaco_play": 20, "berkeley_cable_routing": 20,
        "roboturk": 10, "viola": 3, "berkeley_autolab_ur5": 5, "toto": 5,
    }  # fmt: skip
    mixture = published.load_published("rt1x")
    for row in breakdown(mixture, members(mixture)).rows:
        assert row.share == pytest.approx(colab[row.name] / sum(colab.values()), rel=1e-5)


def test_ambiguous_and_misspelled_names() -> None:
    assert published.find_published("oxe_magic_soup_plus").project == "OpenVLA"
    with pytest.raises(ConfigError, match="use octo_rtx or openvla_rtx"):
        published.load_published("rtx")
    with pytest.raises(ConfigError, match="Did you mean 'oxe_magic_soup_plus'"):
        published.load_published("oxe_magic_soup_pluss")


def test_a_file_comes_before_a_published_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert published.resolve_mixture("rt1x") == published.find_published("rt1x").path
    assert published.resolve_mixture("some/where.yaml") == Path("some/where.yaml")
    (tmp_path / "rt1x").write_text("")
    monkeypatch.chdir(tmp_path)
    assert published.resolve_mixture("rt1x") == Path("rt1x")
