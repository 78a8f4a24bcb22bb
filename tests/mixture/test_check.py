from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from oxe_curate import registry
from oxe_curate.index.index_json import Summary
from oxe_curate.index.store import Index
from oxe_curate.mixture import card_facts
from oxe_curate.mixture.check import Problem, check_file, check_text, has_errors
from oxe_curate.mixture.lines import find_lines
from oxe_curate.mixture.published import find_published
from oxe_curate.strict_yaml import load_yaml
from tests.mixture.sets import episode, flat_image, index_of


def found(text: str, **options: object) -> dict[str, list[Problem]]:
    result: dict[str, list[Problem]] = {}
    for finding in check_text(text, "m.yaml", **options):  # type: ignore[arg-type]
        result.setdefault(finding.code, []).append(finding)
    return result


def entries(*names: str, weight: float = 1.0) -> str:
    return "name: m\ndatasets:\n" + "".join(f"  - name: {name}\n    weight: {weight}\n" for name in names)


def test_a_good_mixture_has_only_a_licence_warning() -> None:
    assert list(found(entries("bridge_orig", "fractal20220817_data"))) == ["licence"]


def test_unknown_name() -> None:
    (finding,) = found(entries("bridge_orig", "bridge_orgi"))["unknown_dataset"]
    assert (finding.level, finding.line, finding.key) == ("error", 5, "datasets.1")
    assert "Did you mean 'bridge_orig'" in finding.message


def test_duplicates_by_name_and_by_alias() -> None:
    by_name, by_alias = found(entries("kuka", "bridge_orig", "kuka", "bridge_dataset"))["duplicate"]
    assert (by_name.line, by_name.message) == (7, "duplicate data set 'kuka', first given on line 3")
    assert (by_alias.line, by_alias.dataset) == (9, "bridge_dataset")
    assert "is the same data set as 'bridge_orig', first given on line 5" in by_alias.message


def test_a_published_mixture_is_checked_too() -> None:
    findings = check_file(find_published("oxe_magic_soup_plus").path)
    assert has_errors(findings)
    (failing,) = [f for f in findings if f.level == "error"]
    assert (failing.code, failing.dataset) == ("fails_criterion", "dobbe")
    lines = find_published("oxe_magic_soup_plus").path.read_text().splitlines()
    assert failing.line is not None
    assert "name: dobbe" in lines[failing.line - 1]


def test_an_open_verdict_is_a_warning() -> None:
    (finding,) = found(entries("bridge_orig", "plex_robosuite"))["criterion_open"]
    assert finding.level == "warning"
    assert "conditional" in finding.message


def test_epochs_of_a_training() -> None:
    text = entries("bridge_orig", "viola", weight=1.0).replace(
        "name: viola\n    weight: 1.0", "name: viola\n    weight: 30"
    )
    result = found(text, samples=1_000_000)
    assert [f.dataset for f in result["few_epochs"]] == ["bridge_orig"]
    assert "many_epochs" not in result
    result = found(text, samples=10_000_000)
    (many,) = result["many_epochs"]
    assert (many.dataset, many.line, many.key) == ("viola", 6, "datasets.1.weight")
    assert "few_epochs" not in result
    assert not {"few_epochs", "many_epochs"} & set(found(text))


def test_unknown_sizes_are_reported() -> None:
    (finding,) = found(entries("viola", "rh20t"), samples=1000)["size_unknown"]
    assert "rh20t" in finding.message


def test_rates_language_gripper_and_licences() -> None:
    result = found(entries("fractal20220817_data", "toto", "austin_buds_dataset_converted_externally_to_rlds"))
    assert "a factor of 10: fractal20220817_data 3 Hz, toto 30 Hz" in result["control_rates"][0].message
    assert [f.dataset for f in result["gripper_polarity"]] == ["austin_buds_dataset_converted_externally_to_rlds"]
    assert len(result["licence"]) == 1
    assert "3 of 3" in result["licence"][0].message
    assert [f.dataset for f in found(entries("viola", "gnm_dataset"))["no_language"]] == ["gnm_dataset"]
    assert "control_rates" not in found(entries("bridge_orig", "viola"))  # 5 and 20 Hz


def test_gripper_polarity_and_broken_versions_of_cards() -> None:
    polarity = {name: card_facts.gripper_polarity(card) for name, card in registry.load_all().items()}
    for name in ("bridge_orig", "fractal20220817_data", "kuka", "libero_10_no_noops", "bc_z", "toto", "viola", "rh20t"):
        assert polarity[name] == "documented", name
    sailor = "austin_sailor_dataset_converted_externally_to_rlds"
    for name in ("fmb_dataset", "ucsd_pick_and_place_dataset_converted_externally_to_rlds", "cmu_stretch", sailor):
        assert polarity[name] == "undocumented", name
    assert polarity["language_table"] == polarity["berkeley_cable_routing"] == "no gripper"
    broken = {n: card_facts.last_good_version(c) for n, c in registry.load_all().items()}
    assert {n: v for n, v in broken.items() if v} == {"bc_z": "0.1.0"}
    card = registry.load("bc_z")
    assert not card_facts.is_broken(card, "0.1.0")
    assert card_facts.is_broken(card, "0.1.1")
    assert card_facts.is_broken(card, "1.0.0")


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("name: m\ndatasets:\n  - name: [viola\n", 4, "expected"),
        ("name: m\ndatasets:\n  - {name: viola, weight: 0}\n", 3, "greater than 0"),
        ("name: m\ndatasets:\n  - name: viola\n    wieght: 1\n    weight: 1\n", 4, "Did you mean 'weight'"),
        ("name: m\ndatasets:\n  - name: viola\n", 3, "datasets.0.weight"),
        ("name: m\ndatasets: []\n", 2, "datasets is empty"),
        ("name: m\nname: n\ndatasets: []\n", 2, "duplicate key"),
        (entries("viola") + "bounds: {low: 2}\n", 5, "bounds.low"),
        ("", None, "expected a mapping"),
    ],
)
def test_a_schema_error_is_a_finding_with_a_line(text: str, line: int | None, words: str) -> None:
    (finding,) = check_text(text, "m.yaml")
    assert (finding.level, finding.code, finding.line) == ("error", "invalid", line)
    assert words in finding.message
    assert "m.yaml" not in finding.message


