import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from oxe_curate.cli.mixture import mixture_app
from oxe_curate.errors import ConfigError, DataError
from oxe_curate.filter.pipeline import FilterOptions, run_filter
from oxe_curate.index.store import Index
from oxe_curate.mixture import proxy
from oxe_curate.mixture.propose import propose
from oxe_curate.mixture.spec import Mixture, MixtureEntry, read_mixture
from oxe_curate.mixture.survey import survey
from tests.mixture.sets import episode, flat_image, index_of

SHORT = proxy.ProxySettings(steps=4, batch=12, width=8)
TASKS = ("open the drawer", "close the drawer", "pick up the cup", "wipe the table", "push the block", "turn the tap")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """A varied data set, a narrow one, and one that repeats a single scene and task."""
    rng = np.random.default_rng(0)
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (0, 250, 250), (250, 250, 250)]
    move = rng.uniform(-0.1, 0.1, (8, 6))
    varied = [
        episode(task, flat_image(colour, i), rng.uniform(-0.1, 0.1, (8, 6)))
        for i, (task, colour) in enumerate(zip(TASKS, colours, strict=True))
    ]
    narrow = [episode(TASKS[i % 2], flat_image((90, 90, 90)), rng.uniform(-0.1, 0.1, (8, 6))) for i in range(6)]
    same = [episode(TASKS[0], flat_image((90, 90, 90)), move)] * 6
    return index_of(
        tmp_path_factory.mktemp("propose"),
        {"bridge_dataset": ("1.0.0", varied), "bridge_v2": ("1.0.0", narrow), "bridge_data_v2": ("1.0.0", same)},
    )


def test_survey(index: Index) -> None:
    varied, narrow, same = (survey(index, name) for name in ("bridge_dataset", "bridge_v2", "bridge_data_v2"))
    assert (varied.episodes, varied.steps, varied.median_steps, varied.tasks) == (6, 48, 8, 6)
    assert varied.effective_tasks == pytest.approx(6)
    assert varied.effective_scenes > 5.5
    assert narrow.effective_tasks == pytest.approx(2)
    assert narrow.effective_scenes == pytest.approx(1)
    assert varied.duplicates == narrow.duplicates == 0
    assert same.duplicates == pytest.approx(5 / 6)
    assert survey(index, "bridge_dataset", sample=2).sampled == 2
    with pytest.raises(ConfigError, match="has no kept episode in val"):
        survey(index, "bridge_dataset", ("val",))


def test_diversity_prefers_varied_data_and_removes_repetitive_data(index: Index) -> None:
    result = propose(index)
    weight = {row.name: row.weight for row in result.rows}
    assert weight["bridge_data_v2"] is None
    assert (weight["bridge_dataset"] or 0) > 1 > (weight["bridge_v2"] or 0)
    assert [e.name for e in result.mixture.datasets] == ["bridge_dataset", "bridge_v2"]
    assert sum(e.weight * 48 for e in result.mixture.datasets) == pytest.approx(96, rel=1e-3)
    assert {c.name: c.status for c in result.change.changes}["bridge_data_v2"] == "removed"
    assert propose(index) == result


def test_weights_of_data_sets_outside_the_index_are_kept(index: Index) -> None:
    entries = (("viola", 2.0), ("bridge_dataset", 0.5), ("bridge_v2", 0.5))
    current = Mixture(name="mine", datasets=tuple(MixtureEntry(name=n, weight=w) for n, w in entries), chunk=8)
    result = propose(index, current)
    assert result.absent == ("viola",)
    new = {e.name: e.weight for e in result.mixture.datasets}
    assert new["viola"] == 2.0
    assert 48 * (new["bridge_dataset"] + new["bridge_v2"]) == pytest.approx(48, rel=1e-3)  # together as before
    assert result.mixture.chunk == 8
    assert result.rows[0].current == 0.5
    with pytest.raises(ConfigError, match="no data set of mine is in the index"):
        propose(index, Mixture(name="mine", datasets=current.datasets[:1]))


def test_command(index: Index, tmp_path: Path) -> None:
    out = tmp_path / "proposed.yaml"
    arguments = ["propose", "--index", str(index.folder), "--out", str(out), "-q"]
    result = CliRunner().invoke(mixture_app, arguments)
    assert result.exit_code == 0, result.exception
    assert "- bridge_data_v2 is removed, for lack of variety: 6 episodes of 8 steps with 1 task" in " ".join(
        result.stdout.split()
    )
    assert [e.name for e in read_mixture(out).datasets] == ["bridge_dataset", "bridge_v2"]
    assert "# bridge_dataset is drawn" in out.read_text()
    assert "# bridge_data_v2 is removed" in out.read_text()
    assert isinstance(CliRunner().invoke(mixture_app, arguments).exception, ConfigError)
    data = json.loads(CliRunner().invoke(mixture_app, [*arguments[:3], "-q", "--json"]).stdout)
    tasks = {row["name"]: row["numbers"]["tasks"] for row in data["rows"]}
    assert tasks == {"bridge_dataset": 6, "bridge_v2": 2, "bridge_data_v2": 1}


def test_proxy_over_an_index(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr(proxy, "ProxySettings", lambda: SHORT)
    result = propose(index, method="proxy", seed=3)
    assert [row.name for row in result.rows] == ["bridge_data_v2", "bridge_dataset", "bridge_v2"]
    assert sum(e.weight * 48 for e in result.mixture.datasets) == pytest.approx(144, rel=1e-2)
    assert all(row.numbers["examples"] == 48 for row in result.rows)
    assert "33.3 % of the samples by size" in result.rows[0].reason
    assert " in 2 runs)" in result.rows[0].reason
    assert propose(index, method="proxy", seed=3) == result


def test_real_bridge_frames(shared: Path, tmp_path: Path) -> None:
    options = FilterOptions(datasets=("bridge_dataset",), workers=1, progress=False)
    run_filter(shared / "data" / "rlds", tmp_path, options)
    index = Index.open(tmp_path)
    train = survey(index, "bridge_dataset")
    assert (train.episodes, train.steps, train.duplicates) == (25, 200, 0)
    assert 10 < train.effective_scenes < 20
    both = survey(index, "bridge_dataset", ("train", "val"))
    assert both.duplicates == 0.5  # the two splits contain the same episodes
    assert both.effective_scenes == pytest.approx(train.effective_scenes)


def test_an_undecodable_frame_is_reported(index: Index, tmp_path: Path) -> None:
    image = flat_image((100, 120, 140))
    broken = index_of(tmp_path, {"bridge_dataset": ("1.0.0", [episode("go", image, np.full((4, 6), 0.1))])})
    (path,) = (tmp_path / "raw" / "bridge_dataset" / "1.0.0").glob("*tfrecord*")
    path.write_bytes(path.read_bytes().replace(b"\xff\xd8\xff", b"\xff\xd8\x00"))
    with pytest.raises(
        DataError, match=r"bridge_dataset/1.0.0/train/00000/00000: cannot decode a frame of its primary camera"
    ):
        survey(broken, "bridge_dataset")
