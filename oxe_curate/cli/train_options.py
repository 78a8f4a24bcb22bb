"""The options of `oxe-curate train`, made of the table in `train/settings.py`."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import Parameter
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from oxe_curate.train.settings import SECTIONS, Setting, settings


def option_parameters() -> list[Parameter]:
    """One keyword parameter per option, as Typer reads them; None where an option is not given."""
    return [
        Parameter(_parameter_name(option), Parameter.KEYWORD_ONLY, default=None, annotation=_annotation(option, group))
        for option, group in _by_option().items()
    ]


def overrides(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options -> keys of the configuration ("lora.rank"), those that are not given left out.

    Args:
        given: parameter of `option_parameters` -> value.
    """
    found = {}
    for option, group in _by_option().items():
        value = given.get(_parameter_name(option))
        if value is None or value == []:
            continue
        # one value of --targets may be a word for a set of layers
        single = isinstance(value, list) and len(value) == 1 and str in get_args(group[0].hint)
        found[_chosen(group, value).key] = value[0] if single else value
    return found


def check_family(given: Mapping[str, Any], family: str) -> None:
    """Raise ConfigError for a value of a shared option (--head) that another model family has."""
    for option, group in _by_option().items():
        value = given.get(_parameter_name(option))
        if len(group) == 1 or value is None or SECTIONS[str(_chosen(group, value).section)] == family:
            continue
        from oxe_curate.errors import ConfigError

        known = [get_args(setting.hint) for setting in group if SECTIONS[str(setting.section)] == family]
        raise ConfigError(
            f"{option} {value}: {family} has no such {_parameter_name(option)}; choose from {', '.join(known[0])}"
        )


def _by_option() -> dict[str, list[Setting]]:
    """Option -> the settings behind it: one, or one for each model family."""
    found: dict[str, list[Setting]] = {}
    for setting in settings():
        if setting.option is not None:
            found.setdefault(setting.option, []).append(setting)
    return found


def _parameter_name(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")


def _chosen(group: list[Setting], value: Any) -> Setting:
    return next((one for one in group if value in get_args(one.hint)), group[0])


def _annotation(option: str, group: list[Setting]) -> Any:
    first = group[0]
    if option == "--data":
        return Annotated[str | None, typer.Argument(metavar=first.help.metavar, help=f"{first.described()}.")]
    kind, text = first.hint, first.described()
    if len(group) > 1:
        kind = Literal[tuple(value for one in group for value in get_args(one.hint))]
        text = "; ".join(f"{SECTIONS[str(one.section)]}: {one.described()}" for one in group)
    elif get_origin(kind) is tuple or any(get_origin(part) is tuple for part in get_args(kind)):
        kind, text = list[str], f"{text}; repeatable"
    name = f"{option}/--no-{option.removeprefix('--')}" if kind is bool else option
    shown = typer.Option(name, min=first.minimum, metavar=first.help.metavar, help=f"{text}.")
    return Annotated[kind | None, shown]
