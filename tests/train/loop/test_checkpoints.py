"""Checkpoints are complete or absent, and belong to one run."""

import errno
from dataclasses import asdict, replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from oxe_curate.errors import ConfigError, StorageError, WorkerError
from oxe_curate.train.config import LoraConfig, TrainConfig
from oxe_curate.train.loop import checkpoints
from oxe_curate.train.loop.processes import Processes
from tests.train.toy import ALONE, progress, settings


def fill(folder: Path) -> None:
    (folder / "weights").mkdir()
    (folder / "weights" / "w.bin").write_bytes(b"weights")


def write(run: Path, step: int, keep: int = 2) -> Path:
    return checkpoints.write_checkpoint(run, progress(step), fill, keep, ALONE)


def test_written_whole_and_the_oldest_go(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        write(tmp_path, step)
    assert checkpoints.steps(tmp_path) == [10, 100]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-100"]
    folder, found = checkpoints.last(tmp_path) or pytest.fail("none")
    assert (folder.name, found.step, found.files) == ("checkpoint-100", 100, {"weights/w.bin": 7})


def test_a_write_that_fails_leaves_nothing_and_harms_nothing(tmp_path: Path) -> None:
    write(tmp_path, 1)

    def full(folder: Path) -> None:
        fill(folder)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StorageError, match=r"checkpoint-2: the disk is full. Free some space"):
        checkpoints.write_checkpoint(tmp_path, progress(2), full, 1, ALONE)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-1"]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), "the disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "your quota is used up"),
        (OSError(errno.EROFS, "Read-only file system"), "read-only"),
        (RuntimeError("[enforce fail at inline_container.cc] PytorchStreamWriter failed writing file"), "cannot be"),
    ],
)
def test_a_wrapped_system_error_is_told_plainly(error: Exception, told: str, tmp_path: Path) -> None:
    def failing(folder: Path) -> None:
        raise error

    with pytest.raises(StorageError, match=told):
        checkpoints.write_checkpoint(tmp_path, progress(2), failing, 1, ALONE)


def test_another_fault_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="size mismatch"):
        checkpoints.write_checkpoint(
            tmp_path, progress(2), lambda _: (_ for _ in ()).throw(RuntimeError("size mismatch")), 1, ALONE
        )
    assert not list(tmp_path.iterdir())


def test_a_fault_in_another_process_stops_this_one_too(tmp_path: Path) -> None:
    class OtherFails(Processes):
        def any(self, flag: bool) -> bool:
            return True

    with pytest.raises(WorkerError, match="another process"):
        checkpoints.write_checkpoint(tmp_path, progress(2), fill, 1, OtherFails(0, 2, torch.device("cpu")))


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path, 1)
    (write(tmp_path, 2) / "weights" / "w.bin").write_bytes(b"weig")
    assert (checkpoints.last(tmp_path) or pytest.fail("none"))[1].step == 1
    (tmp_path / "checkpoint-1" / "progress.json").write_text("{")
    assert checkpoints.last(tmp_path) is None


def test_sweep_removes_what_a_killed_run_left(tmp_path: Path) -> None:
    write(tmp_path, 1)
    (tmp_path / ".oxe-tmp-checkpoint-2" / "weights").mkdir(parents=True)
    (tmp_path / ".oxe-tmp-7-log.jsonl").write_text("")
    checkpoints.sweep(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-1"]


def told(config: TrainConfig) -> checkpoints.Progress:
    import json

    return progress(5, config=json.loads(json.dumps(asdict(config))), hashes={"mixture": "m", "base": "b"})


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 99}, {"workers": 3}, {"save_every": 7}, {"keep": 9}, {"log": "tensorboard"}, {"shard": "fsdp"},
        {"checkpointing": True}, {"data": "elsewhere"}, {"run": "moved"},
    ],
)  # fmt: skip
def test_what_may_change(change: dict[str, object], tmp_path: Path) -> None:
    config = settings(tmp_path)
    checkpoints.check_same_run(tmp_path, told(config), replace(config, **change), {"mixture": "m", "base": "b"})


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"learning_rate": 1e-3}, "learning_rate: was 0.01, now is 0.001"),
        ({"seed": 1}, "seed"),
        ({"adapter": "lora", "lora": LoraConfig(rank=8)}, r"lora\.rank: was 32, now is 8"),
        ({"cameras": ("primary", "wrist")}, "cameras"),
    ],
)
def test_what_may_not_is_named(change: dict[str, object], key: str, tmp_path: Path) -> None:
    config = settings(tmp_path)
    with pytest.raises(ConfigError, match=key):
        checkpoints.check_same_run(tmp_path, told(config), replace(config, **change), {"mixture": "m", "base": "b"})


@pytest.mark.parametrize("name", ["mixture", "base"])
def test_another_mixture_or_base_is_refused(name: str, tmp_path: Path) -> None:
    config = settings(tmp_path)
    hashes: dict[str, str | None] = {"mixture": "m", "base": "b"} | {name: "x"}
    with pytest.raises(ConfigError, match=rf"{name}: - is not the one that this run began with"):
        checkpoints.check_same_run(tmp_path, told(config), config, hashes)


def test_the_samples_of_a_step_must_stay(tmp_path: Path) -> None:
    config = settings(tmp_path, batch_size=1, accumulation=2)
    checkpoints.check_global_batch(tmp_path, told(config), config, 2)
    with pytest.raises(ConfigError, match=r"took 4 samples, now it would take 6"):
        checkpoints.check_global_batch(tmp_path, told(config), config, 3)
