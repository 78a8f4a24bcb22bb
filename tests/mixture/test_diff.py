from dataclasses import replace

import pytest

from oxe_curate.mixture import published
from oxe_curate.mixture.diff import Difference, MixtureChange, diff
from oxe_curate.mixture.members import members
from oxe_curate.mixture.spec import Mixture, MixtureEntry, TextEntry


def compare(before: Mixture, after: Mixture) -> Difference:
    return diff((before, members(before)), (after, members(after)))


def test_magic_soup_plus_and_its_second_stage() -> None:
    result = compare(
        published.load_published("oxe_magic_soup_plus"), published.load_published("oxe_magic_soup_plus_minus")
    )
    by_name = {change.name: change for change in result.changes}
    assert by_name["fractal20220817_data"].weight == (0.54087122203, 1.0)
    assert by_name["fractal20220817_data"].factor == pytest.approx(1.8488689)
    assert {n for n, c in by_name.items() if c.status == "removed"} == {"language_table", "droid"}
    assert (result.counted("changed"), result.counted("same"), result.counted("added")) == (1, 24, 0)
    before, after = by_name["kuka"].share
    assert before is not None
    assert after is not None
    assert after > before


def test_a_data_set_is_the_same_under_any_name() -> None:
    result = compare(published.load_published("openvla_bridge"), published.load_published("octo_bridge"))
    assert result.changes == (MixtureChange("bridge_dataset", "same", (1.0, 1.0), (1.0, 1.0)),)


def test_added_and_other_keys() -> None:
    before = Mixture(name="a", datasets=(MixtureEntry(name="viola", weight=1.0),))
    more = (*before.datasets, MixtureEntry(name="rh20t", weight=2.0))
    after = replace(before, name="b", datasets=more, chunk=8, bounds=replace(before.bounds, low=0.0))
    result = compare(before, after)
    assert [c.status for c in result.changes] == ["same", "added"]
    assert result.changes[1] == MixtureChange("rh20t", "added", (None, 2.0), (None, None))
    assert result.settings == (("chunk", 1, 8), ("bounds.low", 0.01, 0.0))


def test_texts_are_compared_source_by_source() -> None:
    vqa, web = TextEntry(name="vqa", path="vqa", weight=1.0), TextEntry(name="web", path="web", weight=2.0)
    before = Mixture(name="a", datasets=(MixtureEntry(name="viola", weight=1.0),), texts=(vqa,))
    result = compare(before, replace(before, texts=(replace(vqa, weight=0.5), web), window=12, stride=6))
    settings = {key: values for key, *values in result.settings}
    assert settings.pop("window") == [1, 12]
    assert settings.pop("stride") == [1, 6]
    assert settings.pop("texts.vqa.weight") == [1.0, 0.5]
    assert settings.pop("texts.web.path") == [None, "web"]
    assert {key.split(".")[1] for key in settings} == {"web"}


def test_accepted_findings_are_settings() -> None:
    from oxe_curate.mixture.kinds import AcceptedFinding

    before = Mixture("a", (MixtureEntry("viola", 1.0),))
    after = Mixture("b", before.datasets, accept=(AcceptedFinding("licence", "asked", "viola"),))
    result = diff((before, members(before)), (after, members(after)))
    assert result.settings == (("accept.licence.viola", None, "asked"),)
