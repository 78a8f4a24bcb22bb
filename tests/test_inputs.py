"""Files that are not what they should be end in one error, at once."""

import os
from pathlib import Path

import pytest

from oxe_curate.errors import ConfigError, DataError
from oxe_curate.inputs import decode_text, load_json, parse_json, read_input


def test_reads_a_regular_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 10)
    (tmp_path / "link").symlink_to("a")
    assert read_input(tmp_path / "link", 10) == b"x" * 10


def test_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="expected a regular file, got a pipe"):
        read_input(tmp_path / "pipe", 10)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing", "file not found"), ("folder", "is a folder, not a file"), ("loop", "symbolic links"),
        ("zero", "a pipe, a socket or a device"), ("x" * 300, "File name too long"),
        ("file/x", "is a file, not a folder"),
        ("a\0b", "not a path"), ("large", "expected a YAML file of at most 10 bytes, got 11 bytes"),
    ],
)  # fmt: skip
def test_anything_else_is_refused(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "large").write_bytes(b"x" * 11)
    with pytest.raises(DataError, match=words):
        read_input(tmp_path / name, 10, "YAML file", DataError)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "a").chmod(0)
    with pytest.raises(ConfigError, match="permission denied"):
        read_input(tmp_path / "a", 10)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"a: 1\nb: \xff", "m:2: not UTF-8"),
        ("a: 1".encode("utf-16"), "is UTF-16; save it as UTF-8"),
        (b"ok\n\xed\xa0\x80", "m:2: not UTF-8"),
    ],
)
def test_text_that_is_not_utf8(data: bytes, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        decode_text(data, "m")
    assert decode_text(b"\xef\xbb\xbfa", "m") == "a"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "nested too deeply"), ('{"a":' * 5000 + "1" + "}" * 5000, "nested too deeply"),
        ("[NaN]", "NaN is not a JSON number"), ("-Infinity", "Infinity is not"), ("1e999", "too large for float64"),
        ("9" * 5000, "5,000 digits"), ('{"a": 1, "a": 2}', "duplicate key 'a'"),
        ('"\\ud800"', "half of a surrogate pair"),
        ('{"a": 1\n "b"', "m:2: not valid JSON"), ("", "not valid JSON"), (b"\xff", "not UTF-8"),
        ('{"' + "k" * 10**6 + '": 1, "' + "k" * 10**6 + '": 2}', "duplicate key 'kkk"),
    ],
    ids=range(12),
)  # fmt: skip
def test_json_that_is_refused(text: str | bytes, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        parse_json(text, "m", DataError)
    assert len(str(caught.value)) < 300


def test_json_that_is_read(tmp_path: Path) -> None:
    assert parse_json('{"a": [1, 2.5, "\\ud83e\\udd16"]}', "m") == {"a": [1, 2.5, "🤖"]}
    assert parse_json("Infinity", "m", constants=True) == float("inf")
    assert parse_json(str(10**31), "m") == 10**31  # a tokenizer_config.json's "no limit"
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert load_json(tmp_path / "a.json") == {"a": 1}
    with pytest.raises(ConfigError, match="at most 4 bytes"):
        load_json(tmp_path / "a.json", 4)
