"""Write the option tables of docs/commands/*.md from the commands themselves: `python docs/commands.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer.main

from oxe_curate.cli.main import app

FOLDER = Path(__file__).parent / "commands"
BEGIN, END = "<!-- options: written by docs/commands.py -->", "<!-- end of options -->"


def commands() -> dict[str, Any]:
    """Name -> command, "mixture show" among them."""
    return dict(_flat(typer.main.get_command(app).commands, ""))  # type: ignore[attr-defined]


def _flat(found: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, command in found.items():
        if hasattr(command, "commands"):
            yield from _flat(command.commands, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


def pages() -> dict[str, list[str]]:
    """Page -> its commands; the mixture commands share one."""
    found: dict[str, list[str]] = {}
    for name in commands():
        found.setdefault(name.split()[0], []).append(name)
    return found


def tables(names: list[str]) -> str:
    """The usage, help text and options of some commands, as Markdown."""
    parts = []
    for name in names:
        command = commands()[name]
        if len(names) > 1:
            parts.append(f"### {name}")
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        usage = " ".join(["oxe-curate", name, *map(_usage, arguments), "[OPTIONS]"])
        parts += [f"    {usage}", _paragraphs(command.help)]
        rows = [_row(p) for p in command.params if p.name != "help"]
        parts.append("\n".join(["| option | default | description |", "|---|---|---|", *rows]))
    return "\n\n".join(parts)


def _paragraphs(text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in text.replace("<", "&lt;").split("\n\n"))


def _usage(argument: Any) -> str:
    shown = argument.metavar or argument.name.upper()
    return str(shown) if argument.required else f"[{shown}]"


def _row(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        name = f"`{parameter.metavar or parameter.name.upper()}`"
    else:
        name = ", ".join(f"`{option}`" for option in [*parameter.opts, *parameter.secondary_opts])
        if choices := _choices(parameter):
            name += " " + " \\| ".join(f"`{choice}`" for choice in choices)
        elif parameter.metavar:
            name += f" `{parameter.metavar}`"
    default = "required" if parameter.required else _default(parameter)
    text = " ".join((parameter.help or "").split()).replace("|", "\\|").replace("<", "&lt;")
    return f"| {name} | {default} | {text} |"


def _choices(parameter: Any) -> tuple[str, ...]:
    if hasattr(parameter, "type_descriptor"):  # typer from 0.20 on
        kind = parameter.type_descriptor.annotation
        return get_args(kind) if get_origin(kind) is Literal else ()
    return tuple(getattr(parameter.type, "choices", ()))


def _default(parameter: Any) -> str:
    value = parameter.default
    return "" if value is None or value is False or callable(value) or value == () else f"`{value}`"


def page(name: str, names: list[str]) -> str:
    """The page with its tables renewed; the prose around them is kept."""
    path = FOLDER / f"{name}.md"
    text = path.read_text() if path.is_file() else f"# oxe-curate {name}\n\n{BEGIN}\n{END}\n"
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables(names)}\n\n{END}{after}"


def main() -> None:
    """Renew every page."""
    for name, names in pages().items():
        (FOLDER / f"{name}.md").write_text(page(name, names))


if __name__ == "__main__":
    main()
