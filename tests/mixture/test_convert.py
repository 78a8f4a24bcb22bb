from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from oxe_curate.errors import ConfigError
from oxe_curate.mixture import convert, published
from oxe_curate.mixture.members import members
from oxe_curate.mixture.spec import BoundsSpec, Mixture, MixtureEntry, read_mixture

SOUP = published.load_published("oxe_magic_soup_plus")
FOUND = members(SOUP)


@settings(deadline=None)
@given(st.lists(st.floats(1e-3, 100), min_size=27, max_size=27), st.sampled_from(["shares", "epochs"]))
def test_round_trip(weights: list[float], unit: convert.WeightUnit) -> None:
    mixture = convert.with_weights(SOUP, weights)
    found = [replace(member, entry=entry) for member, entry in zip(FOUND, mixture.datasets, strict=True)]
    pass_ = sum(weights[i] * m.steps * 0.95 for i, m in enumerate(found) if m.steps)
    values = convert.quantities(mixture, found, unit, samples=10**7)
    back = convert.with_quantities(mixture, found, values, unit, samples=pass_)
    assert [e.weight for e in back.datasets] == pytest.approx(weights, rel=1e-9)


def test_shares_give_weights_of_at_most_one() -> None:
    back = convert.with_quantities(SOUP, FOUND, convert.quantities(SOUP, FOUND, "shares"), "shares")
    assert max(e.weight for e in back.datasets) == 1.0
    assert back.datasets[0].weight == pytest.approx(0.54087122203 / 3)


def test_epochs_of_one_pass_are_the_weights() -> None:
    values = convert.quantities(SOUP, FOUND, "epochs")
    assert values["taco_play"] == pytest.approx(2.0)
    assert convert.with_quantities(SOUP, FOUND, values, "epochs").datasets[3].weight == pytest.approx(2.0)


def test_the_text_can_be_read_again(tmp_path: Path) -> None:
    mixture = Mixture(
        name="mine: 1",
        datasets=(
            MixtureEntry(name="viola", weight=0.1),
            MixtureEntry(name="yes", weight=1e-7, splits=("train", "val"), swap_channels=False),
        ),
        bounds=BoundsSpec(low=0.05),
        chunk=8,
    )
    path = tmp_path / "m.yaml"
    path.write_text(convert.to_text(mixture, {"viola": "first\nsecond"}, "Proposed\n\nfor a test"))
    assert read_mixture(path) == mixture
    assert "  # second\n  - name: viola\n    weight: 0.1\n" in path.read_text()
    assert "validation" not in path.read_text()


def test_unknown_sizes_and_invalid_files_are_rejected(tmp_path: Path) -> None:
    mixture = Mixture(name="m", datasets=(MixtureEntry(name="rh20t", weight=1.0),))
    with pytest.raises(ConfigError, match="number of steps of 'rh20t' is unknown"):
        convert.quantities(mixture, members(mixture), "shares")
    with pytest.raises(ConfigError, match="'kuka' is not in both"):
        convert.with_quantities(mixture, members(mixture), {"kuka": 1.0, "rh20t": 1.0}, "weights")
    path = tmp_path / "s.yaml"
    for text in ("datasets: []", "[]", "viola: yes", "viola: -1", "viola: .inf"):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"s\.yaml"):
            convert.read_quantities(path, "shares")
    path.write_text(yaml.safe_dump({"viola": 3, "toto": 1}))
    assert convert.read_quantities(path, "shares")[1] == {"toto": 1.0, "viola": 3.0}
