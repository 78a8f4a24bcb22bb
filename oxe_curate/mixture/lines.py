"""Where things stand in a mixture's text: the line of each entry and of each key, for findings."""

from __future__ import annotations

import re
from dataclasses import dataclass

import yaml

_PLACE = re.compile(r"(?P<path>datasets(?:\.\d+(?:\.\w+)*)?|\w+(?:\.\w+)*)(?:: | is )")


@dataclass(frozen=True)
class Lines:
    """Line numbers, from 1.

    Attributes:
        keys: path of a key ("bounds.low", "datasets.3.weight") -> its line; an entry has its own ("datasets.3").
    """

    keys: dict[str, int]

    def of(self, path: str) -> int | None:
        """The line of a path, or of the closest place above it; None where the text has neither."""
        while path:
            if path in self.keys:
                return self.keys[path]
            path = path.rpartition(".")[0]
        return None

    def of_message(self, message: str) -> tuple[str | None, int | None]:
        """The path and the line that the message of a ConfigError begins with, as in "datasets.3.weight: ..."."""
        quoted = re.search(r"key '([\w.]+)'", message)
        match = _PLACE.match(message)
        path = match["path"] if match else quoted[1] if quoted else None
        return path, self.of(path) if path else None


def read_lines(text: str) -> Lines:
    """Find the keys of a YAML text; none at all where it does not parse."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return Lines({})
    keys: dict[str, int] = {}
    _walk(root, "", keys)
    return Lines(keys)


def _walk(node: yaml.Node | None, path: str, keys: dict[str, int]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = f"{path}.{key.value}".lstrip(".")
            keys[here] = key.start_mark.line + 1
            _walk(value, here, keys)
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            here = f"{path}.{number}".lstrip(".")
            keys[here] = item.start_mark.line + 1
            _walk(item, here, keys)
