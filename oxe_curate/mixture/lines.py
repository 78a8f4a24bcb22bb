"""Line numbers of the entries and keys of a mixture's text, for the findings of a check."""

from __future__ import annotations

import re
from dataclasses import dataclass

import yaml

_PLACE = re.compile(r"(?P<path>datasets(?:\.\d+(?:\.\w+)*)?|\w+(?:\.\w+)*)(?:: | is )")


@dataclass(frozen=True)
class Lines:
    """Line numbers, from 1.

    Attributes:
        keys: path of a key ("bounds.low", "datasets.3.weight") or of an entry ("datasets.3") -> its line.
    """

    keys: dict[str, int]

    def of(self, path: str) -> int | None:
        """The line of a path, or of its closest parent; None if the text has neither."""
        while path:
            if path in self.keys:
                return self.keys[path]
            path = path.rpartition(".")[0]
        return None

    def of_message(self, message: str) -> tuple[str | None, int | None]:
        """The path that the message of a ConfigError starts with ("datasets.3.weight: ..."), and its line."""
        quoted = re.search(r"key '([\w.]+)'", message)
        match = _PLACE.match(message)
        path = match["path"] if match else quoted[1] if quoted else None
        return path, self.of(path) if path else None


def find_lines(root: yaml.Node | None) -> Lines:
    """Find the keys below the root node of a YAML text."""
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
