"""YAML with limits: what a mixture, a card or a file of criteria can need, and nothing that surprises or explodes.

Refused, although YAML 1.1 allows it: duplicate keys, keys that are not plain values, tags other than those of the core
types, aliases that contain themselves, and numbers that a reader would take for something else (010 is 8, 1:30 is 90,
1e999 is infinite). Dates are text. Aliases are expanded, but the limits apply to the expanded document.
"""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

from oxe_curate.errors import ConfigError, quoted

MAX_CHARACTERS = 1 << 19
"""A mixture of all 98 data sets with comments has 20,000 characters."""
_MAX_NODES = 20_000
"""A mixture of 500 data sets and 500 image-text sources has 14,000."""
_MAX_EXPANDED = 4 * MAX_CHARACTERS
_MAX_DEPTH = 60
_MAX_DIGITS = 300

_CORE = "tag:yaml.org,2002:"
_TAGS = {f"{_CORE}{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq")}
_SURROGATE_OR_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")
_DECIMAL = re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)")
_OTHER_INTEGER = re.compile(r"[-+]?(?:0b[0-1_]+|0[0-9_]+|[1-9][0-9_]*(?::[0-5]?[0-9])+)")
_OTHER_FLOAT = re.compile(r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*")


class StrictLoader(yaml.SafeLoader):
    """SafeLoader with the limits and refusals of this module, that reads 1e-3 as a number."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own name)
        first: [(tag, pattern) for tag, pattern in resolvers if tag.split(":")[-1] not in ("timestamp", "value")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._composed = 0
        self._sizes: dict[int, tuple[int, int, int]] = {}  # id of a node -> nodes, characters, depth, all expanded

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node: refuses foreign tags, deep nesting and aliases of a node inside itself."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if not isinstance(event, yaml.AliasEvent) and event.tag not in (None, "!", *_TAGS):
            raise _problem(f"the tag {quoted(event.tag)} is not supported; remove it", event.start_mark)
        self._depth += 1
        self._composed += 1
        if self._composed > _MAX_NODES:  # at once, not at the end of the mapping
            raise _problem(f"expected at most {_MAX_NODES:,} values", event.start_mark)
        if self._depth > _MAX_DEPTH:
            raise _problem(f"expected at most {_MAX_DEPTH} levels of nesting", event.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is not None and id(node) not in self._sizes:
            raise _problem("an alias inside its own anchor; write the value out", event.start_mark)
        return node

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        """Compose and measure."""
        node = super().compose_scalar_node(anchor)
        self._measure(node, [])
        return node

    def compose_sequence_node(self, anchor: Any) -> yaml.SequenceNode:
        """Compose and measure."""
        node = super().compose_sequence_node(anchor)
        self._measure(node, node.value)
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose and measure."""
        node = super().compose_mapping_node(anchor)
        self._measure(node, [part for pair in node.value for part in pair])
        return node

    def _measure(self, node: yaml.Node, parts: list[yaml.Node]) -> None:
        sizes = [self._sizes[id(part)] for part in parts if id(part) in self._sizes]
        own = len(node.value) if isinstance(node, yaml.ScalarNode) else 0
        nodes = 1 + sum(size[0] for size in sizes)
        characters = own + sum(size[1] for size in sizes)
        depth = 1 + max((size[2] for size in sizes), default=0)
        self._sizes[id(node)] = nodes, characters, depth
        if nodes > _MAX_NODES or characters > _MAX_EXPANDED or depth > _MAX_DEPTH:
            what = f"{_MAX_NODES:,} values of {_MAX_EXPANDED:,} characters, nested {_MAX_DEPTH} deep"
            raise _problem(f"expected at most {what}, with aliases written out", node.start_mark)

    def construct_scalar(self, node: Any) -> Any:
        """The text of a scalar, without control characters and surrogates."""
        if isinstance(node, yaml.ScalarNode) and (odd := _SURROGATE_OR_CONTROL.search(node.value)):
            raise _problem(f"the character U+{ord(odd[0]):04X} is not allowed", node.start_mark)
        return super().construct_scalar(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping without duplicate keys."""
        seen: set[Any] = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key_node.tag == f"{_CORE}merge":
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                raise _problem("expected a plain value as a key", key_node.start_mark)
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise _problem(f"duplicate key {quoted(key)}", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)

    def construct_yaml_int(self, node: Any) -> int:
        """A decimal or 0x number."""
        text = self.construct_scalar(node)
        if not _DECIMAL.fullmatch(text):
            read = "YAML reads this as another number; " if _OTHER_INTEGER.fullmatch(text) else ""
            raise _problem(f"expected a decimal number, got {quoted(text)}; {read}quote it for text", node.start_mark)
        if len(text) > _MAX_DIGITS:
            raise _problem(f"expected a number of at most {_MAX_DIGITS} digits, got {len(text):,}", node.start_mark)
        return super().construct_yaml_int(node)

    def construct_yaml_float(self, node: Any) -> float:
        """A finite number."""
        text = self.construct_scalar(node)
        if _OTHER_FLOAT.fullmatch(text):
            raise _problem(f"expected a decimal number, got {quoted(text)}; quote it for text", node.start_mark)
        try:
            value = super().construct_yaml_float(node)
        except ValueError:
            raise _problem(f"expected a number, got {quoted(text)}", node.start_mark) from None
        if not math.isfinite(value):
            raise _problem(f"expected a finite number, got {quoted(text)}", node.start_mark)
        return value

    def construct_yaml_bool(self, node: Any) -> bool:
        """A boolean."""
        text = self.construct_scalar(node)
        if text.lower() not in self.bool_values:
            raise _problem(f"expected true or false, got {quoted(text)}", node.start_mark)
        return super().construct_yaml_bool(node)


for _name in ("int", "float", "bool"):
    StrictLoader.add_constructor(f"{_CORE}{_name}", getattr(StrictLoader, f"construct_yaml_{_name}"))
# PyYAML follows YAML 1.1, in which 1e-3 is a string; users mean the number.
StrictLoader.add_implicit_resolver(
    f"{_CORE}float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)$"),
    list("-+0123456789"),
)


def _problem(message: str, mark: yaml.Mark) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, message, mark)


class YamlError(ConfigError):
    """A text that is not YAML, or not within the limits.

    Attributes:
        reason: the message without the place.
        offset: position of the problem in code points; None if unknown.
        line: from 1; None if unknown.
    """

    def __init__(self, where: str, reason: str, offset: int | None = None, line: int | None = None) -> None:
        super().__init__(f"{where}{f':{line}' if line else ''}: {reason}")
        self.reason, self.offset, self.line = reason, offset, line


def load_yaml(text: str, where: str, loader: type[StrictLoader] = StrictLoader) -> tuple[Any, StrictLoader, Any]:
    """Parse one YAML document.

    Args:
        text: without a byte order mark.
        where: the file, with which messages start.
        loader: a subclass that records more.

    Returns:
        The value, the loader, and the root node (None for an empty document).

    Raises:
        YamlError: not one YAML document, or beyond the limits of this module.
    """
    if len(text) > MAX_CHARACTERS:
        raise YamlError(where, f"expected at most {MAX_CHARACTERS:,} characters, got {len(text):,}")
    opened = None
    try:
        opened = loader(text)
        root = opened.get_single_node()
        return (None if root is None else opened.construct_document(root)), opened, root
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = str(error.problem or error)
        raise YamlError(where, reason, *_position(mark)) from None
    except yaml.reader.ReaderError as error:
        at = int(error.position)
        code = error.character if isinstance(error.character, int) else ord(str(error.character)[0])
        reason = f"the character U+{code:04X} is not allowed"
        raise YamlError(where, reason, at, text.count("\n", 0, at) + 1) from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # ValueError: the escape "\U00110000"
        mark = opened.get_mark() if opened is not None else None
        raise YamlError(where, str(error), *_position(mark)) from None


def _position(mark: yaml.Mark | None) -> tuple[int | None, int | None]:
    return (None, None) if mark is None else (mark.index, mark.line + 1)


def parse_yaml(text: str, where: str) -> Any:
    """Parse one YAML document; error messages start with `where` (a file name) and the line.

    Raises:
        YamlError: not one YAML document, or beyond the limits of this module.
    """
    return load_yaml(text, where)[0]
