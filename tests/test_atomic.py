import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest

from oxe_curate import process
from oxe_curate.atomic import (
    TEMPORARY,
    atomic_file,
    atomic_files,
    atomic_folder,
    make_folders,
    recover,
    remove,
    sweep,
    temporary_path,
)
from tests import ROOT


def interrupted(target: Path, manager: Callable[[Path], AbstractContextManager[Path]]) -> None:
    with manager(target) as temporary:
        (temporary / "third" if temporary.is_dir() else temporary).write_text("half")
        raise ZeroDivisionError


def test_several_files_appear_together_or_not_at_all(tmp_path: Path) -> None:
    targets = [tmp_path / "a.txt", tmp_path / "below" / "b.txt"]
    targets[1].parent.mkdir()
    targets[0].write_text("old")
    with pytest.raises(FileNotFoundError), atomic_files(targets) as temporary:
        temporary[0].write_text("half")  # and the other one never
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [targets[0]]
    assert targets[0].read_text() == "old"
    with atomic_files(targets) as temporary:
        for path, text in zip(temporary, "ab", strict=True):
            path.write_text(text)
        assert targets[0].read_text() == "old"
    assert [path.read_text() for path in targets] == ["a", "b"]
    with atomic_files([]):
        pass


def test_a_file_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError):
        interrupted(target, atomic_file)
    assert target.read_text() == "old"
    with atomic_file(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert target.read_text() == "new"


def test_a_folder_replaces_the_old_one_or_leaves_it(tmp_path: Path) -> None:
    target = tmp_path / "run"
    for content in ("first", "second"):
        with atomic_folder(target) as temporary:
            (temporary / content).touch()
    assert [path.name for path in target.iterdir()] == ["second"]
    with pytest.raises(ZeroDivisionError):
        interrupted(target, atomic_folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "second"]


def test_what_a_killed_run_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / f"{TEMPORARY}12-run").mkdir()
    (tmp_path / f"{TEMPORARY}12-run" / "file").touch()
    (tmp_path / f"{TEMPORARY}a.txt").touch()
    (tmp_path / "kept").touch()
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_temporary_names_are_unique_and_match_no_pattern(tmp_path: Path) -> None:
    target = tmp_path / "a.parquet"
    names = [temporary_path(target).name for _ in range(100)]
    thread = threading.Thread(target=lambda: names.append(temporary_path(target).name))
    thread.start()
    thread.join()
    assert len(set(names)) == 101
    mine = process.labelled(names[0].removeprefix(TEMPORARY))
    assert mine is not None
    assert mine.runs()
    assert (mine.pid, mine.start) == (os.getpid(), process.this_process().start)
    assert names[0].split("-")[5] != names[-1].split("-")[5]  # the thread
    with atomic_file(target) as temporary:
        temporary.touch()
        assert not list(tmp_path.glob("*.parquet"))


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "x" * 251 + ".txt", "short"])
def test_names_may_be_as_long_as_the_system_allows(tmp_path: Path, name: str) -> None:
    with atomic_file(tmp_path / name) as temporary:
        temporary.write_text("whole")
    assert (tmp_path / name).read_text() == "whole"
    folder = tmp_path / f"_{name}"[:255] if name.isascii() else tmp_path / name[:-1]
    for content in ("first", "second"):
        with atomic_folder(folder) as temporary:
            (temporary / content).touch()
    assert [path.name for path in folder.iterdir()] == ["second"]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, events = tmp_path / "new" / "deep" / "a.txt", []
    fsync, replaced = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        events.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    def renamed(self: Path, other: Path) -> Path:
        events.append(other)
        return replaced(self, other)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    make_folders(target.parent)
    assert {tmp_path, tmp_path / "new"} == set(events)
    events.clear()
    with atomic_file(target) as temporary:
        temporary.write_text("x")
    assert events == [temporary, target, target.parent]


CRASH = """
import os, sys
from pathlib import Path
from oxe_curate.atomic import atomic_folder
left, rename = int(sys.argv[2]), Path.rename

def crashing(self, target):
    global left
    left -= 1
    if left < 0:
        os._exit(9)
    return rename(self, target)

Path.rename = crashing
with atomic_folder(Path(sys.argv[1])) as temporary:
    (temporary / "a").write_text("new")
    (temporary / "b").write_text("new")
"""


@pytest.mark.parametrize("renames", [0, 1, 2, 3])
@pytest.mark.parametrize("repair", [recover, sweep])
def test_a_crash_while_a_folder_is_replaced_keeps_the_old_or_the_new(
    tmp_path: Path, renames: int, repair: Callable[[Path], None]
) -> None:
    target = tmp_path / "run"
    target.mkdir()
    for name in ("a", "b"):
        (target / name).write_text("old")
    code = subprocess.run([sys.executable, "-c", CRASH, target, str(renames)], cwd=ROOT).returncode
    assert code == (9 if renames < 3 else 0)
    repair(tmp_path)
    repair(tmp_path)
    found = {path.name: path.read_text() for path in target.iterdir()}
    assert found == dict.fromkeys("ab", "old" if renames < 2 else "new")
    if repair is sweep:
        assert list(tmp_path.iterdir()) == [target]


def test_what_a_crash_left_is_not_restored_over_a_removed_folder(tmp_path: Path) -> None:
    target = tmp_path / "run"
    target.mkdir()
    subprocess.run([sys.executable, "-c", CRASH, target, "2"], cwd=ROOT)
    recover(tmp_path)  # the new one is there
    remove(target)
    sweep(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_failed_rename_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "run"
    with atomic_folder(target) as temporary:
        (temporary / "old").touch()
    rename = Path.rename

    def refused(self: Path, other: Path) -> Path:
        if (self / "new").exists():
            raise PermissionError("not now")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(PermissionError), atomic_folder(target) as temporary:
        (temporary / "new").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "old"]


def test_only_what_no_process_writes_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = "import sys; from pathlib import Path; from oxe_curate.atomic import temporary_path\n"
    writer += "print(temporary_path(Path(sys.argv[1])), flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", writer, tmp_path / "deep" / "a"], cwd=ROOT, text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert other.stdout is not None
    theirs = Path(other.stdout.readline().rstrip())
    theirs.parent.mkdir()
    theirs.touch()
    far = temporary_path(tmp_path / "far")
    mine = process.this_process()
    far = far.with_name(far.name.replace(mine.machine, "0" * 8))
    again = temporary_path(tmp_path / "again")
    again = again.with_name(again.name.replace(f"-{mine.start}-", f"-{mine.start + 1}-"))
    for path in (far, again, temporary_path(tmp_path / "mine")):
        path.touch()
    sweep(tmp_path, recursive=True)
    assert {path.name.rsplit("-", 1)[-1] for path in tmp_path.iterdir()} == {"deep", "far.part", "mine.part"}
    assert theirs.exists()
    os.utime(far, (far.stat().st_mtime - 3601,) * 2)
    other.communicate("")
    sweep(tmp_path, recursive=True)
    assert sorted(path.name.rsplit("-", 1)[-1] for path in tmp_path.rglob("*")) == ["deep", "mine.part"]
    assert replace(mine, machine="0" * 8).runs() is None
    assert shutil.which("ps")
