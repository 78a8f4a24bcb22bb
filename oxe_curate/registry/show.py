"""The data sets that have a card, as tables."""

from __future__ import annotations

from typing import Any

from rich.text import Text

from oxe_curate.ui.tables import Column, ResultTable, counted

_COLOURS = {"pass": "green", "fail": "red", "conditional": "yellow", "unknown": "dim"}
_HEAD = ("data set", "verdict", "robot", "cameras", "Hz", "episodes", "why")


def datasets_table(rows: list[dict[str, Any]]) -> ResultTable:
    """The cards, one row each."""
    table = ResultTable(
        counted(len(rows), "data set"), "data set", Column("verdict", left=True), Column("robot", True, True, 3),
        Column("cameras", True, True, 2), Column("Hz", optional=1), Column("episodes", optional=1),
        Column("why", left=True, wrap=True),
    )  # fmt: skip
    for row in rows:
        cameras = (role if len(keys) == 1 else f"{role} x{len(keys)}" for role, keys in row["cameras"].items())
        table.add_row(
            row["name"], Text(row["verdict"], _COLOURS[row["verdict"]]), row["robot"], ", ".join(cameras),
            *_numbers(row), row["reason"],
        )  # fmt: skip
    return table


def datasets_markdown(rows: list[dict[str, Any]]) -> str:
    """The cards as a Markdown table."""
    lines = [_HEAD, ("---",) * len(_HEAD)]
    lines += [
        (row["name"], row["verdict"], row["robot"], ", ".join(row["cameras"]), *_numbers(row), row["reason"])
        for row in rows
    ]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _numbers(row: dict[str, Any]) -> tuple[str, str]:
    return f"{row['control_hz']:g}" if row["control_hz"] else "", f"{row['episodes']:,}" if row["episodes"] else ""
