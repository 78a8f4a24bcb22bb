"""Strict YAML: a file becomes a frozen dataclass, or one error that names the file, the line and the key."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from oxe_curate.errors import ConfigError, cut, did_you_mean, quoted
from oxe_curate.inputs import decode_text, read_input
from oxe_curate.strict_yaml import MAX_CHARACTERS
from oxe_curate.strict_yaml import parse_yaml as parse_yaml

STRICT = ConfigDict(extra="forbid", arbitrary_types_allowed=False)
"""For `pydantic.dataclasses.dataclass(frozen=True, config=STRICT)`: unknown keys are errors."""

T = TypeVar("T")
Loc = tuple[str | int, ...]


def read_yaml_text(path: Path) -> str:
    """Read a YAML file without its byte order mark. Raises ConfigError if it is missing, unreadable or too large."""
    if not os.path.lexists(path):
        nearby = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, nearby) if nearby else "Check the path."
        raise ConfigError(f"{path}: file not found. {hint}")
    return decode_text(read_input(path, 4 * MAX_CHARACTERS, "YAML file"), str(path))


def read_yaml(path: Path) -> Any:
    """Parse a YAML file. Raises ConfigError if it is missing, unreadable, or not YAML within the limits."""
    return parse_yaml(read_yaml_text(path), str(path))


@functools.cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def build(cls: type[T], data: Any, where: str) -> T:
    """Build the dataclass `cls` from parsed YAML, strictly.

    Raises:
        ConfigError: names `where`, the key's path, what is wrong, and the closest known key.
    """
    try:
        result: T = _adapter(cls).validate_python(data)  # type: ignore[arg-type]
    except ValidationError as error:
        lines = [_explain(cls, e) for e in error.errors()]
        raise ConfigError("\n".join(f"{where}: {line}" for line in lines[:5])) from None
    return result


def read(cls: type[T], path: Path) -> T:
    """Read a YAML file into the dataclass `cls`. Raises ConfigError as `read_yaml` and `build` do."""
    return build(cls, read_yaml(path), str(path))


def to_yaml(value: Any) -> str:
    """A dataclass (or what `asdict` makes of it) as YAML, in the order of its fields; `build` reads it back."""
    data = dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
    return yaml.safe_dump(_plain(data), sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _explain(cls: Any, error: Any) -> str:
    loc: Loc = error["loc"]
    # pydantic adds names of union branches to the path; keep the parts that are in the file
    path = cut(".".join(cut(str(part), 60) for part in loc)) or "the file"
    value = error["input"]
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"unknown key {path!r}. {did_you_mean(str(loc[-1]), _known_keys(cls, loc[:-1]))}"
    if error["type"] in ("missing", "missing_argument"):
        return f"missing key {path!r}"
    if error["type"] == "value_error":
        return f"{path}: {error['ctx']['error']}" if loc else str(error["ctx"]["error"])
    if error["type"] in ("literal_error", "enum"):
        known = re.findall(r"'([^']*)'", str(error["ctx"]["expected"]))
        return f"{path}: unknown value {quoted(value)}. {did_you_mean(str(value) if _is_short(value) else '', known)}"
    if error["type"] in ("dataclass_type", "dict_type", "dataclass_exact_type"):
        if value is None and not loc:
            return "expected a mapping, but the file is empty"
        return f"{path}: expected a mapping, got {quoted(value)}"
    return f"{path}: {error['msg'][0].lower()}{error['msg'][1:]}, got {quoted(value)}"


def _is_short(value: Any) -> bool:
    return isinstance(value, bool | float) or (isinstance(value, str) and len(value) < 1000)


def _known_keys(cls: Any, loc: Loc) -> list[str]:
    """Field names of the dataclass at `loc` inside `cls`, through lists, dicts and optionals."""
    current = [cls]
    for part in loc:
        found: list[Any] = []
        for c in current:
            if dataclasses.is_dataclass(c) and isinstance(part, str):
                hints = get_type_hints(c)
                found += [hints[part]] if part in hints else []
            else:
                found += [a for a in get_args(c) if a is not type(None)]
        current = [leaf for c in found for leaf in _unwrap(c)]
    return [f.name for c in current if dataclasses.is_dataclass(c) for f in dataclasses.fields(c)]


def _unwrap(hint: Any) -> list[Any]:
    if dataclasses.is_dataclass(hint):
        return [hint]
    origin_args = [a for a in get_args(hint) if a is not type(None)]
    is_union = "|" in str(hint) or "Union" in str(hint) or "Optional" in str(hint)
    return [leaf for a in origin_args for leaf in _unwrap(a)] if is_union and origin_args else [hint]
