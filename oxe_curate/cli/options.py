"""Options and output that the commands share."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Cards = Annotated[
    Path | None,
    typer.Option("--cards", metavar="FOLDER", help="Folder of your own cards; they override the built-in ones."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Do not show a progress bar.")]
CriteriaFile = Annotated[
    Path | None, typer.Option("--criteria", metavar="FILE", help="YAML file of screening criteria.")
]
Criterion = Annotated[
    list[str] | None,
    typer.Option("--criterion", metavar="KEY=VALUE", help="One criterion; overrides the file; repeatable."),
]
Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        help="default, or strict: drop the episodes that the default criteria only mark; overrides the file's.",
    ),
]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="Number of processes (default: by cores and amount of data).")
]

_STORE = {
    "retries": Annotated[
        int | None,
        typer.Option(
            "--store-retries", min=0, help="gs:// and s3://: how often a failed request is repeated (default: 5)."
        ),
    ],
    "timeout": Annotated[
        float | None,
        typer.Option("--store-timeout", min=0.1, help="gs:// and s3://: seconds per request (default: 30)."),
    ],
    "requests": Annotated[
        int | None,
        typer.Option(
            "--store-requests", min=1, help="gs:// and s3://: requests in flight per worker process (default: 32)."
        ),
    ],
}
"""Options of `StoreOptions`. Their defaults are in the environment (OXE_CURATE_STORE_RETRIES and so on), or its own."""

_Command = TypeVar("_Command", bound=Callable[..., Any])


def reads_stores(command: _Command) -> _Command:
    """Add the options of requests to object stores to a command."""

    @functools.wraps(command)
    def wrapped(**given: Any) -> Any:
        chosen = {name: value for name in _STORE if (value := given.pop(f"store_{name}")) is not None}
        if chosen:
            from dataclasses import replace

            from oxe_curate.storage import StoreOptions

            replace(StoreOptions.current(), **chosen).apply()
        return command(**given)

    signature = inspect.signature(command, eval_str=True)
    added = [
        inspect.Parameter(f"store_{name}", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option)
        for name, option in _STORE.items()
    ]
    parameters = [*signature.parameters.values(), *added]
    wrapped.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapped  # type: ignore[return-value]


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    typer.echo(json.dumps(value, indent=1))


def print_result(what: Any) -> None:
    """Print a table, or lines of text."""
    from oxe_curate.ui.tables import console

    console().print(what, markup=False)
