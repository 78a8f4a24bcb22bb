import os
import pickle
import stat
from pathlib import Path
from typing import Any

import pytest

from oxe_curate.atomic import TEMPORARY
from oxe_curate.errors import StorageError
from oxe_curate.storage import Folder


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = Folder.of(tmp_path)

    def breaks_off(sink: Any) -> None:
        sink.write(b"half")
        assert not (tmp_path / "a/b.bin").exists()
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        folder.publish("a/b.bin", breaks_off)
    assert list((tmp_path / "a").iterdir()) == []
    folder.publish("a/b.bin", lambda sink: sink.write(b"whole"))
    assert (tmp_path / "a/b.bin").read_bytes() == b"whole"


def test_several_files_are_published_and_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr("oxe_curate.atomic._sync", lambda path: synced.append(path.name))
    folder = Folder.of(tmp_path / "out")
    folder.publish_bytes("c", b"3", sync=False)
    assert not {"c", "out"} & set(synced[1:])  # the folder's own name is synced where it was made
    folder.publish_many({"a/b": b"1", "d": b"2"})
    assert [file.name for file in folder.list_files()] == ["a/b", "c", "d"]
    assert folder.read_bytes("a/b") == b"1"
    assert any("b" in name for name in synced)
    assert any("d" in name for name in synced)
    synced.clear()
    folder.sync_files(["c"])
    assert sorted(synced) == ["c", "out"]


def test_reading_listing_removing(tmp_path: Path) -> None:
    folder = Folder.of(tmp_path)
    folder.publish_bytes("x/one", b"0123456789")
    folder.publish_bytes("x/y/two", b"")
    assert [(n, d) for n, d, _ in folder.list("x", recursive=True)] == [
        ("x/one", False),
        ("x/y", True),
        ("x/y/two", False),
    ]
    assert folder.read_bytes("x/one", 2, 3) == b"234"
    assert (folder.size("x/one"), folder.exists("x/y"), folder.exists("z")) == (10, True, False)
    folder.remove("x/one")
    folder.remove("x/one")
    assert not folder.exists("x/one")
    assert list(folder.list("nowhere")) == []


def test_what_a_killed_run_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / f"deep/{TEMPORARY}123-a.parquet").write_bytes(b"half")
    (tmp_path / "deep/a.parquet").write_bytes(b"whole")
    Folder.of(tmp_path).sweep()
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.parquet"]


def test_a_folder_pickles_as_its_name_and_is_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Folder.of("data")
    assert pickle.loads(pickle.dumps(folder)).uri == str(tmp_path / "data")
    assert Folder.of("gs://bucket/a/").sub("b").uri == "gs://bucket/a/b"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(StorageError, match="permission denied"):
        Folder.of(tmp_path).check_writable()


def test_errors_say_which_file_and_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="file/below"):
        Folder.of(tmp_path).publish_bytes("file/below", b"")
    with pytest.raises(StorageError, match=r"missing: file or folder not found"):
        Folder.of(tmp_path).read_bytes("missing")
    with pytest.raises(StorageError, match=r"unknown scheme ftp://"):
        Folder.of("ftp://host/x").exists("y")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, the device that is always full")
def test_a_full_disk_is_said_to_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa

    real = pa.OSFile
    monkeypatch.setattr(pa, "OSFile", lambda path, mode: real("/dev/full", mode))
    with pytest.raises(StorageError, match=r"out/a: the disk is full.*finished work is kept"):
        Folder.of(tmp_path / "out").publish_bytes("a", bytes(1 << 20))


def test_an_unwritable_folder_is_named_itself(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/out: cannot write: a parent of the path is a file"):
        Folder.of(tmp_path / "file/out").check_writable()


def test_listed_files_have_the_identity_of_a_single_look(tmp_path: Path) -> None:
    folder = Folder.of(tmp_path)
    folder.publish_bytes("a/one", b"0123456789")
    folder.publish_bytes("a/b/two", b"")
    folder.publish_bytes("three", b"x")
    (tmp_path / f"a/{TEMPORARY}9-x").write_bytes(b"half")
    assert [(file.name, file.size) for file in folder.list_files()] == [("a/b/two", 0), ("a/one", 10), ("three", 1)]
    assert [file.name for file in folder.list_files("a")] == ["a/b/two", "a/one"]
    assert folder.list_files("nowhere") == []
    (one,) = [file for file in folder.list_files() if file.name == "a/one"]
    assert one.identity == folder.identity("a/one")
    os.utime(tmp_path / "a/one", ns=(1, one.mtime_ns))
    assert folder.identity("a/one") != one.identity  # the time of the change to the file itself
    with pytest.raises(StorageError, match="a/none: file or folder not found"):
        folder.identity("a/none")
