import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxe_curate.editor.files import MixtureFile, restore, view
from oxe_curate.errors import ConfigError, StorageError
from tests.editor.odd_files import ODD_FILES

BREAKS = st.sampled_from(["\n", "\r\n", "\r"])
RAW = st.tuples(st.booleans(), st.lists(st.tuples(st.text("ab:🤖 ", max_size=4), BREAKS), max_size=8)).map(
    lambda t: (("\ufeff" if t[0] else "") + "".join(a + b for a, b in t[1])).encode()
)


@pytest.mark.parametrize("name", ODD_FILES)
def test_an_unchanged_text_has_the_same_bytes(name):
    raw = ODD_FILES[name].encode()
    assert "\r" not in view(raw)
    assert restore(view(raw), raw) == raw


@given(RAW)
def test_any_text_survives_a_round_trip(raw):
    assert restore(view(raw), raw) == raw


@given(RAW, st.data())
def test_unchanged_lines_keep_their_line_break(raw, data):
    lines = view(raw).split("\n")
    i = data.draw(st.integers(0, len(lines) - 1))
    lines[i] = "changed 🦾"
    after = restore("\n".join(lines), raw)
    assert view(after) == "\n".join(lines)
    before = restore("\n".join(lines[:i] + view(raw).split("\n")[i : i + 1] + lines[i + 1 :]), raw)
    assert before == raw
    assert after.count(b"\r") == raw.count(b"\r")


def test_a_new_line_gets_the_most_common_line_break():
    raw = b"a\r\nb\r\nc\nd\r\n"
    assert restore("a\nnew\nb\nc\nd\n", raw) == b"a\r\nnew\r\nb\r\nc\nd\r\n"


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_bytes(b"name: m\r\ndatasets: []\r\n")
    return path


def test_save_without_a_change_does_not_touch_the_file(path):
    file = MixtureFile(path)
    before = path.stat()
    done, now = file.save(file.read().text, file.read().digest)
    after = path.stat()
    assert done
    assert now.data == b"name: m\r\ndatasets: []\r\n"
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_save_keeps_line_breaks_and_mode_and_leaves_no_temporary_file(path):
    path.chmod(0o640)
    file = MixtureFile(path)
    assert file.save("name: n\ndatasets: []\n", file.read().digest)[0]
    assert path.read_bytes() == b"name: n\r\ndatasets: []\r\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [p.name for p in path.parent.iterdir()] == ["my.yaml"]


def test_a_new_file_has_the_usual_mode(tmp_path):
    file = MixtureFile(tmp_path / "new.yaml")
    assert file.read().digest == ""
    assert file.save("name: n\n", "")[0]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "new.yaml").stat().st_mode) == 0o666 & ~mask


def test_a_file_that_changed_is_not_overwritten(path):
    file = MixtureFile(path)
    base = file.read().digest
    path.write_bytes(b"theirs")
    done, now = file.save("mine\n", base)
    assert not done
    assert now.text == "theirs"
    assert path.read_bytes() == b"theirs"
    assert file.save("mine\n", base, force=True)[0]
    path.unlink()
    done, now = file.save("mine\n", base)
    assert (done, now.data) == (False, None)
    assert not path.exists()


def test_a_failed_write_keeps_the_old_file(path, monkeypatch):
    file = MixtureFile(path)
    base = file.read().digest
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(StorageError, match=r"disk is full.*Nothing was written"):
        file.save("name: n\n", base)
    assert path.read_bytes() == b"name: m\r\ndatasets: []\r\n"
    assert [p.name for p in path.parent.iterdir()] == ["my.yaml"]


def test_a_link_is_followed_once(tmp_path, path):
    link = tmp_path / "link.yaml"
    link.symlink_to(path)
    file = MixtureFile(link)
    assert file.is_link
    assert file.save("name: n\ndatasets: []\n", file.read().digest)[0]
    assert link.is_symlink()
    assert path.read_bytes() == b"name: n\r\ndatasets: []\r\n"
    secret = tmp_path / "secret.yaml"
    secret.write_bytes(b"secret")
    link.unlink()
    link.symlink_to(secret)
    for attempt in (file.read, lambda: file.save("x", "", force=True)):
        with pytest.raises(StorageError, match="another file"):
            attempt()
    assert secret.read_bytes() == b"secret"


def test_a_file_that_became_a_link_is_not_followed(tmp_path, path):
    file = MixtureFile(path)
    secret = tmp_path / "secret.yaml"
    secret.write_bytes(b"secret")
    path.unlink()
    path.symlink_to(secret)
    with pytest.raises(StorageError, match="another file"):
        file.save("x", "", force=True)
    assert secret.read_bytes() == b"secret"


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(ConfigError, match="regular file"):
        MixtureFile(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises((ConfigError, StorageError)):
        MixtureFile(tmp_path / "folder.yaml")
    big = tmp_path / "big.yaml"
    big.write_bytes(b"#" * (5 << 20))
    with pytest.raises(ConfigError, match="4 MB"):
        MixtureFile(big)