def test_a_schema_error_after_a_duplicate_has_the_right_line() -> None:
    result = found(entries("viola", "viola") + "  - name: toto\n    weight: -1\n")
    assert (result["invalid"][0].line, result["duplicate"][0].line) == (8, 5)
    assert "datasets.2.weight" in result["invalid"][0].message


def test_line_numbers_of_unusual_files() -> None:
    text = "\ufeff# c\r\nname: m\r\ndatasets: [{name: a, weight: 1},\r\n  {name: b}]\r\n"
    lines = find_lines(load_yaml(text, "m.yaml")[2])
    assert (lines.of("datasets.0.weight"), lines.of("datasets.1.name"), lines.of("datasets.1.weight")) == (3, 4, 4)
    assert lines.of("nowhere") is None


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    move = np.full((4, 6), 0.01)
    some = [episode("open the door", flat_image((90, 90, 200)), move)] * 3
    silent = [episode("", flat_image((90, 90, 90)), move)] * 2
    return index_of(
        tmp_path_factory.mktemp("sets"),
        {"bridge_dataset": ("1.0.0", {"train": some, "val": some[:1]}), "bridge_data_msr": ("0.0.1", silent)},
    )


def test_sizes_come_from_the_index_and_its_splits(index: Index) -> None:
    result = found(entries("bridge_orig", "viola"), index=index)
    assert "1 of 2 data sets are not in the index: viola" in result["not_in_index"][0].message
    assert not {"empty", "no_split"} & set(result)
    result = found(entries("bridge_orig") + "    splits: [test]\n", index=index)
    assert (result["no_split"][0].level, result["no_split"][0].line) == ("error", 3)


def test_a_split_that_repeats_the_train_split(index: Index) -> None:
    (finding,) = found(entries("bridge_orig") + "    splits: [train, val]\n", index=index)["leak"]
    assert (finding.level, finding.line) == ("error", 3)
    assert "1 episodes of its split 'val' are copies" in finding.message
    assert finding.advice.startswith("Leave the split out")
    assert "leak" not in found(entries("bridge_orig"), index=index)


def test_an_empty_data_set_is_an_error(index: Index) -> None:
    (finding,) = found(entries("bridge_orig", "bridge_data_msr"), index=index)["empty"]
    assert finding.level == "error"
    assert "no_language: 2" in finding.message


def test_two_names_of_one_data_set_in_the_index(index: Index) -> None:
    assert len(found(entries("bridge_orig", "bridge_dataset"), index=index)["duplicate"]) == 1


def test_broken_versions(tmp_path: Path, index: Index) -> None:
    assert found(entries("bc_z"))["version_open"][0].level == "warning"
    empty = replace(index.datasets["bridge_dataset"], card="bc_z", summary=Summary())
    held = Index(index.folder, index.source, {"bc_z": empty}, {})
    (finding,) = found(entries("bc_z"), index=held)["broken_version"]
    assert finding.level == "error"
    assert "has version 1.0.0" in finding.message
    held.datasets["bc_z"] = replace(held.datasets["bc_z"], version="0.1.0")
    assert not {"broken_version", "version_open"} & set(found(entries("bc_z"), index=held))


def test_a_text_source_that_cannot_be_read(tmp_path: Path) -> None:
    text = entries("bridge_orig") + "texts:\n  - name: vqa\n    weight: 1\n    path: vqa.parqet\n"
    pq.write_table(pa.table({"image": [b"x"], "question": ["a"], "answr": ["b"]}), tmp_path / "vqa.parquet")
    assert "no_text_source" not in found(text)  # a relative path needs a base folder
    (finding,) = found(text, base=tmp_path)["no_text_source"]
    assert (finding.level, finding.key, finding.line, finding.dataset) == ("error", "texts.0.path", 8, "vqa")
    assert "no such file or folder. Did you mean 'vqa.parquet'?" in finding.message
    (tmp_path / "m.yaml").write_text(text.replace("parqet", "parquet"))
    (finding,) = [f for f in check_file(tmp_path / "m.yaml") if f.code == "no_text_source"]
    assert "has a column 'question' but no 'answer'. Did you mean 'answr'?" in finding.message
    pq.write_table(pa.table({"image": [b"x"], "question": ["a"], "answer": ["b"]}), tmp_path / "vqa.parquet")
    assert not has_errors(check_file(tmp_path / "m.yaml"))
