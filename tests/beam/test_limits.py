"""Memory, disk and rights that end in the middle of a run: one clear error, no temporary file, finished files kept."""

import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from oxe_curate.atomic import is_internal
from oxe_curate.beam import runner
from oxe_curate.beam.task import FAILED, Outcome, do
from oxe_curate.errors import CurateError, DataError, StorageError, WorkerError
from oxe_curate.storage import Folder
from tests import ROOT


@dataclass(frozen=True)
class Fill:
    """Writes a file of `size` bytes, or does something else."""

    out: Folder
    number: int
    size: int = 1
    act: str = ""

    @property
    def name(self) -> str:
        return f"task {self.number}"

    @property
    def output(self) -> str:
        return f"{self.number:03d}.bin"


def fill(task: Fill) -> None:
    if task.act == "memory":
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (1 << 35, before[1]))
        try:
            np.zeros(1 << 36, np.uint8)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)
    if task.act == "system":
        raise OSError(errno.EIO, os.strerror(errno.EIO), "/data/shard")
    if task.act == "full":
        raise StorageError("x: the disk is full") from OSError(errno.ENOSPC, "full")
    if task.act == "data":
        raise DataError("task is damaged")
    task.out.publish_bytes(task.output, b"x" * task.size)


def run(tasks: list[Fill], workers: int) -> None:
    runner.run_tasks(tasks, fill, title="fill", workers=workers, progress=False)


def left(out: Path) -> list[str]:
    return sorted(path.name for path in out.rglob("*"))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_file_that_is_too_large_for_the_system(tmp_path: Path, workers: int) -> None:
    sizes = [10, 1 << 21, 20, 30]
    code = (
        "import resource, sys; from tests.beam.test_limits import *\n"
        "if __name__ == '__main__':\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        f"    run([Fill(Folder.of(sys.argv[1]), n, size) for n, size in enumerate({sizes})], {workers})\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    out = tmp_path / "out"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script, out], env=env, capture_output=True, text=True)
    assert "StorageError" in done.stderr.splitlines()[-2]
    assert f"{out}/001.bin: " in done.stderr
    assert done.stderr.endswith(f"Finished files are kept in {out}; run the same command again afterwards.\n")
    assert left(out) == ["000.bin", "002.bin", "003.bin"]


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs Linux's namespaces")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_ends_the_run_early(tmp_path: Path, workers: int) -> None:
    code = (
        "import sys; from tests.beam.test_limits import *\n"
        "if __name__ == '__main__':\n"
        "    out = Path(sys.argv[1])\n"
        "    tasks = [Fill(Folder.of(out), n, 100_000 - n) for n in range(40)]\n"
        "    try:\n"
        f"        run(tasks, {workers})\n"
        "    except CurateError as error:\n"
        "        print(type(error).__name__, error)\n"
        "    print(left(out))\n"
    )
    script, disk = tmp_path / "script.py", tmp_path / "disk"
    script.write_text(code)
    disk.mkdir()
    shell = f"mount -t tmpfs -o size=1m tmpfs {disk} && exec {sys.executable} {script} {disk}"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["unshare", "-rm", "sh", "-c", shell], env=env, capture_output=True, text=True)
    if "mount" in done.stderr or "unshare" in done.stderr:
        pytest.skip(f"cannot mount here: {done.stderr}")
    said, files = done.stdout.rstrip().rsplit("\n", 1)
    assert said.startswith(f"StorageError {disk}/0")
    assert "the disk is full. Free some space and run the same command again; finished work is kept" in said
    assert "of 40 tasks were not started, since they would fail too." in said
    assert files.count(".bin'") in (9, 10)
    assert ".oxe" not in files


@pytest.mark.parametrize("workers", [1, 2])
def test_out_of_memory_is_an_error_of_one_task(tmp_path: Path, workers: int) -> None:
    out = Folder.of(tmp_path / "out")
    with pytest.raises(WorkerError, match=r"^task 1: out of memory\. Use fewer --workers"):
        run([Fill(out, 0), Fill(out, 1, act="memory"), Fill(out, 2)], workers)
    assert left(out.path()) == ["000.bin", "002.bin"]


def test_an_error_of_the_system_is_explained(tmp_path: Path) -> None:
    out = Folder.of(tmp_path)
    with pytest.raises(StorageError, match=r"^task 0: /data/shard: Input/output error\n.*"):
        run([Fill(out, 0, act="system"), Fill(out, 1)], 1)
    assert left(tmp_path) == ["001.bin"]


def test_the_rest_is_left_out_where_the_disk_is_full(tmp_path: Path) -> None:
    out = Folder.of(tmp_path)
    with pytest.raises(StorageError, match=r"disk is full\n2 of 3 tasks were not started"):
        run([Fill(out, 0, act="full"), Fill(out, 1), Fill(out, 2)], 1)
    assert not left(tmp_path)
    with pytest.raises(DataError, match=r"task is damaged\nFinished"):  # another error does not end the run
        run([Fill(out, 0, act="data"), Fill(out, 1), Fill(out, 2)], 1)
    assert left(tmp_path) == ["001.bin", "002.bin"]


def test_failures_on_other_machines_are_never_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = Folder.of(tmp_path)
    twins = [Twin(out, name) for name in ("plumless", "buckeroo")]
    for task in twins:
        do(task, fail)
    assert len(list((tmp_path / FAILED).iterdir())) == 2  # their names have the same CRC-32

    def full(*_: object) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(Folder, "publish_bytes", full)
    with pytest.raises(
        RuntimeError, match=r"(?s)plumless: task is damaged.*This could not be written down: the disk is"
    ):
        do(twins[0], fail)


@dataclass(frozen=True)
class Twin:
    out: Folder
    output: str
    size: int = 1

    @property
    def name(self) -> str:
        return self.output


def fail(task: object) -> None:
    raise DataError("task is damaged")


def test_an_outcome_keeps_what_the_error_says(tmp_path: Path) -> None:
    kinds: list[tuple[Callable[[], BaseException], str]] = [
        (lambda: CurateError("a"), "CurateError"), (lambda: MemoryError(), "WorkerError"),
        (lambda: OSError(errno.ENOMEM, "m"), "WorkerError"), (lambda: OSError("no number"), ""),
        (lambda: ZeroDivisionError("b"), ""),
    ]  # fmt: skip
    from oxe_curate.beam import task as tasks

    seen: list[Outcome] = []
    tasks.report_to(seen.append)
    try:
        for make, kind in kinds:

            def raise_it(_: object, make: Callable[[], BaseException] = make) -> None:
                raise make()

            do(Fill(Folder.of(tmp_path), 0), raise_it)
            assert seen[-1].kind == kind
    finally:
        tasks.report_to(None)
    assert not any(map(is_internal, left(tmp_path)))
