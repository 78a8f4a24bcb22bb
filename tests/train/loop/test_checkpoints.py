"""Checkpoints are complete or absent, and belong to one run."""

import errno
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from oxe_curate.atomic import sweep
from oxe_curate.errors import ConfigError, StorageError, WorkerError
from oxe_curate.train.config import LoraConfig, TrainConfig
from oxe_curate.train.loop.checkpoints import Progress, last_checkpoint, save_checkpoint
from oxe_curate.train.loop.distributed import Distributed
from oxe_curate.train.loop.resume import check_same_run
from oxe_curate.train.run_folder import CheckpointFolder, RunFolder
from tests.train.toy import ALONE, progress, settings

SAME: dict[str, str | None] = {"mixture": "m", "base": "b"}


def fill(folder: CheckpointFolder) -> None:
    folder.weights.mkdir()
    (folder.weights / "w.bin").write_bytes(b"weights")


def write(run: Path, step: int, keep: int = 2) -> CheckpointFolder:
    return save_checkpoint(RunFolder(run), progress(step), fill, keep, ALONE)


def test_old_checkpoints_are_removed(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        write(tmp_path, step)
    assert RunFolder(tmp_path).steps() == [10, 100]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-100"]
    folder, found = last_checkpoint(RunFolder(tmp_path)) or pytest.fail("none")
    assert (folder.path.name, found.step, found.files) == ("checkpoint-100", 100, {"weights/w.bin": 7})


def test_a_failed_write_leaves_earlier_checkpoints_intact(tmp_path: Path) -> None:
    write(tmp_path, 1)

    def full(folder: CheckpointFolder) -> None:
        fill(folder)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StorageError, match=r"checkpoint-2: the disk is full. Free some space"):
        save_checkpoint(RunFolder(tmp_path), progress(2), full, 1, ALONE)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-1"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), "the disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk quota exceeded"),
        (OSError(errno.EROFS, "Read-only file system"), "read-only"),
        (RuntimeError("[enforce fail at inline_container.cc] PytorchStreamWriter failed writing file"), "cannot be"),
    ],
)
def test_a_wrapped_system_error_is_explained(error: Exception, message: str, tmp_path: Path) -> None:
    def failing(folder: CheckpointFolder) -> None:
        raise error

    with pytest.raises(StorageError, match=message):
        save_checkpoint(RunFolder(tmp_path), progress(2), failing, 1, ALONE)


def test_other_errors_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="size mismatch"):
        save_checkpoint(
            RunFolder(tmp_path), progress(2), lambda _: (_ for _ in ()).throw(RuntimeError("size mismatch")), 1, ALONE
        )
    assert not list(tmp_path.iterdir())


def test_a_failure_in_another_process_is_raised_here(tmp_path: Path) -> None:
    class OtherFails(Distributed):
        def any(self, flag: bool) -> bool:
            return True

    with pytest.raises(WorkerError, match="another process"):
        save_checkpoint(RunFolder(tmp_path), progress(2), fill, 1, OtherFails(0, 2, torch.device("cpu")))


def test_a_damaged_checkpoint_is_skipped(tmp_path: Path) -> None:
    write(tmp_path, 1)
    (write(tmp_path, 2).weights / "w.bin").write_bytes(b"weig")
    assert (last_checkpoint(RunFolder(tmp_path)) or pytest.fail("none"))[1].step == 1
    (tmp_path / "checkpoint-1" / "progress.json").write_text("{")
    assert last_checkpoint(RunFolder(tmp_path)) is None


def test_sweep_removes_leftovers_of_a_killed_run(tmp_path: Path) -> None:
    write(tmp_path, 1)
    (tmp_path / ".oxe-tmp-checkpoint-2" / "weights").mkdir(parents=True)
    (tmp_path / ".oxe-tmp-7-log.jsonl").write_text("")
    sweep(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-1"]


def saved(config: TrainConfig, **values: object) -> Progress:
    return progress(5, config=json.loads(json.dumps(asdict(config))), hashes={"mixture": "m", "base": "b"}, **values)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 99}, {"workers": 3}, {"save_every": 7}, {"keep": 9}, {"log": "tensorboard"}, {"shard": "fsdp"},
        {"checkpointing": True}, {"data": "elsewhere"}, {"run": "moved"},
    ],
)  # fmt: skip
def test_settings_that_may_change_on_resume(change: dict[str, object], tmp_path: Path) -> None:
    config = settings(tmp_path)
    check_same_run(CheckpointFolder(tmp_path), saved(config), replace(config, **change), SAME, 1)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"learning_rate": 1e-3}, "learning_rate: was 0.01, is now 0.001"),
        ({"seed": 1}, "seed"),
        ({"adapter": "lora", "lora": LoraConfig(rank=8)}, r"lora\.rank: was 32, is now 8"),
        ({"cameras": ("primary", "wrist")}, "cameras"),
    ],
)
def test_settings_that_must_not_change_are_listed(change: dict[str, object], key: str, tmp_path: Path) -> None:
    config = settings(tmp_path)
    with pytest.raises(ConfigError, match=key):
        check_same_run(CheckpointFolder(tmp_path), saved(config), replace(config, **change), SAME, 1)


@pytest.mark.parametrize("name", ["mixture", "base"])
def test_another_mixture_or_base_is_refused(name: str, tmp_path: Path) -> None:
    config = settings(tmp_path)
    hashes: dict[str, str | None] = {"mixture": "m", "base": "b"} | {name: "x"}
    with pytest.raises(ConfigError, match=rf"{name}: - is not the one that this run started with"):
        check_same_run(CheckpointFolder(tmp_path), saved(config), config, hashes, 1)


def test_the_global_batch_must_not_change(tmp_path: Path) -> None:
    config = settings(tmp_path, batch_size=1, accumulation=2)
    check_same_run(CheckpointFolder(tmp_path), saved(config), config, SAME, 2)
    with pytest.raises(ConfigError, match=r"took 4 samples and would now take 6"):
        check_same_run(CheckpointFolder(tmp_path), saved(config), config, SAME, 3)
