"""The lock of an output folder: held by one process, described to others, and stale where its process has ended."""

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from oxe_curate import lock, process
from oxe_curate.atomic import LOCK
from oxe_curate.errors import ConfigError
from oxe_curate.lock import check_locks
from oxe_curate.outputs import OutputKind, hold_output
from oxe_curate.storage import Folder
from tests import ROOT
from tests.s3 import bucket

HOLD = (
    "import sys, time; from oxe_curate.outputs import hold_output\n"
    "with hold_output(sys.argv[1], 'index'): print('held', flush=True); time.sleep(600)"
)


@contextlib.contextmanager
def other(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a folder."""
    holder = subprocess.Popen([sys.executable, "-c", HOLD, folder], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield holder
    finally:
        holder.kill()
        holder.communicate()


def write_lock(folder: Path, **change: Any) -> dict[str, Any]:
    """A lock as a process of another machine leaves it, or, with changes, another process."""
    folder.mkdir(exist_ok=True)
    one = {"host": "far", "machine": "0" * 8, "pid": 7, "start": 5}
    content = {
        "command": "oxe-curate filter in", "user": "ada", "since": "today", "process": one, "boot": "0" * 8,
        "nonce": "a", "flock": True,
    } | change  # fmt: skip
    (folder / LOCK).write_text(json.dumps(content))
    return content


def here(pid: int, start: int, flock: bool = False) -> dict[str, Any]:
    mine = dataclasses.replace(process.this_process(), pid=pid, start=start)
    return {"process": dataclasses.asdict(mine), "boot": process.this_boot(), "flock": flock}


@pytest.fixture(params=["flock", "no flock"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file system with or without locks."""

    def fails(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    if request.param == "no flock":
        monkeypatch.setattr(fcntl, "flock", fails)
    return str(request.param)


@pytest.mark.parametrize("kind", ["index", "mixture", "run", "export", "evaluation", "demo"])
def test_a_lock_leaves_nothing(tmp_path: Path, kind: OutputKind, system: str) -> None:
    with hold_output(tmp_path / "new" / "deep", kind):
        assert [path.name for path in tmp_path.rglob(f"{LOCK}*")]
    assert not list(tmp_path.iterdir())
    with pytest.raises(ZeroDivisionError), hold_output(tmp_path / "failed", kind):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    (tmp_path / "kept").mkdir()
    with hold_output(tmp_path / "kept", kind):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_another_process_is_refused_with_the_name_of_the_holder(tmp_path: Path, system: str) -> None:
    with other(tmp_path) as holder:
        with pytest.raises(ConfigError) as refused, hold_output(tmp_path, "index"):
            pass
        text = str(refused.value)
        assert text.startswith(
            f"--out {tmp_path}: another process is writing here (-c {tmp_path}, process {holder.pid}"
        )
        assert f"on {os.uname().nodename}, user {lock._user()}, since 20" in text
        assert f"If it has ended, remove {tmp_path}/{LOCK}" in text
        assert holder.poll() is None
        holder.send_signal(signal.SIGSTOP)  # a stopped process still holds it
        with pytest.raises(ConfigError, match="another process"), hold_output(tmp_path, "index"):
            pass
        holder.kill()
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # ended, but its parent has not noticed
        assert (tmp_path / LOCK).exists()
        with hold_output(tmp_path, "index"):
            assert json.loads((tmp_path / LOCK).read_text())["process"]["pid"] == os.getpid()


def test_two_threads_do_not_share_a_folder(tmp_path: Path, system: str) -> None:
    with hold_output(tmp_path, "index"):
        with pytest.raises(ConfigError, match="another process is writing"), hold_output(tmp_path, "index"):
            pass
        with hold_output(tmp_path / "inside", "mixture"):  # another folder, as demo's
            pass
    with hold_output(tmp_path, "index"):
        pass


def test_a_number_that_is_used_again_does_not_hold_a_folder(tmp_path: Path, system: str) -> None:
    mine = process.this_process()
    write_lock(tmp_path, **here(mine.pid, mine.start + 1))
    with hold_output(tmp_path, "index"):
        pass
    write_lock(tmp_path, **here(mine.pid, mine.start))
    with pytest.raises(ConfigError, match="another process"), hold_output(tmp_path, "index"):
        pass


def test_a_lock_that_the_system_has_released_is_stale_also_from_another_container(tmp_path: Path) -> None:
    write_lock(tmp_path, boot=process.this_boot())  # another process table of this machine
    with hold_output(tmp_path, "index"):
        pass


def test_a_lock_of_another_machine_counts_for_five_minutes(tmp_path: Path, system: str) -> None:
    write_lock(tmp_path)
    with pytest.raises(ConfigError, match=r"filter in, process 7 on far, user ada, .* 5 minutes after its last sign"):
        hold_output(tmp_path, "index").__enter__()
    before = (tmp_path / LOCK).stat().st_mtime - 301
    os.utime(tmp_path / LOCK, (before, before))
    with hold_output(tmp_path, "index"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_lock_is_touched_while_it_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_BEAT", 0.01)
    touched = threading.Event()
    utime = os.utime

    def seen(*args: Any) -> None:
        utime(*args)
        touched.set()

    with hold_output(tmp_path, "index"):
        os.utime(tmp_path / LOCK, (0, 0))
        monkeypatch.setattr(os, "utime", seen)
        assert touched.wait(60)
        assert (tmp_path / LOCK).stat().st_mtime > 0


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"process": 1}', b"\xff" * 100, b'{"process": {}}'])
def test_a_damaged_lock_or_one_of_an_earlier_version_is_taken(tmp_path: Path, content: bytes, system: str) -> None:
    (tmp_path / LOCK).write_bytes(content)
    with hold_output(tmp_path, "index"):
        check_locks()


def test_a_lock_that_was_lost_fails_the_command(tmp_path: Path) -> None:
    def remove() -> None:
        with hold_output(tmp_path, "run"):
            (tmp_path / LOCK).unlink()
            with pytest.raises(ConfigError, match=f"--run {tmp_path}"):
                check_locks()

    def take_over() -> None:
        with hold_output(tmp_path, "index"):
            (tmp_path / LOCK).unlink()
            write_lock(tmp_path)

    with pytest.raises(ConfigError, match=r"the lock .* was removed by another process"):
        remove()
    with pytest.raises(ConfigError, match=r"was taken over by oxe-curate filter in, process 7 on far"):
        take_over()
    assert (tmp_path / LOCK).exists()  # of the other process
    check_locks()


def test_the_contents_are_checked_again_under_the_lock(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").touch()  # written since `claim_output`
    with pytest.raises(ConfigError, match="holds a mixture"), hold_output(tmp_path, "index"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_the_command_is_named_without_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/oxe-curate", "filter", "a folder", "--out", "x", "--", "--token=secret"])
    assert lock._command() == "oxe-curate filter 'a folder'"


def test_an_object_store_has_a_lock_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with bucket() as uri:
        out = f"{uri}/index"
        folder = Folder.of(out)
        with hold_output(out, "index"):
            held = folder.read_bytes(LOCK)
            with pytest.raises(ConfigError, match=rf"{out}: another process is writing here .*remove {out}/{LOCK}"):
                hold_output(out, "index").__enter__()
            assert folder.read_bytes(LOCK) == held
        assert not folder.exists(LOCK)
        write_lock(tmp_path)
        folder.publish_bytes(LOCK, (tmp_path / LOCK).read_bytes())
        with pytest.raises(ConfigError, match="on far"):
            hold_output(out, "index").__enter__()
        monkeypatch.setattr(lock, "_STALE", -1.0)
        with hold_output(out, "index"):
            pass
        assert not folder.exists(LOCK)


def test_of_two_that_start_together_in_an_object_store_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with bucket() as uri:
        folder = Folder.of(f"{uri}/index")

        def overtaken(_: float) -> None:  # another writer between this one's write and its look
            content = json.loads(folder.read_bytes(LOCK))
            folder.publish_bytes(LOCK, json.dumps(content | {"nonce": "b", "command": "other"}).encode())

        monkeypatch.setattr(lock, "time", SimpleNamespace(sleep=overtaken))
        with pytest.raises(ConfigError, match=r"another process is writing here \(other, "):
            hold_output(folder.uri, "index").__enter__()
        assert json.loads(folder.read_bytes(LOCK))["nonce"] == "b"
