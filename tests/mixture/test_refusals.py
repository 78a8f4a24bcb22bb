"""`mixture check` calls an error exactly what `tokenize` refuses; findings are accepted by name, with a reason."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from oxe_curate.errors import CurateError
from oxe_curate.index.index_json import IndexJson
from oxe_curate.index.store import Index
from oxe_curate.mixture.check import Problem, check_file, check_text, has_errors
from oxe_curate.mixture.kinds import KINDS
from oxe_curate.mixture.show import problems_text
from oxe_curate.quality.findings import ACTION_FINDINGS
from oxe_curate.storage import Folder
from oxe_curate.tokenize.pipeline import TokenizeOptions, TokenizeResult, run_tokenize
from tests import ROOT
from tests.mixture.sets import episode, flat_image, index_of

NAME = "bridge_dataset"
BASE = "name: m\ndatasets:\n"


def moving(seed: int, steps: int = 12, scale: float = 0.01) -> np.ndarray:
    """float64 (steps, 6): smooth, and another path for each seed."""
    rng = np.random.default_rng(seed)
    return scale * np.cumsum(rng.normal(size=(steps, 6)), axis=0) / 3


def made(seed: int, count: int, text: str = "open the door") -> list:
    return [episode(text, flat_image((90, 90, 200), seed + i), moving(seed + i)) for i in range(count)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two names of Bridge with the same episodes, one of them a card's, an empty set, and a file of statistics."""
    root = tmp_path_factory.mktemp("refusals")
    train = made(0, 12)
    index_of(root, {
        NAME: ("1.0.0", {"train": train, "val": train[:2], "silent": made(70, 2, "")}),
        "bridge_oxe_copy": ("1.0.0", {"train": made(0, 12)}),
        "bridge_data_msr": ("0.0.1", {"train": made(80, 3, "")}),
    }, cards=cards(root))  # fmt: skip
    return root


def cards(root: Path) -> Path:
    """A card of the user's own, with Bridge's recipe."""
    from oxe_curate import registry

    folder = root / "cards"
    folder.mkdir()
    text = (registry.CARDS_DIR / "bridge_orig.yaml").read_text()
    text = text.replace("name: bridge_orig", "name: bridge_oxe_copy").replace("aliases:", "aliases: [mine]\n#")
    (folder / "bridge_oxe_copy.yaml").write_text(text)
    return folder


def entry(name: str = NAME, weight: str = "1", more: str = "") -> str:
    return f"  - {{name: {name}, weight: {weight}{more}}}\n"


def bounds_of(path: Path, name: str, scale: float = 1.0) -> str:
    row = {k: [scale * v] * 7 for k, v in (("mean", 0), ("std", 1), ("max", 1), ("min", -1), ("q01", -1), ("q99", 1))}
    path.write_text(json.dumps({name: {"action": row}}))
    return path.name


BAD = {
    "weight 1e300": entry(weight="1e300"), "weight true": entry(weight="true"), "weight text": entry(weight='"1.0"'),
    "weight inf": entry(weight=".inf"), "weight nan": entry(weight=".nan"), "weight negative": entry(weight="-1"),
    "weight zero": entry(weight="0"), "weight null": entry(weight="null"), "weight list": entry(weight="[1]"),
    "unknown name": entry("bridge_dataste"), "not in the index": entry() + entry("kuka"),
    "twice by name": entry() + entry(), "twice by alias": entry() + entry("bridge_orig"),
    "twice by content": entry() + entry("bridge_oxe_copy"),
    "no kept episode": entry("bridge_data_msr"), "no kept episode in the split": entry(more=", splits: [silent]"),
    "unknown split": entry(more=", splits: [tarin]"), "leak": entry(more=", splits: [train, val]"),
    "other recipe": entry(more=", recipe: documented"),
    "camera not on the card": entry() + "image: {cameras: [wrist]}\n",
    "unknown camera": entry() + "image: {cameras: [front]}\n",
    "bounds file missing": entry() + "bounds: {over: statistics.json}\n",
    "bounds mistyped": entry() + "bounds: {over: kep}\n",
    "bounds not JSON": entry() + "bounds: {over: broken.json}\n",
    "bounds of another set": entry() + "bounds: {over: other.json}\n",
    "bounds too narrow": entry() + "bounds: {over: narrow.json}\n",
    "bounds reversed": entry() + "bounds: {low: 0.9, high: 0.1}\n",
    "text source missing": entry() + "texts: [{name: vqa, path: vqa.parquet, weight: 1}]\n",
    "window true": entry() + "window: true\n", "validation text": entry() + 'validation: "0.5"\n',
    "unknown key": entry() + "widnow: 2\n", "no data set": "", "not YAML": "  - [\n",
    "accepts nothing that exists": entry() + "accept: [{finding: gripper_polariti, reason: known}]\n",
    "accepts what must be fixed": entry("kuka") + "accept: [{finding: not_in_index, reason: soon}]\n",
    "accepts without a reason": entry() + 'accept: [{finding: licence, reason: " "}]\n',
    "accepts for a stranger": entry() + "accept: [{finding: licence, dataset: viola, reason: known}]\n",
}  # fmt: skip
GOOD = {
    "plain": entry(), "alias": entry("bridge_v2", "0.5"), "the copy only": entry("bridge_oxe_copy"),
    "two cameras": entry() + "image: {cameras: [primary, secondary]}\n",
    "own bounds": entry() + "bounds: {over: all, low: 0, high: 1}\n",
    "bounds of a file": entry() + "bounds: {over: good.json}\n",
    "accepted copy": entry() + entry("mine") + "accept: [{finding: counted_twice, reason: it is a test}]\n",
    "accepted leak": entry(more=", splits: [train, val]") + "accept: [{finding: leak, reason: it is a test}]\n",
    "accepted bounds": entry() + "bounds: {over: narrow.json}\n"
    + f"accept: [{{finding: outside_bounds, dataset: {NAME}, reason: as the base model}}]\n",
}  # fmt: skip


