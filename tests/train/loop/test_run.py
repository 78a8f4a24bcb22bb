"""Training runs from shards to an adapter, on real Bridge data and a tiny OpenVLA with random weights."""

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
from oxe_curate.train.data.mixed import MixedImages
from oxe_curate.train.evaluation import evaluate as evaluation
from oxe_curate.train.loop import forecast, memory
from oxe_curate.train.loop import source as sources
from oxe_curate.train.loop.progress_log import Log
from oxe_curate.train.loop.resume import locked
from oxe_curate.train.loop.run import StoppedError, run_training
from oxe_curate.train.loop.source import MixtureSource
from oxe_curate.train.loop.trainer import FamilyTrainer
from oxe_curate.train.loop.validate import HeldOut, validate
from oxe_curate.train.models.adapter_files import read_tensors
from oxe_curate.train.models.openvla import synthetic
from oxe_curate.train.models.openvla.family import OpenVLAFamily
from oxe_curate.train.run_folder import RunFolder
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


def test_the_run_folder_has_all_files_for_a_policy(world: Path, finished: Path) -> None:
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
    found = losses(finished)
    assert len(found) == 16
    assert np.mean(found[-3:]) < found[0] - 0.1
    (entry,) = json.loads((finished / "validation.json").read_text())
    held = entry["datasets"]["bridge_orig"]
    assert entry["samples"] == held["samples"] == 8
    assert len(held["l1"]) == 7
    assert entry["loss"] < found[0]


def test_resume_is_exact(world: Path, finished: Path, tmp_path: Path) -> None:
    config = settings(world, tmp_path / "run", steps=8, save_every=4, keep=9, augment=True)
    train(config)
    with pytest.raises(ConfigError, match=r"holds a run of 8 steps\. Add --resume"):
        train(config)
    with pytest.raises(ConfigError, match=r"learning_rate: was 0.005, is now 0.1"):
        train(replace(config, learning_rate=0.1), resume=True)
    with pytest.raises(ConfigError, match="8 steps are done already, more than the 6 of this run"):
        train(replace(config, steps=6), resume=True)
    assert train(config, resume=True).forecast is None  # already finished
    result = train(replace(config, steps=16, batch_size=4, accumulation=2, workers=2), resume=True)
    assert result.forecast.left == 8
    assert losses(tmp_path / "run") == pytest.approx(losses(finished), rel=1e-5)  # the order of additions differs
    whole = train(replace(config, run=str(tmp_path / "exact")))
    train(replace(config, run=str(tmp_path / "exact"), steps=16), resume=True)
    assert whole.steps == 8
    assert losses(tmp_path / "exact") == losses(finished)


