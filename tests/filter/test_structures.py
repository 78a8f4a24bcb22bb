"""Every known feature structure: a synthetic shard is written, read, standardised and screened."""

import json
from pathlib import Path

import numpy as np
import pytest

from oxe_curate import registry
from oxe_curate.errors import ConfigError
from oxe_curate.filter.plan import FilterOptions, plan_tasks
from oxe_curate.filter.scan import scan_shard
from oxe_curate.rlds.dataset import find
from oxe_curate.rlds.synthetic import write_dataset
from oxe_curate.storage import Folder
from tests import ROOT

SHARED = ROOT.parent / "shared" / "oxe" / "features"


def structures() -> list[str]:
    import os

    folder = Path(os.environ.get("OXE_CURATE_SHARED", SHARED.parents[1])) / "oxe" / "features"
    return sorted(p.stem for p in folder.glob("*.json") if p.stem != "index") or ["(none)"]


@pytest.mark.parametrize("name", structures())
def test_the_verdict_agrees_with_screening(shared: Path, tmp_path: Path, name: str) -> None:
    card = registry.load(name)
    write_dataset(tmp_path, name, "0.1.0", shared / "oxe/features" / f"{name}.json", 2, shards=1)
    (dataset,) = find(Folder.of(tmp_path))
    (task,) = plan_tasks([dataset], Folder.of(tmp_path / "index"), FilterOptions())
    table, summary, _ = scan_shard(task)
    assert summary.seen == 2
    assert summary.corrupt == []
    for row in table.to_pylist():
        # some collected structures lack the images or the text, and random flags may mark an episode as failed
        unlucky = {"no_third_person_camera", "no_language", "failed", "too_short"}
        if card.failed_criteria:
            assert row["reason"] in {*card.failed_criteria, "no_third_person_camera"}
        elif not card.recipes:
            assert row["reason"] in {"not_end_effector", "no_third_person_camera"}
        else:
            assert row["reason"] in {None, *unlucky, *({"not_finite"} if "quat" in str(card.recipes) else ())}
        if row["action"] is not None:
            assert np.isfinite(row["action"]).all() or "not_finite" in row["applies"]
            for role, frames in row["cameras"]:
                assert role in dict(row["camera_spans"])
                assert len(frames) == len(row["action"])


def test_a_card_that_does_not_match_features_json_is_named(shared: Path, tmp_path: Path) -> None:
    structure = json.loads((shared / "oxe/features/jaco_play.json").read_text())
    write_dataset(tmp_path, "bridge_dataset", "0.1.0", structure, 1, shards=1)
    (dataset,) = find(Folder.of(tmp_path))
    with pytest.raises(ConfigError, match="observation/state") as caught:
        plan_tasks([dataset], Folder.of(tmp_path / "index"), FilterOptions())
    assert "bridge_orig" in str(caught.value)


def test_the_documented_recipe_of_one_data_set(tmp_path: Path, shared: Path) -> None:
    for name in (kitchen := "ucsd_kitchen_dataset_converted_externally_to_rlds", "jaco_play"):
        write_dataset(tmp_path, name, "0.1.0", shared / "oxe/features" / f"{name}.json", 1, shards=1)
    datasets = find(Folder.of(tmp_path))
    tasks = plan_tasks(datasets, Folder.of(tmp_path / "index"), FilterOptions(recipes=(f"{kitchen}=documented",)))
    assert [(t.card.name, t.recipe) for t in tasks] == [("jaco_play", "openvla"), (kitchen, "documented")]
    with pytest.raises(ConfigError, match="card 'jaco_play' has no recipe 'documented'"):
        plan_tasks(datasets, Folder.of(tmp_path / "index"), FilterOptions(recipes=("documented",)))
