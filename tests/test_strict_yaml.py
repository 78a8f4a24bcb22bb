"""YAML that surprises or explodes is refused with its line, in bounded time, memory and output."""

import math
from pathlib import Path

import pytest
import yaml

from oxe_curate.errors import ConfigError
from oxe_curate.registry import CARDS_DIR
from oxe_curate.strict_yaml import MAX_CHARACTERS, YamlError, load_yaml, parse_yaml
from tests import ROOT


def bomb(levels: int, width: int = 10, merge: bool = False) -> str:
    lines = ["b0: &b0 " + ("{x: 1}" if merge else "[x, x]")]
    for i in range(1, levels):
        many = ", ".join([f"*b{i - 1}"] * width)
        lines.append(f"b{i}: &b{i} " + (f"{{<<: [{many}]}}" if merge else f"[{many}]"))
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (bomb(9), 5, "at most 20,000 values"),
        ("- a\n" * 100_000, 20_000, "at most 20,000 values"),
        (bomb(9, merge=True), 5, "with aliases written out"),
        ("a: &a " + "x" * 100_000 + "\nb: [" + "*a, " * 30 + "]", 2, "2,097,152 characters"),
        (f"a: &a {'[' * 40}1{']' * 40}\nb: {'[' * 40}*a{']' * 40}", 2, "nested 60 deep"),
        ("[" * 2000, 1, "60 levels"),
        ("- " * 2000, 1, "60 levels"),
        ("{a: " * 100_000, 1, "60 levels"),
        ("x: 1\na: " + "9" * 5000, 2, "at most 300 digits, got 5,000"),
        ("a: 0x" + "f" * 5000, 1, "at most 300 digits"),
        ("a: 1e999", 1, "finite number, got '1e999'"),
        ("a: -1e400", 1, "finite number"),
        ("a: .nan", 1, "finite number, got '.nan'"),
        ("a: -.inf", 1, "finite number"),
        ("a: 010", 1, "expected a decimal number, got '010'"),
        ("a: 0b11", 1, "expected a decimal number"),
        ("a: 1:30", 1, "quote it for text"),
        ("a: 1:30.5", 1, "quote it for text"),
        ('a: "\\ud800"', 1, "U+D800"),
        ('a: "\\0"', 1, "U+0000"),
        ('a: "\\x1b[31m"', 1, "U+001B"),
        ('a: "\\U00110000"', 1, "range"),
        ("x: 1\na: \0", 2, "U+0000"),
        ("a: \ud800", 1, "U+D800"),
        ("a: !!python/object/apply:os.system [x]", 1, "is not supported; remove it"),
        ("a: !!binary aGk=", 1, "binary' is not supported"),
        ("a: !!set {x}", 1, "not supported"),
        ("!!omap [a: 1]", 1, "not supported"),
        ("a: !!timestamp 2024-01-01", 1, "not supported"),
        ("a: !" + "x" * 100_000, 1, "not supported"),
        ("a: !!bool perhaps", 1, "expected true or false, got 'perhaps'"),
        ("a: !!int x", 1, "decimal number"),
        ("a: !!float x", 1, "expected a number, got 'x'"),
        ("a: !!seq x", 1, "sequence"),
        ("? [a]\n: b", 1, "plain value as a key"),
        ("x: 1\n? {a: 1}\n: b", 2, "plain value as a key"),
        ("&a [*a]", 1, "alias inside its own anchor"),
        ("&a {x: *a}", 1, "alias inside its own anchor"),
        ("a: *b", 1, "undefined alias"),
        ("a: 1\n---\nb: 2", 2, "another document"),
        ("a:\n\tb: 1", 2, "cannot start any token"),
        ("a: 1\na: 2", 2, "duplicate key 'a'"),
        ("a: {" + "k" * 5000 + ": 1, " + "k" * 5000 + ": 1}", 1, "mapping values|,|key"),
        ("y: {<<: 3}", 1, "merging"),
        ("x" * (MAX_CHARACTERS + 1), None, "characters"),
    ],
    ids=lambda value: str(value)[:24] if isinstance(value, str) else "",
)  # fmt: skip
def test_is_refused(text: str, line: int | None, words: str) -> None:
    with pytest.raises(YamlError) as caught:
        parse_yaml(text, "m.yaml")
    message = str(caught.value)
    assert message.startswith("m.yaml:")
    assert any(part in message for part in words.split("|"))
    assert caught.value.line == line
    assert len(message) < 400


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 1e-3", 0.001), ("a: 1_000", 1000), ("a: 0x10", 16), ("a: -0", 0), ("a: 2024-13-45", "2024-13-45"),
        ("a: '010'", "010"), ("a: =", "="), ("a: yes", True), ("a: ~", None), ("a: é\u2028", "é"), ("a: 1\r\n", 1),
        ("x: &x {a: 1}\na: {<<: *x, b: 2}", {"a": 1, "b": 2}), ("a: !!str 1", "1"), ("a: !!float 1", 1.0),
        ("b: &b [1]\na: [*b, *b]", [[1], [1]]), ("a: " + "9" * 300, int("9" * 300)),
        ("a: " + "x" * 100_000, "x" * 100_000),
    ],
    ids=range(17),
)  # fmt: skip
def test_is_read(text: str, value: object) -> None:
    assert parse_yaml(text, "m.yaml")["a"] == value


PACKAGED = sorted([*CARDS_DIR.glob("*.yaml"), *(ROOT / "mixtures").glob("*.yaml")])


@pytest.mark.parametrize("path", PACKAGED, ids=lambda path: path.stem)
def test_reads_what_pyyaml_reads(path: Path) -> None:
    """Of every card and published mixture; dates and 1e-3 do not occur in them."""
    text = path.read_text()
    assert parse_yaml(text, path.name) == yaml.safe_load(text)


def test_an_empty_text_is_none() -> None:
    assert parse_yaml("", "m.yaml") is None
    assert load_yaml("# comment\n", "m.yaml")[2] is None


def test_a_large_mixture_fits() -> None:
    """500 data sets, each with a comment of 200 characters."""
    entries = "".join(f"  # {'c' * 200}\n  - name: d{i}\n    weight: 1.0\n    splits: [train]\n" for i in range(500))
    text = f"name: m\ndatasets:\n{entries}"
    assert len(text) < MAX_CHARACTERS / 2
    assert len(parse_yaml(text, "m.yaml")["datasets"]) == 500


def test_the_offset_is_of_the_text() -> None:
    with pytest.raises(YamlError) as caught:
        parse_yaml("a: 1\nb: .nan", "m.yaml")
    assert caught.value.offset == len("a: 1\nb: ")
    assert isinstance(caught.value, ConfigError)
    assert math.isfinite(parse_yaml("a: 1e308", "m.yaml")["a"])