def write(world: Path, text: str) -> Path:
    path = world / "m.yaml"
    path.write_text(BASE + text)
    bounds_of(world / "other.json", "viola")
    bounds_of(world / "narrow.json", "bridge_orig", 0.001)
    bounds_of(world / "good.json", NAME, 0.05)
    (world / "broken.json").write_text("{")
    return path


def tokenized(world: Path, path: Path, out: Path) -> TokenizeResult:
    return run_tokenize(path, world / "index", out, TokenizeOptions(workers=1, progress=False))


@pytest.mark.parametrize(("text", "bad"), [(t, True) for t in BAD.values()] + [(t, False) for t in GOOD.values()],
                         ids=[*BAD, *GOOD])  # fmt: skip
def test_check_reports_an_error_exactly_if_tokenize_refuses(text: str, bad: bool, world: Path, tmp_path: Path) -> None:
    path = write(world, text)
    found = check_file(path, Index.open(world / "index"))
    assert has_errors(found) == bad
    assert all(finding.code in KINDS for finding in found)
    if bad:
        with pytest.raises(CurateError):
            tokenized(world, path, tmp_path / "out")
        assert not (tmp_path / "out" / "manifest.json").exists()
    else:
        assert tokenized(world, path, tmp_path / "out").manifest["rows"]["train"]


def test_the_errors_of_the_bounds_and_the_copy_say_what_to_do(world: Path) -> None:
    def only(text: str) -> Problem:
        (found,) = [f for f in check_file(write(world, text), Index.open(world / "index")) if f.level == "error"]
        return found

    assert "Did you mean 'kept'?" in only(BAD["bounds mistyped"]).advice
    assert "no statistics of 'bridge_dataset' (or 'bridge_orig'," in only(BAD["bounds of another set"]).message
    copy = only(BAD["twice by content"])
    assert (copy.code, copy.line) == ("counted_twice", 4)
    assert "'bridge_oxe_copy' has 12 of the episodes of 'bridge_dataset' (100%)" in copy.message
    assert only(BAD["bounds too narrow"]).code == "outside_bounds"


def test_a_camera_that_the_data_lack_is_found_by_both(world: Path, tmp_path: Path) -> None:
    index = Index.open(world / "index")
    text = (world / "cards" / "bridge_oxe_copy.yaml").read_text()
    own = tmp_path / "cards"
    own.mkdir()
    (own / "bridge_oxe_copy.yaml").write_text(text.replace("image_2: {role: extra", "image_9: {role: wrist"))
    path = write(world, entry("bridge_oxe_copy") + "image: {cameras: [wrist]}\n")
    (found,) = [f for f in check_file(path, index, cards=own) if f.level == "error"]
    assert (found.code, found.key) == ("no_camera", "image.cameras")
    assert "has no frames of a wrist camera" in found.message
    with pytest.raises(CurateError, match="no frames of a wrist camera"):
        run_tokenize(path, world / "index", tmp_path / "out", TokenizeOptions(cards=own, workers=1, progress=False))


def test_bridge_counted_twice_is_found_without_an_index() -> None:
    found = check_text(BASE + entry("bridge") + entry("bridge_dataset"), "m.yaml")
    (twice,) = [f for f in found if f.code == "counted_twice"]
    assert (twice.level, twice.dataset, twice.line) == ("warning", "bridge_dataset", 4)


def test_cameras_and_bounds_are_checked_without_an_index(tmp_path: Path) -> None:
    text = BASE + entry("viola") + entry("kuka") + "image: {cameras: [primary, wrist]}\nbounds: {over: x.json}\n"
    errors = [(f.code, f.dataset, f.key) for f in check_text(text, "m.yaml", base=tmp_path) if f.level == "error"]
    assert errors == [("no_camera", "kuka", "image.cameras"), ("no_bounds", None, "bounds.over")]


