from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from oxe_curate.atomic import TEMPORARY, atomic_file, atomic_folder, sweep


def interrupted(target: Path, manager: Callable[[Path], AbstractContextManager[Path]]) -> None:
    with manager(target) as temporary:
        (temporary / "third" if temporary.is_dir() else temporary).write_text("half")
        raise ZeroDivisionError


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
