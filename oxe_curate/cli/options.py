"""Options and output that the commands share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Cards = Annotated[
    Path | None,
    typer.Option("--cards", metavar="FOLDER", help="Folder of your own cards; they override the built-in ones."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Do not show a progress bar.")]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="Number of processes (default: by cores and amount of data).")
]


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    typer.echo(json.dumps(value, indent=1))


def print_result(what: Any) -> None:
    """Print a table, or lines of text."""
    from oxe_curate.ui.tables import console

    console().print(what, markup=False)
