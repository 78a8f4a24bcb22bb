import copy
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oxe_curate.editor.document import Add, Remove, Set, TextError, alike, apply_edit, apply_splices, format_scalar
from oxe_curate.editor.spans import Utf16, parse
from tests.editor.odd_files import ODD_FILES

PLAIN = ODD_FILES["comments"]


def lines(text: str) -> list[str]:
    return re.split(r"(?<=\n)|(?<=\r)(?!\n)", text)


def changed_lines(before: str, after: str) -> int:
    a, b = lines(before), lines(after)
    assert len(a) == len(b)
    return sum(x != y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", ODD_FILES)
def test_a_weight_changes_one_line_and_nothing_else(name):
    text = ODD_FILES[name]
    before = copy.deepcopy(parse(text).data)
    done = apply_edit(text, [Set(("datasets", 1, "weight"), 0.123)])
    assert changed_lines(text, done.text) == 1
    assert len(done.splices) == 1
    before["datasets"][1]["weight"] = 0.123
    assert parse(done.text).data == before
    rest = re.sub(r"0\.123", "", done.text, count=1)
    splice = done.splices[0]
    assert apply_splices(text, [splice]) == done.text
    assert rest.replace(" ", "") == (text[: splice.start] + text[splice.end :]).replace(" ", "")


@pytest.mark.parametrize("name", ODD_FILES)
def test_restoring_the_weight_restores_the_text(name):
    text = ODD_FILES[name]
    old = parse(text).data["datasets"][1]["weight"]
    assert apply_edit(text, [Set(("datasets", 1, "weight"), old)]).text == text or name in (
        "alias elsewhere",
        "no number",
    )


@pytest.mark.parametrize("name", ODD_FILES)
def test_rename_add_and_remove(name):
    text = ODD_FILES[name]
    before = parse(text).data
    renamed = apply_edit(text, [Set(("datasets", 1, "name"), "zebra")])
    assert changed_lines(text, renamed.text) == 1
    assert parse(renamed.text).data["datasets"][1]["name"] == "zebra"
    if name == "explicit keys":
        pytest.skip("entries of explicit keys are added and removed in the text")
    added = apply_edit(text, [Add("extra", 0.5)])
    assert parse(added.text).data["datasets"] == [*before["datasets"], {"name": "extra", "weight": 0.5}]
    assert apply_splices(text, added.splices) == added.text
    removed = apply_edit(text, [Remove(1)])
    assert parse(removed.text).data["datasets"] == before["datasets"][:1]
    again = apply_edit(removed.text, [Remove(0)])
    assert parse(again.text).data["datasets"] == []
    refilled = apply_edit(again.text, [Add("first", 1.0), Add("second", 2.0)])
    assert [entry["name"] for entry in parse(refilled.text).data["datasets"]] == ["first", "second"]


def test_removal_keeps_comments_on_their_own_lines():
    text = apply_edit(PLAIN, [Remove(0)]).text
    assert "# a\n" in text
    assert "# A" not in text
    assert changed_lines(PLAIN.replace("  - name: a # A\n    weight: 1.0 # one\n", ""), text) == 0


def test_an_added_entry_is_formatted_like_the_last_one():
    text = apply_edit(ODD_FILES["deep, uneven indentation"], [Add("c", 3.0)]).text
    assert text.endswith("      -  name: b\n         weight: 2\n      -  name: c\n         weight: 3.0\n")
    text = apply_edit(ODD_FILES["windows line breaks"], [Add("c", 3.0)]).text
    assert text.endswith("  - name: c\r\n    weight: 3.0\r\n")
    assert apply_edit(ODD_FILES["flow list over lines"], [Add("c", 3.0)]).text.count("\n") == 7


def test_several_changes_are_one_step():
    done = apply_edit(
        PLAIN, [Set(("datasets", 0, "weight"), 4.0), Set(("name",), "n"), Remove(1), Add("c", 1.0), Add("d", 2.0)]
    )
    data = parse(done.text).data
    assert data["name"] == "n"
    assert [(e["name"], e["weight"]) for e in data["datasets"]] == [("a", 4.0), ("c", 1.0), ("d", 2.0)]
    assert apply_splices(PLAIN, done.splices) == done.text


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("name",), "other"), (("name",), "with: colon # and hash"), (("name",), "yes"), (("name",), "1.5"),
        (("name",), ""),
        (("name",), "🤖 é"), (("seed",), 12), (("window",), 4), (("image", "size"), 224), (("image", "size"), None),
        (("image", "cameras"), ("primary", "wrist")), (("bounds", "over"), "a/b c.json"), (("bins",), "uniform"),
        (("validation",), 1e-7), (("datasets", 0, "swap_channels"), True),
        (("datasets", 0, "splits"), ("train", "val")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["comments", "all flow", "windows line breaks", "more keys", "no break at the end"])
def test_every_scalar_of_a_mixture_can_be_set(name, path, value):
    done = apply_edit(ODD_FILES[name], [Set(path, value)])
    data = parse(done.text).data
    for step in path:
        data = data[step]
    assert alike(data, list(value) if isinstance(value, tuple) else value)
    assert apply_edit(done.text, [Set(path, value)]).text == done.text or isinstance(value, tuple)


def test_quotes_are_kept():
    text = "name: 'm'\nbins: \"openvla\"\n"
    assert apply_edit(text, [Set(("name",), "n"), Set(("bins",), "uniform")]).text == "name: 'n'\nbins: \"uniform\"\n"


