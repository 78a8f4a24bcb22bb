"""Strict YAML: a file becomes a frozen dataclass, or one error that names the file, the line and the key."""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from oxe_curate.errors import ConfigError, did_you_mean

STRICT = ConfigDict(extra="forbid", arbitrary_types_allowed=False)
"""For `pydantic.dataclasses.dataclass(frozen=True, config=STRICT)`: unknown keys are errors."""

T = TypeVar("T")
Loc = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys and reads 1e-3 as a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key!r}", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


# PyYAML follows YAML 1.1, in which 1e-3 is a string; users mean the number.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)$"),
    list("-+0123456789"),
)


def parse_yaml(text: str, where: str) -> Any:
    """Parse one YAML document; error messages start with `where` (a file name).

    Raises:
        ConfigError: invalid YAML or a duplicate key; the message has the line number.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{where}{line}: {error.problem or error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: {error}") from None


def read_yaml(path: Path) -> Any:
    """Parse a YAML file. Raises ConfigError if it is missing, unreadable, or not YAML."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        nearby = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, nearby) if nearby else "Check the path."
        raise ConfigError(f"{path}: file not found. {hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read: {error}") from None
    return parse_yaml(text, str(path))


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
    """A dataclass as YAML with every default written out, in the order of its fields; `load` reads it back."""
    return yaml.safe_dump(_plain(dataclasses.asdict(value)), sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _explain(cls: Any, error: Any) -> str:
    loc: Loc = error["loc"]
    # pydantic adds names of union branches to the path; keep the parts that are in the file
    path = ".".join(str(part) for part in loc) or "the file"
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"unknown key {path!r}. {did_you_mean(str(loc[-1]), _known_keys(cls, loc[:-1]))}"
    if error["type"] in ("missing", "missing_argument"):
        return f"missing key {path!r}"
    if error["type"] == "value_error":
        return f"{path}: {error['ctx']['error']}" if loc else str(error["ctx"]["error"])
    if error["type"] in ("literal_error", "enum"):
        known = re.findall(r"'([^']*)'", str(error["ctx"]["expected"]))
        return f"{path}: unknown value {error['input']!r}. {did_you_mean(str(error['input']), known)}"
    if error["type"] in ("dataclass_type", "dict_type", "dataclass_exact_type"):
        return f"{path}: expected a mapping, got {error['input']!r}"
    return f"{path}: {error['msg'][0].lower()}{error['msg'][1:]}, got {error['input']!r}"


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
