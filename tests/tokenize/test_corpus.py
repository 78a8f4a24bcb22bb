"""Token counts of files in several formats."""

import json

import numpy as np
import polars
import pytest

from oxe_curate.actions.tokenizers import Vocabulary, read_vocabulary
from oxe_curate.errors import ConfigError, DataError
from oxe_curate.tokenize import corpus
from oxe_curate.tokenize.corpus import corpus_files, count_tokens

LETTERS = Vocabulary(
    128, tuple(map(chr, range(128))), frozenset(), (), "", "letters", lambda text: [ord(c) for c in text]
)


def count(*paths) -> dict[str, int]:
    counts = count_tokens(LETTERS, paths)
    assert counts.dtype == np.int64
    assert len(counts) == 128
    return {chr(i): int(counts[i]) for i in np.flatnonzero(counts)}


def test_plain_text(tmp_path):
    (tmp_path / "a.txt").write_text("abca\n")
    assert count(tmp_path / "a.txt") == {"a": 2, "b": 1, "c": 1, "\n": 1}


def test_json_lines_and_parquet(tmp_path):
    rows = [{"text": "ab", "id": 1}, {"text": None, "id": 2}, {"text": "b", "id": 3}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    polars.DataFrame(rows).write_parquet(tmp_path / "b.parquet")
    assert count(tmp_path / "a.jsonl") == count(tmp_path / "b.parquet") == {"a": 1, "b": 2}


def test_the_order_of_paths_does_not_matter(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/a.md").write_text("x")
    (tmp_path / "b.txt").write_text("y")
    (tmp_path / "c.bin").write_bytes(b"\xff")
    assert [f.name for f in corpus_files([tmp_path, tmp_path / "b.txt"])] == ["b.txt", "a.md"]
    assert count(tmp_path) == count(tmp_path / "b.txt", tmp_path / "deep") == {"x": 1, "y": 1}


def test_long_text_is_split_at_line_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "_PIECE", 4)
    seen = []
    spy = Vocabulary(128, LETTERS.pieces, frozenset(), (), "", "spy", lambda t: seen.append(t) or [])
    (tmp_path / "a.txt").write_text("abcdef\ngh\nijklmnopqrstu\n")
    count_tokens(spy, [tmp_path / "a.txt"])
    assert "".join(seen) == "abcdef\ngh\nijklmnopqrstu\n"
    assert seen[0] == "abcdef\n"
    assert max(map(len, seen)) <= 8


def test_counts_equal_the_encoding_of_a_real_tokenizer(tmp_path, shared):
    vocabulary = read_vocabulary(shared / "data/tokenizers/llama2/tokenizer.model")
    text = "pick up the can and put it into the drawer\n"
    (tmp_path / "a.txt").write_text(text)
    counts = count_tokens(vocabulary, [tmp_path])
    np.testing.assert_array_equal(counts, np.bincount(vocabulary.encode(text), minlength=32000))


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(ConfigError, match="empty"):
        count()
    with pytest.raises(ConfigError, match="no such file"):
        count(tmp_path / "missing")
    with pytest.raises(ConfigError, match=r"no text found; expected files named .txt"):
        count(tmp_path)
    for name, content, error, message in [
        ("a.txt", b"\xff\xfe", DataError, "a.txt: not UTF-8"),
        ("b.jsonl", b'{"text": "a"}\n{"texts": "a"}\n', ConfigError, "b.jsonl:2: no key 'text'. Did you mean"),
        ("c.jsonl", b"[]\n", ConfigError, "c.jsonl:1: no key 'text'."),
        ("d.jsonl", b"{\n", DataError, "d.jsonl:1: not valid JSON"),
        ("e.jsonl", b'{"text": 5}\n', DataError, "e.jsonl:1: 'text' is not a string"),
        ("f.parquet", b"no", DataError, "f.parquet: cannot read as Parquet"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(error, match=message):
            count(tmp_path / name)
    polars.DataFrame({"content": ["a"]}).write_parquet(tmp_path / "g.parquet")
    with pytest.raises(ConfigError, match="no column 'text'"):
        count(tmp_path / "g.parquet")
    polars.DataFrame({"text": [1]}).write_parquet(tmp_path / "h.parquet")
    with pytest.raises(DataError, match="expected text, got int64"):
        count(tmp_path / "h.parquet")