@pytest.mark.parametrize(
    ("text", "operation", "message"),
    [
        ("datasets: [{name: a, weight: &w 1}, {name: b, weight: *w}]", Set(("datasets", 0, "weight"), 2.0),
         "depends on an anchor"),
        ("x: &e {name: a, weight: 1}\ndatasets: [*e]", Set(("datasets", 0, "weight"), 2.0), "alias"),
        ("name: m\ndatasets:\n- &e {name: a, weight: 1}\n- *e", Remove(0), "break the YAML"),
        ("name: m\ndatasets:\n- a\n", Set(("datasets", 0, "weight"), 2.0), "not a mapping"),
        ("name: m\ndatasets: []\n", Set(("datasets", 0, "weight"), 2.0), "missing or not a mapping"),
        ("name: m\ndatasets: []\n", Remove(0), "no entry 1"),
        ("name: m\ndatasets: {a: 1}\n", Add("b", 1.0), "not a list"),
        ("- a\n", Set(("name",), "b"), "expected keys and values"),
        ("", Set(("name",), "b"), "expected keys and values"),
        ("name: [", Set(("name",), "b"), "expected the node"),
        ("name: m\ndatasets:\n  - name: a\n    weight: 1\n", Set(("datasets", 0, "weight"), float("inf")), "inf"),
    ],
)  # fmt: skip
def test_an_edit_that_would_change_other_values_is_rejected(text, operation, message):
    with pytest.raises(TextError, match=message):
        apply_edit(text, [operation])


@pytest.mark.parametrize(
    ("text", "offset"),
    [
        ("a: 1\t# c\n", 4), ("a: 1\na: 2\n", 5), ("🤖: [\n", 5), ("\ufeffa: {\n", 6), ("a: \x07", 3), ("a: *b", 3),
        ("a: 1\n---\nb: 2\n", 5), ("a: 1e999", 3),
    ],
)  # fmt: skip
def test_an_error_has_its_position(text, offset):
    with pytest.raises(TextError) as caught:
        parse(text)
    assert caught.value.offset == offset


def test_alias_bombs_are_rejected_or_cheap():
    with pytest.raises(TextError, match="at most 60 levels of nesting"):
        parse("[" * 5000)
    with pytest.raises(TextError, match="characters"):
        parse("#" * (2 << 20))
    bomb = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    with pytest.raises(TextError, match="with aliases written out"):
        parse(bomb)
    assert len(parse("".join(bomb.splitlines(keepends=True)[:4])).data) == 4


def test_utf16():
    units = Utf16("a🤖b🦾")
    assert [units.units(i) for i in range(5)] == [0, 1, 3, 4, 6]


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.0, "1.0"), (1e-5, "1.0e-05"), (1.5e300, "1.5e+300"), (3, "3"), (True, "true"), (None, "null"), ("a", "a"),
     ("null", '"null"'), ("~", '"~"'), ("a: b", '"a: b"'), (("a", "b"), "[a, b]")],
)  # fmt: skip
def test_scalars(value, text):
    assert format_scalar(value) == text


@st.composite
def mixtures(draw):
    """A mixture with a random layout, and the position of one of its data sets."""
    newline = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    comment = st.one_of(st.just(""), st.text("aé🤖# :-\t'\"{}[]&*", max_size=8).map(lambda t: f"  # {t}"))
    indent = " " * draw(st.integers(0, 6))
    gap = " " * draw(st.integers(1, 4))
    count = draw(st.integers(1, 6))
    rows = []
    for i in range(count):
        number = draw(st.floats(1e-9, 1e9).map(lambda x: repr(x)) | st.integers(0, 99).map(str))
        name = draw(st.sampled_from(["n{}", "'n {}'", '"n\\t{}"', "n-{}/x"])).format(i)
        pairs = [f"name:{gap}{name}", f"weight: {number}"]
        pairs += ["splits: [train]"] if draw(st.booleans()) else []
        pairs = draw(st.permutations(pairs))
        if draw(st.booleans()):
            rows.append(f"{indent}-{gap}{{{', '.join(pairs)}}}{draw(comment)}")
        else:
            rows.append(f"{indent}-{gap}{pairs[0]}{draw(comment)}")
            rows += [f"{indent} {gap}{pair}{draw(comment)}" for pair in pairs[1:]]
        if draw(st.booleans()):
            rows.append(" " * draw(st.integers(0, 9)) + f"#{draw(comment)}")
        rows += [""] * draw(st.integers(0, 1))
    text = newline.join([f"name: m{draw(comment)}", f"datasets:{draw(comment)}", *rows])
    tail = draw(st.sampled_from(["", newline, newline * 2]))
    return draw(st.sampled_from(["", "\ufeff"])) + text + tail, draw(st.integers(0, count - 1))


@settings(max_examples=150, deadline=None)
@given(mixtures(), st.floats(1e-12, 1e12))
def test_any_layout_survives_a_change_of_weight(drawn, weight):
    text, i = drawn
    expected = copy.deepcopy(parse(text).data)
    done = apply_edit(text, [Set(("datasets", i, "weight"), weight)])
    assert changed_lines(text, done.text) == (1 if done.splices else 0)
    assert bool(done.splices) == (expected["datasets"][i]["weight"] != weight)
    expected["datasets"][i]["weight"] = weight
    assert parse(done.text).data == expected


@settings(max_examples=100, deadline=None)
@given(mixtures())
def test_any_layout_survives_adding_and_removing(drawn):
    text, i = drawn
    entries = parse(text).data["datasets"]
    added = apply_edit(text, [Add("new", 1.5), Remove(i)]) if len(entries) > 1 else apply_edit(text, [Add("new", 1.5)])
    left = [e for j, e in enumerate(entries) if j != i or len(entries) == 1]
    assert parse(added.text).data["datasets"] == [*left, {"name": "new", "weight": 1.5}]
    gone = apply_edit(added.text, [Remove(len(left))])
    assert parse(gone.text).data["datasets"] == left
