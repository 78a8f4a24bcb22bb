import io

import pytest
from rich.console import Console

from oxe_curate.ui.tables import Column, ResultTable, console, counted

NAME = "austin_buds_dataset_converted_externally_to_rlds"


def printed(table: ResultTable, width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False).print(table)
    return out.getvalue()


def sizes() -> ResultTable:
    table = ResultTable("Sizes", "data set", "steps", Column("episodes", optional=1), Column("why", True, True, 2))
    table.add_row(NAME, "27,044,326", "87,212", "wrist camera only, and a long explanation of what that means")
    table.add_section()
    table.add_row("all", "27,044,326", "87,212", "")
    return table


@pytest.mark.parametrize("width", [40, 62, 70, 80, 100, 1000])
def test_numbers_are_whole_at_any_width(width: int) -> None:
    text = printed(sizes(), width)
    assert text.count("27,044,326") == 2
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    broken = "austin_buds_dataset_converte  27,044,326\nd_externally_to_rlds" in text
    assert broken if width == 40 else NAME in text


def test_less_important_columns_are_dropped_first_and_named() -> None:
    assert "Not shown" not in printed(sizes(), 100)
    assert "Not shown at this width: why." in printed(sizes(), 75)
    assert "Not shown at this width: episodes, why." in printed(sizes(), 62)


def test_text_wraps_before_a_column_is_dropped() -> None:
    lines = printed(sizes(), 100).splitlines()
    assert any("wrist camera only" in line for line in lines)
    assert sum("27,044,326" in line for line in lines) == 2
    assert len(lines) > len(printed(sizes(), 1000).splitlines())


def test_a_row_has_a_cell_for_each_column() -> None:
    with pytest.raises(ValueError, match="1 cells for 4 columns"):
        sizes().add_row("x")


def test_a_pipe_is_as_wide_as_the_table_unless_columns_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert console().width == 1000
    monkeypatch.setenv("COLUMNS", "90")
    assert console().width == 90


def test_counted() -> None:
    assert counted(0, "shard") == "0 shards"
    assert counted(1, "entry", "entries") == "1 entry"
