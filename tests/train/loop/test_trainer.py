"""The losses do not depend on interruptions or on the number of processes."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from oxe_curate.atomic import remove
from oxe_curate.errors import ConfigError, StorageError
from oxe_curate.train.loop import optimizers, train_state, trainer
from oxe_curate.train.loop.checkpoints import last_checkpoint
from oxe_curate.train.loop.progress_log import Log, Meter
from oxe_curate.train.loop.trainer import DivergedError, FamilyTrainer
from oxe_curate.train.models.adapter_files import read_tensors
from oxe_curate.train.run_folder import RunFolder
from tests import ROOT
from tests.train import toy
from tests.train.toy_run import train


def lines(run: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in map(json.loads, (run / "log.jsonl").read_text().splitlines())}


def final_weights(run: Path) -> dict[str, Any]:
    folder, _ = last_checkpoint(RunFolder(run)) or pytest.fail("no checkpoint")
    return read_tensors(folder.weights / "extra.safetensors")


def start(given: dict[str, Any], processes: int = 1) -> subprocess.Popen[str]:
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--master-port=0", "--standalone"]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "tests.train.toy_run", json.dumps(given)]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def finish(given: dict[str, Any], processes: int = 1) -> None:
    child = start(given, processes)
    _, errors = child.communicate(timeout=600)
    assert child.returncode == 0, errors


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole")
    train({"run": run, "steps": 12, "save_every": 4, "schedule": "cosine", "warmup": 2, "eval_every": 5})
    return run


def test_the_loss_falls_and_every_step_is_logged(uninterrupted: Path) -> None:
    losses = lines(uninterrupted)
    assert list(losses) == list(range(1, 13))
    assert np.mean([losses[i] for i in (10, 11, 12)]) < 0.7 * losses[1]


def test_validation_is_in_real_units_by_data_set(uninterrupted: Path) -> None:
    past = json.loads((uninterrupted / "validation.json").read_text())
    assert [entry["step"] for entry in past] == [5, 10, 12]
    last = past[-1]
    assert last["samples"] == 8
    assert {name: entry["samples"] for name, entry in last["datasets"].items()} == {"arm_a": 4, "arm_b": 4}
    family = toy.ToyFamily(toy.settings(uninterrupted))
    family.load(uninterrupted / "checkpoint-12" / "weights")
    family.eval()
    rows = toy.rows(np.arange(10_000, 10_008))
    with torch.no_grad():
        predicted = family.predict({"x": torch.from_numpy(rows.proprio)}).numpy()
    mine = rows.dataset == 1
    span = toy.mixture().statistics["arm_b"]
    expected = np.abs(predicted - rows.actions[:, 0])[mine].mean(axis=(0, 1)) * (span.q99 - span.q01) / 2
    np.testing.assert_allclose(last["datasets"]["arm_b"]["l1"][:6], expected[:6], rtol=1e-5)


def test_resumed_run_has_the_same_losses_bit_for_bit(uninterrupted: Path, tmp_path: Path) -> None:
    given = {"run": tmp_path, "steps": 12, "save_every": 4, "schedule": "cosine", "warmup": 2, "eval_every": 5}
    train({**given, "keep": 5})
    for step in (8, 12):  # back to an earlier checkpoint, whose later log lines must be removed
        remove(tmp_path / f"checkpoint-{step}")
    torch.manual_seed(99)
    train(given)
    assert lines(tmp_path) == lines(uninterrupted)
    assert [e["step"] for e in json.loads((tmp_path / "validation.json").read_text())] == [5, 10, 12]
    ours, theirs = final_weights(tmp_path), final_weights(uninterrupted)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_8_bit_moments_learn_and_resume_bit_for_bit(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    wide = {"optimizer": "adamw8bit", "width": 80}  # blocks of 80 x 80 weights: smaller ones stay in float32
    given = {"steps": 8, "save_every": 4, "keep": 5, "schedule": "cosine", "warmup": 2, **wide}
    train({"run": tmp_path / "whole", **given})
    moments = torch.load(tmp_path / "whole" / "checkpoint-4" / "optimizer.pt", weights_only=True)
    assert moments["net.blocks.0.up.weight"]["state1"].dtype == torch.uint8
    assert moments["net.blocks.0.up.bias"]["state1"].dtype == torch.float32
    losses = lines(tmp_path / "whole")
    assert losses[8] < 0.7 * losses[1]

    train({"run": tmp_path / "parts", **given})
    remove(tmp_path / "parts" / "checkpoint-8")
    torch.manual_seed(99)
    train({"run": tmp_path / "parts", **given})
    assert lines(tmp_path / "parts") == losses
    ours, theirs = final_weights(tmp_path / "parts"), final_weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_an_optimizer_that_does_not_work_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    optimizers.check_optimizer("adamw8bit", toy.ALONE.device)

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no kernel\nmore")

    monkeypatch.setattr(bitsandbytes.optim, "AdamW8bit", broken)
    optimizers.check_optimizer("adamw", toy.ALONE.device)
    with pytest.raises(ConfigError, match=r"--optimizer adamw8bit: bitsandbytes .* on cpu: no kernel\. Update"):
        optimizers.check_optimizer("adamw8bit", toy.ALONE.device)


@pytest.mark.parametrize(("texts", "unused"), [({}, False), ({"text": {}}, False), ({"text": {"vqa": 3}}, True)])
def test_ddp_looks_for_unused_weights_only_with_text_rows(texts: Any, unused: bool, tmp_path: Path) -> None:
    mixture = toy.mixture()
    mixture.manifest["rows"] |= texts
    arguments = trainer._arguments(toy.settings(tmp_path), 3, toy.ALONE, mixture)
    assert arguments.ddp_find_unused_parameters is unused


def test_a_killed_run_resumes_with_the_same_losses(uninterrupted: Path, tmp_path: Path) -> None:
    given = {"run": str(tmp_path), "steps": 12, "save_every": 4, "schedule": "cosine", "warmup": 2, "eval_every": 5}
    child = start({**given, "pause": 0.1})
    while child.poll() is None and not (tmp_path / "checkpoint-4").exists():
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    done = last_checkpoint(RunFolder(tmp_path))
    assert done is not None
    assert done[1].step < 12
    train(given)
    assert lines(tmp_path) == lines(uninterrupted)
    ours, theirs = final_weights(tmp_path), final_weights(uninterrupted)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_sigterm_finishes_the_step_and_saves(uninterrupted: Path, tmp_path: Path) -> None:
    given = {"run": str(tmp_path), "steps": 12, "log_every": 3, "schedule": "cosine", "warmup": 2}
    child = start({**given, "pause": 0.2})
    while child.poll() is None and not lines_if_any(tmp_path):
        time.sleep(0.02)
    child.send_signal(signal.SIGTERM)
    _, errors = child.communicate(timeout=600)
    assert child.returncode == 0, errors
    assert (tmp_path / "stopped").read_text() == "True"
    (step,) = RunFolder(tmp_path).steps()
    assert 3 <= step < 12
    train(given)
    # the unfinished log line continues too
    whole = lines(uninterrupted)
    averaged = {step: float(np.mean([whole[i] for i in range(step - 2, step + 1)])) for step in (3, 6, 9, 12)}
    assert lines(tmp_path) == pytest.approx(averaged, rel=1e-12)


def lines_if_any(run: Path) -> bool:
    return (run / "log.jsonl").is_file() and bool((run / "log.jsonl").read_text())


def test_accumulation_equals_one_large_batch(tmp_path: Path) -> None:
    for name, values in (("whole", {"batch_size": 8}), ("parts", {"batch_size": 2, "accumulation": 4})):
        train({"run": tmp_path / name, "steps": 4, "dropout": 0.0, **values})
    assert lines(tmp_path / "parts") == pytest.approx(lines(tmp_path / "whole"), rel=1e-5)
    ours, theirs = final_weights(tmp_path / "parts"), final_weights(tmp_path / "whole")
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shard", ["ddp", "fsdp"])
def test_two_processes_equal_one(shard: str, tmp_path: Path) -> None:
    common = {"steps": 4, "dropout": 0.0, "eval_every": 2}
    train({"run": tmp_path / "one", "batch_size": 4, **common})
    finish({"run": str(tmp_path / "two"), "batch_size": 2, "shard": shard, **common}, processes=2)
    assert lines(tmp_path / "two") == pytest.approx(lines(tmp_path / "one"), rel=1e-6)
    ours, theirs = final_weights(tmp_path / "two"), final_weights(tmp_path / "one")
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6)
    one, two = (json.loads((tmp_path / name / "validation.json").read_text())[-1] for name in ("one", "two"))
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert two["datasets"]["arm_a"]["l1"] == pytest.approx(one["datasets"]["arm_a"]["l1"], rel=1e-4)

    # one process continues where two stopped
    train({"run": tmp_path / "one", "batch_size": 4, **common, "steps": 6})
    train({"run": tmp_path / "two", "batch_size": 4, **common, "steps": 6})
    assert lines(tmp_path / "two") == pytest.approx(lines(tmp_path / "one"), rel=1e-5)


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    given = {"eval_samples": 0}
    train({"run": tmp_path, "steps": 2, **given})
    before = {p: p.read_bytes() for p in (tmp_path / "checkpoint-2").rglob("*") if p.is_file()}
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))  # files beyond 1000 bytes cannot be written
    try:
        with pytest.raises(StorageError, match="checkpoint-4"):
            train({"run": tmp_path, "steps": 4, **given})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert {p: p.read_bytes() for p in (tmp_path / "checkpoint-2").rglob("*") if p.is_file()} == before
    assert not list(tmp_path.glob(".oxe-tmp-*"))
    train({"run": tmp_path, "steps": 4, **given})
    assert RunFolder(tmp_path).steps() == [2, 4]


def test_a_nan_loss_stops_the_run_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"loss became NaN or infinite by step \d+\. Lower .* \(now 1e\+30"):
        train({"run": tmp_path, "steps": 8, "learning_rate": 1e30, "clip": None, "log_every": 3})
    assert not RunFolder(tmp_path).steps()


def test_moments_are_restored_by_name(tmp_path: Path) -> None:
    config = toy.settings(tmp_path)
    family = toy.ToyFamily(config)
    optimizer = torch.optim.AdamW(family.parameter_groups(None))
    family(**toy.collate(toy.rows(np.arange(4))))["loss"].backward()
    optimizer.step()
    state = train_state.optimizer_state(family, optimizer)
    again = torch.optim.AdamW(family.parameter_groups(None))
    train_state.load_optimizer_state(family, again, dict(reversed(state.items())), tmp_path)
    for parameter, moments in optimizer.state.items():
        assert all(torch.equal(moments[key], again.state[parameter][key]) for key in moments)


def test_random_generators_are_restored() -> None:
    import random

    with train_state.untouched_random_state():
        first = (random.random(), np.random.rand(), torch.rand(1).item())
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == first


def test_a_meter_averages_and_resumes() -> None:
    meter, again = Meter(), Meter()
    meter.add({"loss": torch.tensor(1.0)})
    again.load(json.loads(json.dumps(meter.state(toy.ALONE))), toy.ALONE)
    for each in (meter, again):
        each.add({"loss": torch.tensor(2.0)})
        assert each.averages(toy.ALONE) == {"loss": 1.5}
        assert each.averages(toy.ALONE) == {}


def test_a_meter_averages_over_the_batches_that_have_a_value() -> None:
    meter = Meter()
    nothing = float("nan")
    for outputs in ({"loss": 1.0, "text": 4.0, "l1": nothing}, {"loss": 2.0}, {"loss": 3.0, "text": 2.0}):
        meter.add({key: torch.tensor(value) for key, value in outputs.items()})
    assert meter.averages(toy.ALONE) == {"loss": 2.0, "text": 3.0}
    meter.add({"loss": torch.tensor(nothing)})
    assert np.isnan(meter.averages(toy.ALONE)["loss"])


def test_an_incomplete_log_line_is_removed(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    Log(RunFolder(tmp_path), "none", {}, 5, 4, False).close()
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1, "loss": 2.0}\n'


def test_tensorboard_receives_the_log_lines(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    log = Log(RunFolder(tmp_path), "tensorboard", {}, 5, 0, False)
    log.line(1, {"loss": 0.5})
    log.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"train/loss" in events.read_bytes()


def test_progress_is_printed_as_lines_without_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for shown in (True, False):
        log = Log(RunFolder(tmp_path), "none", {}, 4, 0, shown)
        log.line(2, {"loss": 0.75})  # too soon after the start for a line of its own
        log.line(4, {"loss": 0.5, "samples_per_second": 3.0})
        log.validation(4, {"samples": 2, "loss": 0.25, "token_accuracy": 0.5, "datasets": {}})
        log.close()
        printed = capsys.readouterr().err.splitlines()
        assert printed == shown * [
            "step 4 of 4: loss 0.5000, 3.0 samples/s, 00:00 left",
            "validation after step 4: loss 0.25, token accuracy 0.5",
        ]


def test_the_trainer_is_a_hugging_face_trainer() -> None:
    from transformers import Trainer

    assert issubclass(FamilyTrainer, Trainer)
