"""docs/curation.md names every criterion that compares an episode with its data set."""

from oxe_curate.filter.criteria import MEASURED
from tests import ROOT


def test_every_measure_is_in_the_guide() -> None:
    guide = (ROOT / "docs/curation.md").read_text()
    assert [name for name in MEASURED if f"`{name}`" not in guide] == []