def test_nothing_held_out_is_a_warning_of_both(world: Path, tmp_path: Path) -> None:
    text = entry("bridge_oxe_copy") + "validation: 0\n"
    path = write(world, text)
    (finding,) = [f for f in check_file(path, Index.open(world / "index")) if f.code == "no_held_out"]
    assert (finding.level, finding.key, finding.line) == ("warning", "validation", 4)
    warnings = tokenized(world, path, tmp_path / "one").warnings
    assert [w for w in warnings if "no row is for validation" in w]
    # a val split that is not drawn from is held out
    path = write(world, entry() + "validation: 0\n")
    assert not [f for f in check_file(path, Index.open(world / "index")) if f.code == "no_held_out"]
    accepted = "accept: [{finding: no_held_out, reason: evaluated on a robot}]\n"
    warnings = tokenized(world, write(world, text + accepted), tmp_path / "two").warnings
    assert not [w for w in warnings if "validation" in w]


def printed(found: list[Problem]) -> str:
    out = io.StringIO()
    Console(file=out, width=400).print(problems_text(found, "m.yaml"))
    return out.getvalue()


def test_an_accepted_finding_is_counted_and_an_unused_one_is_reported() -> None:
    text = BASE + entry("bridge_orig") + "accept:\n  - {finding: licence, reason: asked}\n  - finding: few_epochs\n"
    text += "    reason: known\n  - {finding: control_rates, dataset: bridge_orig, reason: known}\n"
    found = check_text(text, "m.yaml")
    assert [(f.level, f.code) for f in found] == [("warning", "unused_accept"), ("accepted", "licence")]
    assert (found[0].line, found[0].key) == (8, "accept.2")
    assert found[1].accepted == "asked"  # few_epochs needs --samples, so it is not called unused
    assert [f.code for f in check_text(text, "m.yaml", samples=1000)].count("unused_accept") == 1
    assert "accepted: licence (1): asked" in printed(found)


def test_many_findings_of_a_kind_are_one_with_a_count() -> None:
    names = ["fmb_dataset", "dobbe", "cmu_stretch", "ucsd_kitchen_dataset_converted_externally_to_rlds", "toto",
             "tokyo_u_lsmo_converted_externally_to_rlds", "asu_table_top_converted_externally_to_rlds"]  # fmt: skip
    found = check_text(BASE + "".join(entry(name) for name in names), "m.yaml")
    group = [f for f in found if f.code == "gripper_polarity"]
    assert len(group) >= 4
    text = printed(found)
    assert text.count("gripper's range is open") == 1
    assert f"{len(group)} findings of this kind; also {group[1].dataset} (line {group[1].line})" in text
    assert text.count("[gripper_polarity]") == 1


def test_stored_findings_stop_tokenize_unless_they_are_accepted(world: Path, tmp_path: Path) -> None:
    """The defect is in index.json, as filter stores it."""
    import shutil

    from oxe_curate.quality.findings import DataFinding

    shutil.copytree(world, tmp_path / "w")
    folder = Folder.of(tmp_path / "w" / "index")
    data = IndexJson.read(folder)
    held = data.datasets[NAME]
    finding = DataFinding(name="rotation_jumps", severity="error", dimension="yaw", text="yaw jumps", advice="Wrap it.")
    replace(data, datasets=data.datasets | {NAME: replace(held, findings=(finding,))}).write(folder)
    path = write(tmp_path / "w", entry())
    (found,) = [f for f in check_file(path, Index.open(folder)) if f.level == "error"]
    assert (found.code, found.message, found.advice) == ("rotation_jumps", f"{NAME}: yaw jumps", "Wrap it.")
    with pytest.raises(CurateError, match=r"yaw jumps\. Wrap it\.\n.*accept: \[\{finding: rotation_jumps, reason"):
        tokenized(tmp_path / "w", path, tmp_path / "out")
    path = write(tmp_path / "w", entry() + "accept: [{finding: rotation_jumps, reason: rare}]\n")
    before = tokenized(world, write(world, entry()), tmp_path / "before").manifest
    after = tokenized(tmp_path / "w", path, tmp_path / "out").manifest
    assert [o["sha256"] for n, o in after["outputs"].items() if n.startswith("train")] == [
        o["sha256"] for n, o in before["outputs"].items() if n.startswith("train")
    ]


def test_every_kind_says_what_it_is() -> None:
    assert all(kind.text for kind in KINDS.values())
    assert set(ACTION_FINDINGS) <= set(KINDS)


def test_the_documentation_names_every_kind() -> None:
    page = (ROOT / "docs" / "decisions" / "findings.md").read_text()
    assert [name for name in KINDS if f"`{name}`" not in page] == []


def test_an_older_index_is_measured_here(world: Path, tmp_path: Path) -> None:
    """An index without facts, whose cards have moved."""
    import shutil

    shutil.copytree(world / "index", tmp_path / "index")
    shutil.copytree(world / "cards", tmp_path / "moved")
    folder = Folder.of(tmp_path / "index")
    data = IndexJson.read(folder)
    older = {name: replace(entry, facts=None, findings=()) for name, entry in data.datasets.items()}
    replace(data, datasets=older, cards=str(tmp_path / "gone")).write(folder)
    path = write(world, BAD["bounds too narrow"])
    found = check_file(path, Index.open(folder), cards=tmp_path / "moved")
    assert [f.code for f in found if f.level == "error"] == ["outside_bounds"]
    assert "gripper_pulses" in [f.code for f in found]
