"""The report's sentences and command lines."""

import shlex
from dataclasses import asdict, fields

import pytest

from oxe_curate.filter.criteria import MEASURED, Criteria, read_criteria
from oxe_curate.filter.decisions import ORDER
from oxe_curate.index.index_json import DatasetEntry, Summary
from oxe_curate.report import words


def test_every_criterion_has_a_sentence():
    for one in fields(Criteria):
        sentence = words.meaning(one.name)
        assert sentence.endswith(".")
        assert sentence != one.name.replace("_", " ").capitalize() + "."
        assert not sentence.startswith(("Drop", "Mark", "Report"))
    assert words.meaning("no_language") == "No step has an instruction."
    assert words.meaning("odd_thing") == "Odd thing."


def test_a_command_repeats_the_criteria_of_the_index_and_changes_one():
    of_index = asdict(Criteria(too_short=10, idle=0.5, limits={MEASURED[0]: 2.5}))
    line = words.command("my index", of_index, "idle=null")
    program, name, index, *options = shlex.split(line)
    assert (program, name, index) == ("oxe-curate", "screen", "my index")
    assert options[::2] == ["--criterion"] * 3
    assert read_criteria(None, options[1::2]) == Criteria(too_short=10, limits={MEASURED[0]: 2.5})
    assert words.command("i", {}, preset="strict") == "oxe-curate screen i --preset strict"
    strict = asdict(read_criteria(preset="strict"))
    off = f"{MEASURED[0]}=false"
    assert words.command("i", strict, off) == f"oxe-curate screen i --preset strict --criterion {off}"
    assert words.command("i", {MEASURED[0]: False}, preset="strict") == words.command("i", strict, off)


@pytest.mark.parametrize("drops", [True, False])
@pytest.mark.parametrize("name", [*ORDER, *MEASURED, "duplicate"])
def test_the_commands_of_a_criterion_are_valid_and_change_it(name, drops):
    on = {"too_short": 5, "too_long": 90, "idle": 0.5}.get(name, True if drops or name in ORDER else "report")
    before = Criteria(**{name: on})
    lines = words.commands("i", asdict(before), name, drops, 3.14159 if name in MEASURED else None)
    assert len(lines) == (3 if name in MEASURED else 1)
    for _, line in lines:
        after = read_criteria(None, shlex.split(line)[4::2])
        assert after != before
        assert (getattr(after, name) != on) != (after.limits == {name: 3.14})


def test_why_a_data_set_kept_nothing():
    def entry(**summary) -> DatasetEntry:
        return DatasetEntry(
            version="1.0.0", card="nyu", recipe=None, verdict="fail", splits=("train",), frames=None, seconds=0,
            summary=Summary(**summary),
        )  # fmt: skip

    dropped = {"no_language": [1, 9], "no_third_person_camera": [4, 90]}
    said = words.nothing_kept("d", entry(seen=5, dropped=dropped), "wrist only")
    assert said[:2] == [
        "All 5 episodes of d are dropped: 4 for no_third_person_camera, 1 for no_language.",
        "The verdict of its card nyu is fail (wrist only).",
    ]
    assert "role primary" in said[2]
    assert words.nothing_kept("d", entry(seen=5, kept=1)) == []
    assert words.nothing_kept("d", entry(corrupt=["x", "y"])) == [
        "d has no episodes in the splits that were filtered. 2 records are unreadable."
    ]
    assert (
        words.nothing_kept("d", entry(seen=1, dropped={"odd": [1, 2]}))[0] == "The only episode is dropped: 1 for odd."
    )
