"""From shards to an adapter, on the real Bridge data and a tiny OpenVLA of random weights."""

import errno
import json
import os
import shlex
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

from oxe_curate.errors import ConfigError, CorruptError, CurateError, DataError, StorageError
from oxe_curate.tokenize.folder import MixtureFolder
from oxe_curate.tokenize.pipeline import TokenizeOptions, run_tokenize
from oxe_curate.train.config import TrainConfig
from oxe_curate.train.loop import forecast, memory, run_folder
from oxe_curate.train.loop.progress_log import Log
from oxe_curate.train.loop.run import StoppedError, run_training
from oxe_curate.train.loop.source import MixtureSource
from oxe_curate.train.loop.trainer import FamilyTrainer
from oxe_curate.train.loop.validate import HeldOut, validate
from oxe_curate.train.models.adapter_files import read_tensors
from oxe_curate.train.models.openvla import synthetic
from oxe_curate.train.models.openvla.family import OpenVLAFamily
from tests import ROOT
from tests.train import mixtures
from tests.train.toy import ALONE

MIXTURE = "name: bridge\ndatasets: [{name: bridge_orig, weight: 1}]\nvalidation: 0.1\nchunk: 2\n"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Path:
    """The real Bridge mixture in data/, a base in base/."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("run")
    synthetic.write_random_checkpoint(root / "base")
    (root / "mixture.yaml").write_text(MIXTURE)
    options = TokenizeOptions(progress=False, workers=1, tokenizer=root / "base")
    run_tokenize(root / "mixture.yaml", mixtures.real_index(root, shared), root / "data", options)
    return root


def settings(world: Path, run: Path, **values: Any) -> TrainConfig:
    usual = {
        "batch_size": 8, "steps": 4, "dtype": "fp32", "learning_rate": 5e-3, "log": "none", "log_every": 1, "chunk": 1,
        "augment": False, "workers": 1,
    }  # fmt: skip
    return TrainConfig(data=str(world / "data"), base=str(world / "base"), run=str(run), **{**usual, **values})


def train(config: TrainConfig, **values: Any) -> Any:
    return run_training(config, progress=False, device="cpu", **values)


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("finished") / "run"
    train(settings(world, run, steps=16, save_every=4, keep=9, log="tensorboard", augment=True))
    return run


def test_the_run_folder_holds_what_a_policy_needs(world: Path, finished: Path) -> None:
    names = {p.name for p in finished.iterdir() if not p.name.startswith(".")}
    assert names == {
        "config.yaml", "run.json", "dataset_statistics.json", "action_tokens.parquet", "mixture.yaml", "adapter",
        "log.jsonl", "validation.json", "tensorboard", *(f"checkpoint-{step}" for step in (4, 8, 12, 16)),
    }  # fmt: skip
    record = json.loads((finished / "run.json").read_text())
    assert record["family"] == "openvla"
    assert record["contract"]["hashes"] == MixtureFolder.open(str(world / "data")).hashes
    one, other = (
        read_tensors(finished / n / "adapter_model.safetensors") for n in ("adapter", "checkpoint-16/weights")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_loss_falls_on_real_data(finished: Path) -> None:
    told = losses(finished)
    assert len(told) == 16
    assert np.mean(told[-3:]) < told[0] - 0.1
    (entry,) = json.loads((finished / "validation.json").read_text())
    held = entry["datasets"]["bridge_orig"]
    assert entry["samples"] == held["samples"] == 8
    assert len(held["l1"]) == 7
    assert entry["loss"] < told[0]


def test_resume_through_the_door_is_exact(world: Path, finished: Path, tmp_path: Path) -> None:
    config = settings(world, tmp_path / "run", steps=8, save_every=4, keep=9, augment=True)
    train(config)
    with pytest.raises(ConfigError, match=r"holds a run of 8 steps. Go on with --resume"):
        train(config)
    with pytest.raises(ConfigError, match=r"learning_rate: was 0.005, now is 0.1"):
        train(replace(config, learning_rate=0.1), resume=True)
    with pytest.raises(ConfigError, match="has done 8 steps already; 6 are asked for"):
        train(replace(config, steps=6), resume=True)
    assert train(config, resume=True).forecast is None  # nothing is left to do
    result = train(replace(config, steps=16, batch_size=4, accumulation=2, workers=2), resume=True)
    assert result.forecast.left == 8
    assert losses(tmp_path / "run") == pytest.approx(losses(finished), rel=1e-5)  # other divisions of a batch round so
    whole = train(replace(config, run=str(tmp_path / "exact")))
    train(replace(config, run=str(tmp_path / "exact"), steps=16), resume=True)
    assert whole.steps == 8
    assert losses(tmp_path / "exact") == losses(finished)


def test_a_damaged_checkpoint_is_told_and_passed_over(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(world, tmp_path / "run", save_every=2, eval_samples=0)
    train(config)
    (tmp_path / "run" / "checkpoint-4" / "optimizer.pt").write_bytes(b"")
    run_training(replace(config, steps=6), resume=True, progress=True, device="cpu")
    told = capsys.readouterr().err
    assert "checkpoint-4 is damaged: going on from checkpoint-2" in told
    assert "6 steps of 8 samples, 4 to go" in told
    (tmp_path / "run" / "checkpoint-6" / "optimizer.pt").write_bytes(b"")
    (tmp_path / "run" / "checkpoint-4" / "optimizer.pt").write_bytes(b"")
    with pytest.raises(DataError, match=r"checkpoints \(4, 6\) are damaged"):
        train(replace(config, steps=8), resume=True)


def test_overfits_one_batch(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_batch(self: MixtureSource, consumed: int) -> Any:
        return Repeated(next(iter(self._loader(0, 1))), self.steps)

    monkeypatch.setattr(MixtureSource, "train", one_batch)
    config = settings(
        world, tmp_path / "run", adapter="none", steps=150, batch_size=4, learning_rate=2e-3, eval_samples=0, chunk=2,
        schedule="cosine", log_every=10,
    )  # fmt: skip
    result = train(config)
    assert result.values["token_accuracy"] == 1.0
    assert result.values["loss"] < 0.1


class Repeated:
    def __init__(self, batch: Any, count: int) -> None:
        self.batch, self.count = batch, count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Any:
        for _ in range(self.count):
            yield dict(self.batch)


@pytest.mark.parametrize(
    "values",
    [
        {"adapter": "qlora"},
        {"adapter": "int8"},
        {"adapter": "none", "tune": "sandwich", "learning_rate": 1e-3},
        {"checkpointing": True},
        {"dtype": "bf16"},
        {"openvla": {"head": "l1"}, "chunk": 2},
    ],
    ids=["qlora", "int8", "sandwich", "checkpointing", "bf16", "l1"],
)
def test_every_way_of_training_runs_and_learns(values: dict[str, Any], world: Path, tmp_path: Path) -> None:
    if values.get("adapter") in ("qlora", "int8"):
        pytest.importorskip("bitsandbytes")
    config = settings(world, tmp_path / "run", **{"steps": 8, "eval_samples": 4, **values})
    train(config)
    told = losses(tmp_path / "run")
    assert np.mean(told[-2:]) < told[0]
    train(replace(config, steps=10), resume=True)
    assert len(losses(tmp_path / "run")) == 10


@pytest.mark.parametrize(("shard", "adapter"), [("ddp", "lora"), ("fsdp", "qlora")])
def test_two_processes_equal_one(shard: str, adapter: str, world: Path, tmp_path: Path) -> None:
    if adapter == "qlora":
        pytest.importorskip("bitsandbytes")
    config = settings(world, tmp_path / "one", adapter=adapter, batch_size=4, steps=3, eval_every=2)
    train(config)
    shared_out = replace(config, run=str(tmp_path / "two"), batch_size=2, shard=shard)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m",
         "tests.train.launched", json.dumps(asdict(shared_out))],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    one, two = (read_tensors(tmp_path / run / "adapter" / "adapter_model.safetensors") for run in ("one", "two"))
    assert set(one) == set(two)
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-3, atol=1e-4)
    held, told = (json.loads((tmp_path / run / "validation.json").read_text())[-1] for run in ("one", "two"))
    assert told["loss"] == pytest.approx(held["loss"], rel=1e-5)
    assert told["samples"] == held["samples"] == 8


def test_forecast_is_told_and_leaves_no_trace(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(world, tmp_path / "run", steps=48, eval_every=24, augment=True)
    result = train(config, forecast_only=True)
    told = result.forecast
    assert not (tmp_path / "run").exists()
    assert (told.steps, told.global_batch, told.samples, told.epochs) == (48, 8, 192, 2.0)
    assert told.datasets == {"bridge_orig": {"rows": 192, "samples": 384, "passes": 2.0}}
    assert told.samples_per_second > 0
    assert told.hours > 48 * 8 / told.samples_per_second / 3600
    text = "\n".join(told.lines())
    assert "48 steps of 8 samples: 2 epochs of 192 rows" in text
    assert "each step 2 times" in text

    mixture = MixtureFolder.open(config.data)
    torch.manual_seed(0)
    family = OpenVLAFamily.build(config, mixture, ALONE.device)
    before = {name: p.clone() for name, p in family.named_parameters()}
    generator = torch.random.get_rng_state()
    source = MixtureSource(mixture, family.spec, family.collator, config, ALONE)
    forecast.measure(family, source, config, 0, ALONE)
    assert all(torch.equal(before[name], p) for name, p in family.named_parameters())
    assert all(p.grad is None for p in family.parameters())
    assert torch.equal(generator, torch.random.get_rng_state())
    assert family.training


def test_greedy_accuracy_and_errors_are_those_of_the_prediction(world: Path) -> None:
    config = settings(world, world / "run", chunk=2)
    mixture = MixtureFolder.open(config.data)
    family = OpenVLAFamily.build(config, mixture, ALONE.device)
    source = MixtureSource(mixture, family.spec, HeldOut(family.collator), config, ALONE)
    rows = source.validation().rows(0)
    decoded = mixture.tokens.action_bins.decode(rows.bins[:, -1])
    wrong = decoded.copy()
    wrong[0, :, 0] = -wrong[0, :, 0] - 0.3
    family.predict = lambda batch: torch.from_numpy(wrong)
    from contextlib import nullcontext

    held = validate(family, [HeldOut(family.collator)(rows)], mixture, ALONE, nullcontext())["datasets"]["bridge_orig"]
    valid = rows.action_mask[:, -1].sum()
    assert held["greedy_accuracy"] == pytest.approx(1 - rows.action_mask[0, -1].sum() / (7 * valid))
    bounds = mixture.statistics["bridge_orig"]
    off = np.abs(bounds.denormalize(wrong) - bounds.denormalize(rows.actions[:, -1]))
    np.testing.assert_allclose(held["l1"], off[rows.action_mask[:, -1]].mean(0))


@pytest.mark.parametrize("broken", ["tokenizer", "base", "camera", "chunk", "fsdp", "file"])
def test_what_does_not_fit_is_told_before_anything_is_written(broken: str, world: Path, tmp_path: Path) -> None:
    config = settings(world, tmp_path / "run")
    told = {
        "tokenizer": (config, "another tokenizer"),
        "base": (replace(config, base=str(world / "bsae")), r"no such folder. Did you mean 'base'"),
        "camera": (replace(config, cameras=("wrist",)), "has no 'wrist'"),
        "chunk": (replace(config, chunk=5), "chunk: 5 asked for"),
        "fsdp": (replace(config, shard="fsdp"), "start them with torchrun"),
        "file": (replace(config, run=str(world / "mixture.yaml")), "mixture.yaml: is a file"),
    }
    config, match = told[broken]
    if broken == "tokenizer":
        other = synthetic.openvla_config("tiny", vocabulary=1000)
        synthetic.write_random_checkpoint(tmp_path / "other", other)
        config = replace(config, base=str(tmp_path / "other"))
    with pytest.raises(ConfigError, match=match):
        train(config)
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_mixture_without_its_statistics_is_refused(world: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(world / "data", tmp_path / "data")
    (tmp_path / "data" / "dataset_statistics.json").unlink()
    with pytest.raises(DataError, match=r"dataset_statistics.json: file is missing; run tokenize again"):
        train(replace(settings(world, tmp_path / "run"), data=str(tmp_path / "data")))


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"outputs": {}, "rows": []}'])
def test_a_damaged_manifest_is_told(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        MixtureFolder.open(str(tmp_path / "data"))
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=r"manifest.json: damaged"):
        MixtureFolder.open(str(tmp_path))


def test_a_corrupt_shard_is_named(world: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(world / "data", tmp_path / "data")
    (shard,) = (tmp_path / "data").glob("train-*.parquet")
    shard.write_bytes(shard.read_bytes()[:-1000])
    with pytest.raises((DataError, CorruptError), match=shard.name):
        train(replace(settings(world, tmp_path / "run"), data=str(tmp_path / "data")))


def test_the_batch_that_does_not_fit_is_told_with_ways_out(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: OpenVLAFamily, **batch: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(OpenVLAFamily, "forward", full)
    with pytest.raises(memory.MemoryFullError, match="out of this machine's memory while measuring") as error:
        train(settings(world, tmp_path / "run"))
    text = str(error.value)
    assert "--batch-size 4 --accumulation 2 (now 8; trains alike)" in text
    assert "--checkpointing" in text
    assert "--adapter qlora" in text
    assert "--dtype bf16" in text


def test_a_disk_that_fills_up_under_the_log_is_told(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Log, step: int, values: dict[str, float]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Log, "line", full)
    with pytest.raises(StorageError, match=r"the disk is full\. Free some space"):
        train(settings(world, tmp_path / "run", eval_samples=0))


def test_another_fault_is_not_taken_for_memory(world: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="size mismatch"),
        memory.told_when_full("training", settings(world, tmp_path), ALONE),
    ):
        raise RuntimeError("size mismatch")


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    child = (
        "import sys, torch; from pathlib import Path; from oxe_curate.train.loop import run_folder\n"
        "from oxe_curate.train.loop.processes import Processes\n"
        "with run_folder.locked(Path(sys.argv[1]), Processes(0, 1, torch.device('cpu'))): pass"
    )
    command = [sys.executable, "-c", child, str(tmp_path)]
    with run_folder.locked(tmp_path, ALONE):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "another process is training here" in done.stderr
    with run_folder.locked(tmp_path, ALONE):  # let go of
        pass


def test_a_signal_ends_the_run_saved(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = FamilyTrainer.compute_loss

    def interrupted(self: FamilyTrainer, *args: Any, **values: Any) -> Any:
        if self.state.global_step == 2:
            signal.raise_signal(signal.SIGTERM)
        return compute(self, *args, **values)

    monkeypatch.setattr(FamilyTrainer, "compute_loss", interrupted)
    config = settings(world, tmp_path / "run", steps=6)
    with pytest.raises(StoppedError, match=r"stopped by SIGTERM after step 3, which is saved") as error:
        train(config)
    assert isinstance(error.value, CurateError)
    assert error.value.exit_code == 143
    assert not (tmp_path / "run" / "adapter").exists()
    monkeypatch.undo()
    train(config, resume=True)
    whole = replace(config, run=str(tmp_path / "whole"))
    train(whole)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_what_the_docs_launch_is_not_taken_by_torchruns_own_options() -> None:
    """On Python 3.11 argparse calls `--run` ambiguous, since torchrun has --run-path, unless `--` stands before."""
    from torch.distributed.run import get_args_parser

    found = 0
    for name in ("README.md", "docs/training.md"):
        for line in (ROOT / name).read_text().replace("\\\n", " ").splitlines():
            if not line.startswith(("torchrun ", "srun torchrun ")):
                continue
            launched = get_args_parser().parse_args(shlex.split(line, comments=True)[1 + line.startswith("srun") :])
            assert (launched.training_script, launched.training_script_args[0]) == ("oxe_curate", "train")
            assert "--run" in launched.training_script_args
            found += 1
    assert found == 2
