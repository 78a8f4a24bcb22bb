"""Which episodes the criteria concern, and which of them are shown."""

import polars as pl
import pytest

from oxe_curate.index.table import SCHEMA
from oxe_curate.report.flags import Flag, choose, evenly, excess, flag
from oxe_curate.report.thumbnails import steps_to_show
from tests.report.marked import mark


def rows(*some: dict) -> pl.DataFrame:
    schema = pl.from_arrow(SCHEMA.empty_table()).schema
    plain = {"reason": None, "marks": [], "duplicate_of": None, "num_steps": 10, "idle_share": 0.0, "file": "f"}
    names = {name: schema[name] for name in ("reason", "marks", "duplicate_of", "num_steps")}
    full = [{**plain, "row": i, "hash": 100 - i, **one} for i, one in enumerate(some)]
    return pl.DataFrame(
        full, schema={**names, "idle_share": pl.Float32, "file": pl.String, "row": pl.Int64, "hash": pl.UInt32}
    )


def test_the_worst_come_first_by_value_over_limit():
    found = flag(
        rows(
            {"marks": [mark("spike", 3.0, 2.0)]}, {}, {"marks": [mark("spike", 9.0, 3.0), mark("lag", 0.5, -1.0)]},
            {"reason": "spike", "marks": [mark("spike", 4.0, 2.0)]}, {"reason": "no_language"},
        ),
        {}, 2,
    )  # fmt: skip
    assert [(f.row, f.excess, f.rank) for f in found.worst["spike"]] == [(2, 3.0, 0), (3, 2.0, 1)]
    assert [(f.row, f.excess) for f in found.worst["lag"]] == [(2, 2.5)]
    assert [(f.row, f.excess) for f in found.worst["no_language"]] == [(4, 0.0)]
    assert found.marked == 2
    assert found.marks == {"lag": 1, "spike": 2}
    assert sorted(found.excess["spike"]) == [1.5, 2, 3]
    assert "no_language" not in found.excess


def test_a_copy_is_flagged_unless_a_mark_says_so():
    near = {"marks": [mark("near_duplicate", 2.0)], "duplicate_of": "a"}
    found = flag(rows({"duplicate_of": "a"}, near, {"reason": "duplicate", "duplicate_of": "a"}), {}, 9)
    assert sorted(f.row for f in found.worst["duplicate"]) == [0, 2]
    assert [f.row for f in found.worst["near_duplicate"]] == [1]
    assert (found.marked, found.marks) == (2, {"duplicate": 1, "near_duplicate": 1})


def test_the_shortest_is_the_worst_of_those_that_are_too_short():
    some = [{"reason": "too_short", "num_steps": n} for n in (4, 1, 3)]
    found = flag(rows(*some), {"too_short": 5}, 9)
    assert [f.row for f in found.worst["too_short"]] == [1, 2, 0]
    found = flag(rows({"reason": "idle", "idle_share": 0.6}, {"reason": "idle", "idle_share": 0.9}), {"idle": 0.5}, 9)
    assert [(f.row, round(f.excess, 4)) for f in found.worst["idle"]] == [(1, 1.8), (0, 1.2)]


def test_infinite_and_missing_numbers_do_no_harm():
    found = flag(rows({"marks": [mark("spike", float("nan"))]}, {"marks": [mark("spike", float("inf"))]}), {}, 9)
    assert [f.row for f in found.worst["spike"]] == [1, 0]
    assert [excess(None, 1), excess(3, None), excess(float("nan"), 1), excess(3, 2), excess(3, -2)] == [0, 0, 0, 1.5, 6]
    assert flag(rows(), {}, 9).worst == flag(rows({}), {}, 9).worst == {}


def test_every_criterion_and_data_set_has_a_share():
    many = [Flag(i, 50.0 - i, "a", i) for i in range(40)]
    other = [Flag(i, 2.0 - i, "b", i) for i in range(2)]
    rare = [Flag(0, 0.0, "b", 1)]
    chosen = choose({"spike": [*many, *other], "rare": rare}, 4)
    assert [(f.path, f.row) for f in chosen] == [("a", 0), ("b", 1), ("b", 0), ("a", 1)]
    assert len(choose({"spike": [*many, *other], "rare": rare}, 999)) == 42  # an episode once, for whatever reason
    assert choose({}, 9) == []


@pytest.mark.parametrize(
    ("count", "step", "steps"),
    [
        (40, 20, [14, 19, 20, 21, 26]),
        (40, 0, [0, 1, 6, 22, 39]),
        (40, 39, [0, 16, 33, 38, 39]),
        (40, -1, [0, 10, 20, 29, 39]),
        (3, 1, [0, 1, 2]),
        (3, 9, [0, 1, 2]),
        (0, -1, []),
    ],
)
def test_frames_are_those_around_the_step(count, step, steps):
    assert steps_to_show(count, step, 5) == steps


def test_positions_are_spread_evenly():
    assert [evenly(0, 3), evenly(9, 1), evenly(9, 3), evenly(2, 5)] == [[], [4], [0, 4, 8], [0, 1]]
