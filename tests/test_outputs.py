"""Which output folders are refused, and which earlier output may be continued."""

from pathlib import Path

import pytest

from oxe_curate.errors import ConfigError
from oxe_curate.outputs import OutputKind, claim_output

KINDS: tuple[OutputKind, ...] = ("index", "mixture", "run", "export", "evaluation", "demo")
FINISHED = {
    "index": ["index.json", "bridge/0.1.0/train-00000-of-00001.parquet"],
    "mixture": ["manifest.json", "train-00000-of-00001.parquet", "mixture.yaml"],
    "run": ["run.json", "config.yaml", "checkpoint-3/progress.json", ".oxe-lock"],
    "export": ["oxe_curate.json", "config.json", "model.safetensors"],
    "evaluation": ["evaluation.json", "index.html"],
    "demo": [".written", "rlds/bridge/0.1.0/features.json", "demo.yaml"],
    "model": ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json"],
    "version": ["features.json", "bridge-train.tfrecord-00000-of-00001"],
    "data set": ["0.1.0/dataset_info.json"],
    "source": ["bridge/0.1.0/features.json"],
    "other": ["notes.txt"],
    "mine": ["mine.parquet"],
}
UNFINISHED = {
    "index": ["bridge/0.1.0/train-00000-of-00002.parquet", ".failed/x", ".oxe-tmp-1-a"],
    "mixture": ["train-00000-of-00002.parquet", "mixture.yaml", "text-00000-of-00001.parquet"],
    "run": [".oxe-lock", "config.yaml"],
    "evaluation": ["predictions.parquet", "checkpoint-3/evaluation.json"],
    "demo": ["rlds/a/b/c/features.json", "demo.yaml"],
}


def fill(folder: Path, names: list[str]) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_or_empty_folder_is_accepted(tmp_path: Path, kind: OutputKind) -> None:
    claim_output(tmp_path / "new" / "deep", kind, {"base model": tmp_path / "base"})
    (tmp_path / "empty").mkdir()
    claim_output(tmp_path / "empty", kind, {})
    claim_output(fill(tmp_path / "stray", [".oxe-tmp-9-x"]), kind, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "stray"]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "export"])
def test_output_of_the_same_kind_is_accepted_finished_or_not(tmp_path: Path, kind: OutputKind) -> None:
    claim_output(fill(tmp_path / "finished", FINISHED[kind]), kind, {})
    claim_output(fill(tmp_path / "unfinished", UNFINISHED[kind]), kind, {})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("content", FINISHED)
def test_output_of_another_kind_is_refused(tmp_path: Path, kind: OutputKind, content: str) -> None:
    if kind == content != "export":
        return
    folder = fill(tmp_path / "held", FINISHED[content])
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=r"^--(out|run) .*held: (holds an? |is not empty)"):
        claim_output(folder, kind, {})
    assert sorted(tmp_path.rglob("*")) == before


def test_the_message_names_what_the_folder_holds(tmp_path: Path) -> None:
    for content, name in {
        "index": "an episode index",
        "model": "a model checkpoint",
        "source": "a source data set",
    }.items():
        with pytest.raises(ConfigError, match=rf"--run .*: holds {name}\. Choose another folder"):
            claim_output(fill(tmp_path / content, FINISHED[content]), "run", {})
    with pytest.raises(ConfigError, match="is not empty and does not hold a training run"):
        claim_output(fill(tmp_path / "other", FINISHED["other"]), "run", {})
    with pytest.raises(ConfigError, match="is a file, expected a folder"):
        claim_output(tmp_path / "other" / "notes.txt", "index", {})


def test_a_folder_that_overlaps_an_input_is_refused(tmp_path: Path) -> None:
    base = tmp_path / "models" / "base"
    base.mkdir(parents=True)
    (tmp_path / "link").symlink_to(base)
    for out, relation in (
        (base, "is"), (tmp_path / "link", "is"), (base / "run", "is inside"), (tmp_path / "models", "contains"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=rf"--run .*: {relation} the base model \(.*base\)\. Choose another"):
            claim_output(out, "run", {"base model": base})
    claim_output(tmp_path / "models" / "base-2", "run", {"base model": base})
    with pytest.raises(ConfigError, match=r"gs://b/mix/run: is inside the mixture \(gs://b/mix\)"):
        claim_output("gs://b/mix/run", "index", {"mixture": "gs://b/mix"})
