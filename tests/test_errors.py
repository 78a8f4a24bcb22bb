"""Messages are bounded, whatever they quote."""

import difflib
import pickle

import pytest

from oxe_curate.errors import ConfigError, bounded, closest, cut, did_you_mean, quoted


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("bridge", "'bridge'"), ("x" * 1000, "'" + "x" * 80 + "…' (1,000 characters)"), (b"\xff", r"b'\xff'"),
        (b"x" * 1000, "b'" + "x" * 80 + "…' (1,000 bytes)"), (5, "5"), (10**5000, "a number of about 4,983 digits"),
        ([1, 2, 3, 4, 5], "[1, 2, 3, 4, ...]"), ([10**5000], "a list"), (None, "None"), ("\x1b[31m", r"'\x1b[31m'"),
    ],
    ids=range(10),
)  # fmt: skip
def test_quoted(value: object, text: str) -> None:
    assert quoted(value) == text


@pytest.mark.parametrize(
    "value",
    [[["x" * 10**6] * 100] * 100, {str(i): "y" * 10**5 for i in range(100)}, {"a" * 10**6: 1}],
    ids=["list", "dict", "key"],
)
def test_a_large_value_is_cut(value: object) -> None:
    assert len(quoted(value)) < 300


def test_a_message_is_bounded() -> None:
    error = ConfigError("x" * 10**6 + "\n" + "line\n" * 10**5 + "\x1b[31m")
    lines = str(error).split("\n")
    assert len(lines) == 41
    assert lines[-1] == "… (99,962 more lines)"
    assert max(map(len, lines)) < 2100
    assert str(ConfigError("\x1b[31m\u202e\ud800é")) == r"\x1b[31m\u202e\ud800é"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert bounded("a\nb") == "a\nb"


def test_suggestions() -> None:
    assert closest("bridge_orgi", ["bridge_orig", "kuka"]) == "Did you mean 'bridge_orig'?"
    assert closest("x" * 100_000, ["x" * 99_999, "kuka"]) == ""
    assert closest("e5", (f"e{i}" for i in range(10_000))) == ""
    assert did_you_mean("zzz", ["a" * 1000, "b"]) == f"Known: {cut('a' * 1000)}, b."
    assert len(cut("a" * 1000)) == 121


def test_long_names_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """difflib would take minutes."""

    def compare(*_: object, **__: object) -> list[str]:
        raise AssertionError

    monkeypatch.setattr(difflib, "get_close_matches", compare)
    did_you_mean("ab" * 10**6, ["ab" * 10**6 + "c", "kuka"])
    did_you_mean("kuka", ["ab" * 10**6])
    did_you_mean("kuka", map(str, range(10**5)))