def test_a_damaged_checkpoint_is_reported_and_skipped(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(world, tmp_path / "run", save_every=2, eval_samples=0)
    train(config)
    (tmp_path / "run" / "checkpoint-4" / "optimizer.pt").write_bytes(b"")
    run_training(replace(config, steps=6), resume=True, progress=True, device="cpu")
    shown = capsys.readouterr().err
    assert "checkpoint-4 is damaged; continuing from checkpoint-2" in shown
    assert "6 steps of 8 samples, 4 remaining" in shown
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
def test_every_kind_of_training_learns_and_resumes(values: dict[str, Any], world: Path, tmp_path: Path) -> None:
    if values.get("adapter") in ("qlora", "int8"):
        pytest.importorskip("bitsandbytes")
    config = settings(world, tmp_path / "run", **{"steps": 8, "eval_samples": 4, **values})
    train(config)
    found = losses(tmp_path / "run")
    assert np.mean(found[-2:]) < found[0]
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
    held, other = (json.loads((tmp_path / run / "validation.json").read_text())[-1] for run in ("one", "two"))
    assert other["loss"] == pytest.approx(held["loss"], rel=1e-5)
    assert other["samples"] == held["samples"] == 8


def test_a_forecast_has_no_side_effects(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(world, tmp_path / "run", steps=48, eval_every=24, augment=True)
    result = train(config, forecast_only=True)
    expected = result.forecast
    assert not (tmp_path / "run").exists()
    assert (expected.steps, expected.global_batch, expected.samples, expected.epochs) == (48, 8, 192, 2.0)
    assert expected.datasets == {"bridge_orig": {"rows": 192, "samples": 384, "passes": 2.0}}
    assert expected.samples_per_second > 0
    assert expected.hours > 48 * 8 / expected.samples_per_second / 3600
    text = "\n".join(expected.lines())
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


def test_validation_scores_the_prediction(world: Path) -> None:
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


def test_a_run_is_the_same_where_the_device_resizes(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a GPU, where the loader leaves images at their own size; the mixture's are larger than the model's."""
    runs, images, real = [tmp_path / "loader", tmp_path / "device"], [], MixedImages.resized
    found = []
    monkeypatch.setattr(MixedImages, "resized", lambda *args: images.append(args[0]) or real(*args))
    for run in runs:
        train(settings(world, run, augment=True, steps=2))
        scores = evaluation.evaluate_run(run, episodes=1, device="cpu", progress=False).to_json()
        found.append((losses(run), (run / "validation.json").read_text(), scores["datasets"]))
        assert bool(images) == (run == runs[1])
        for module, name in ((sources, "Loader"), (sources, "ValidationLoader"), (evaluation, "EpisodeReader")):
            kept = getattr(module, name)
            monkeypatch.setattr(module, name, lambda *a, kept=kept, **k: kept(*a, **{**k, "mixed": True}))
    assert found[0] == found[1]
    run = tmp_path / "lanczos3"
    train(settings(world, run, augment=True, steps=2, resize="lanczos3"))
    assert images[-1].resize == json.loads((run / "run.json").read_text())["contract"]["resize"] == "lanczos3"
    assert losses(run) != found[0][0]


def test_a_gpu_resizes_and_a_cpu_leaves_it_to_the_loader(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []
    for name in ("Loader", "ValidationLoader"):
        monkeypatch.setattr(sources, name, lambda *args, **options: given.append(options))
    config = settings(world, world, resize="lanczos3")
    mixture = MixtureFolder.open(config.data)
    family = OpenVLAFamily.build(config, mixture, torch.device("cpu"))
    for kind in ("cpu", "cuda"):
        dist = replace(ALONE, device=torch.device(kind))
        source = MixtureSource(mixture, family.spec, family.collator, config, dist)
        source._loader(0, 1)
        source.validation()
        expected = {"mixed": kind == "cuda", "pin": kind == "cuda", "resize": "lanczos3"}
        assert [expected | options for options in given] == given
        assert len(given) == 2
        given.clear()


@pytest.mark.parametrize("broken", ["tokenizer", "base", "camera", "chunk", "fsdp", "file"])
def test_a_wrong_configuration_is_refused_before_anything_is_written(broken: str, world: Path, tmp_path: Path) -> None:
    config = settings(world, tmp_path / "run")
    cases = {
        "tokenizer": (config, "another tokenizer"),
        "base": (replace(config, base=str(world / "bsae")), r"base model folder not found. Did you mean 'base'"),
        "camera": (replace(config, cameras=("wrist",)), "has no 'wrist'"),
        "chunk": (replace(config, chunk=5), "chunk: expected 1 to 2, .* got 5"),
        "fsdp": (replace(config, shard="fsdp"), "start them with torchrun"),
        "file": (replace(config, run=str(world / "mixture.yaml")), "mixture.yaml: is a file"),
    }
    config, match = cases[broken]
    if broken == "tokenizer":
        other = synthetic.openvla_config("tiny", vocabulary=1000)
        synthetic.write_random_checkpoint(tmp_path / "other", other)
        config = replace(config, base=str(tmp_path / "other"))
    with pytest.raises(ConfigError, match=match):
        train(config)
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize("place", ["base", "mixture", "inside", "around", "index", "export", "source", "other"])
def test_a_run_folder_that_belongs_to_something_else_is_refused(place: str, world: Path, tmp_path: Path) -> None:
    folder, match = {
        "base": (world / "base", "is the base model"),
        "mixture": (world / "data", "is the mixture"),
        "inside": (world / "base" / "run", "is inside the base model"),
        "around": (world, "contains the base model"),
        "index": (tmp_path / "index.json", "holds an episode index"),
        "export": (tmp_path / "oxe_curate.json", "holds an exported model"),
        "source": (tmp_path / "bridge" / "0.1.0" / "features.json", "holds a source data set"),
        "other": (tmp_path / "thesis.tex", "is not empty and does not hold a training run"),
    }[place]
    if folder.is_relative_to(tmp_path):
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.write_text("{}")
        folder = tmp_path
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for resume in (False, True):
        with pytest.raises(ConfigError, match=f"--run .*: {match}") as error:
            train(settings(world, folder), resume=resume)
        assert error.value.exit_code == 2
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_mixture_without_its_statistics_is_refused(world: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(world / "data", tmp_path / "data")
    (tmp_path / "data" / "dataset_statistics.json").unlink()
    with pytest.raises(DataError, match=r"dataset_statistics.json: is missing\. .*run tokenize again"):
        train(replace(settings(world, tmp_path / "run"), data=str(tmp_path / "data")))


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"outputs": {}, "rows": []}'])
def test_a_damaged_manifest_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        MixtureFolder.open(str(tmp_path / "data"))
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=r"manifest.json:.*Delete it and run tokenize again"):
        MixtureFolder.open(str(tmp_path))


def test_a_corrupt_shard_is_named(world: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(world / "data", tmp_path / "data")
    (shard,) = (tmp_path / "data").glob("train-*.parquet")
    shard.write_bytes(shard.read_bytes()[:-1000])
    with pytest.raises((DataError, CorruptError), match=shard.name):
        train(replace(settings(world, tmp_path / "run"), data=str(tmp_path / "data")))


def test_out_of_memory_lists_what_to_lower(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: OpenVLAFamily, **batch: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(OpenVLAFamily, "forward", full)
    with pytest.raises(memory.MemoryFullError, match="out of this machine's memory while measuring") as error:
        train(settings(world, tmp_path / "run"))
    text = str(error.value)
    assert "--batch-size 4 --accumulation 2 (now 8; same result)" in text
    assert "--checkpointing" in text
    assert "--adapter qlora" in text
    assert "--dtype bf16" in text


def test_a_full_disk_while_logging_is_explained(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Log, step: int, values: dict[str, float]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Log, "line", full)
    with pytest.raises(StorageError, match=r"the disk is full\. Free some space"):
        train(settings(world, tmp_path / "run", eval_samples=0))


def test_other_errors_are_not_taken_for_out_of_memory(world: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="size mismatch"),
        memory.explain_out_of_memory("training", settings(world, tmp_path), ALONE),
    ):
        raise RuntimeError("size mismatch")


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    child = (
        "import sys, torch; from pathlib import Path\n"
        "from oxe_curate.train.loop.distributed import Distributed\n"
        "from oxe_curate.train.loop.resume import locked\n"
        "from oxe_curate.train.run_folder import RunFolder\n"
        "with locked(RunFolder(Path(sys.argv[1])), Distributed(0, 1, torch.device('cpu'))): pass"
    )
    command = [sys.executable, "-c", child, str(tmp_path)]
    with locked(RunFolder(tmp_path), ALONE):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "another process is training here" in done.stderr
    with locked(RunFolder(tmp_path), ALONE):  # released
        pass


def test_a_signal_saves_the_run(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_torchrun_accepts_the_commands_in_the_docs() -> None:
    """On Python 3.11 argparse calls `--run` ambiguous, since torchrun has --run-path, unless `--` precedes it."""
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
