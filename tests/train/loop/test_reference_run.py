"""Training and evaluating on a mixture by reference: the same losses, moved sources, errors before the first step."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

from oxe_curate.errors import ConfigError, DataError
from oxe_curate.storage import Folder
from oxe_curate.tokenize import sources
from oxe_curate.tokenize.pipeline import TokenizeOptions, run_tokenize
from oxe_curate.tokenize.sources import read_sources
from oxe_curate.train.config import TrainConfig, read_train_config
from oxe_curate.train.data import source_frames
from oxe_curate.train.evaluation.evaluate import evaluate_run
from oxe_curate.train.loop.run import run_training
from oxe_curate.train.models.openvla import synthetic
from tests import ROOT
from tests.train import mixtures

MIXTURE = "name: m\ndatasets: [{name: bridge_orig, weight: 1}]\nvalidation: 0.2\n"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and a mixture as copies in copied/ and by reference in data/."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("world")
    synthetic.write_random_checkpoint(root / "base")
    mixtures.index(root)
    for name, keys in (("copied", ""), ("data", "image: {copy: false}\n")):
        (root / f"{name}.yaml").write_text(MIXTURE + keys)
        options = TokenizeOptions(progress=False, workers=1, tokenizer=root / "base")
        run_tokenize(root / f"{name}.yaml", root / "index", root / name, options)
    return root


@pytest.fixture
def moved(world: Path, tmp_path: Path) -> Iterator[Path]:
    """The world at another path, with its source in new/ instead of in/."""
    root = Path(shutil.copytree(world, tmp_path / "world"))
    (root / "in").rename(root / "new")
    for path in (world / "in").rglob("*.tfrecord-*"):  # as if the folder that tokenize read were gone
        path.rename(path.with_name(f"{path.name}.gone"))
    yield root
    for path in (world / "in").rglob("*.gone"):
        path.rename(path.with_name(path.name.removesuffix(".gone")))


def settings(world: Path, run: Path, **values: Any) -> TrainConfig:
    usual = {
        "data": str(world / "data"), "base": str(world / "base"), "batch_size": 4, "steps": 4, "dtype": "fp32",
        "learning_rate": 5e-3, "log": "none", "log_every": 1, "augment": False, "workers": 1, "save_every": 2,
        "eval_samples": 4,
    }  # fmt: skip
    return TrainConfig(run=str(run), **{**usual, **values})


def train(config: TrainConfig, **values: Any) -> Any:
    return run_training(config, progress=False, device="cpu", **values)


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]


def test_the_losses_are_those_of_copies(world: Path, tmp_path: Path) -> None:
    for name in ("copied", "data"):
        train(settings(world, tmp_path / name, data=str(world / name)))
    assert losses(tmp_path / "data") == losses(tmp_path / "copied")
    assert (tmp_path / "data/validation.json").read_bytes() == (tmp_path / "copied/validation.json").read_bytes()
    found = [evaluate_run(tmp_path / name, progress=False).to_json()["all"] for name in ("copied", "data")]
    assert found[0] == found[1]
    with pytest.raises(ConfigError, match="has copies of its frames"):
        train(settings(world, tmp_path / "x", data=str(world / "copied"), source=str(world / "in")))


def test_a_run_continues_after_its_source_moved(
    world: Path, moved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(moved, tmp_path / "run", source=str(moved / "new"))
    train(replace(config, steps=6, run=str(tmp_path / "whole")))
    with pytest.raises(DataError, match=rf"^{world / 'in'}/.*tfrecord.*not found.*--source"):
        train(replace(config, source=None))
    assert not (tmp_path / "run/checkpoint-2").exists()
    train(config)
    assert read_train_config(tmp_path / "run/config.yaml", {}).source == str(moved / "new")
    known = read_sources(Folder.of(tmp_path / "run"))
    assert all(row.root.uri == str(moved / "new") and row.identity for row in known)
    for module in (sources, source_frames):  # shards that were compared once are not read again
        monkeypatch.setattr(module, "matches_shard", lambda *_: pytest.fail("compared again"))
    train(replace(config, steps=5), resume=True)
    monkeypatch.undo()
    (moved / "new").rename(moved / "newer")
    with pytest.raises(DataError, match="neither is any other of the 2 source shards"):
        train(replace(config, steps=6), resume=True)
    train(replace(config, steps=6, source=str(moved / "newer")), resume=True)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_evaluation_reads_a_source_that_moved(moved: Path, tmp_path: Path) -> None:
    train(settings(moved, tmp_path / "run", source=str(moved / "new")))
    found = evaluate_run(tmp_path / "run", progress=False)
    (moved / "new").rename(moved / "newer")
    with pytest.raises(DataError, match="neither is any other of the 2 source shards"):
        evaluate_run(tmp_path / "run", progress=False)
    again = evaluate_run(tmp_path / "run", progress=False, source=moved / "newer")
    assert again.whole == found.whole
    # another mixture than the recorded one is read where tokenize read it
    with pytest.raises(DataError, match=r"not found.*--source"):
        evaluate_run(tmp_path / "run", progress=False, data=str(moved / "data"))


def test_a_changed_source_is_an_error_before_the_first_step(moved: Path, tmp_path: Path) -> None:
    path = sorted((moved / "new").rglob("*.tfrecord-*"))[0]
    data = bytearray(path.read_bytes())
    data[12] ^= 1
    data[-4] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"^{path}: its records are not those that were filtered"):
        train(settings(moved, tmp_path / "run", source=str(moved / "new")))
    with pytest.raises(DataError, match=rf"^{path}: its records are not those that were filtered"):
        train(settings(moved, tmp_path / "run", source=str(moved / "new")), forecast_only=True)
    assert not (tmp_path / "run/log.jsonl").exists()


@pytest.mark.parametrize("gone", [False, True])
def test_two_processes(world: Path, moved: Path, tmp_path: Path, gone: bool) -> None:
    """Both compare the sources, and read the same batches as one process; or both end without a traceback."""
    source = moved / ("nothing" if gone else "new")
    config = settings(moved, tmp_path / "two", batch_size=2, source=str(source))
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m",
         "tests.train.launched", json.dumps(asdict(config))],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    if gone:
        assert done.returncode
        assert "source shards" in done.stderr
        assert "another process of this run failed" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    train(replace(config, batch_size=4, run=str(tmp_path / "one")))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
