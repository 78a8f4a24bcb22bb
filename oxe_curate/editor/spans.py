"""The position of each value in a YAML text, from PyYAML's nodes and marks.

Offsets count code points of the given text, including a byte order mark and carriage returns.
"""

from __future__ import annotations

import bisect
import functools
import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from oxe_curate.errors import ConfigError
from oxe_curate.strict_yaml import StrictLoader, YamlError, load_yaml

Path = tuple[str | int, ...]
"""Keys and positions from the root: ("datasets", 3, "weight")."""

_BOM = "\ufeff"
_PROPERTIES = re.compile(r"(?:(?:&[^\s,\[\]{}]+|!\S*)(?:[ \t]+|$|(?=[\r\n])))+")
_BREAK = re.compile(r"\r\n|\r|\n")


class TextError(ConfigError):
    """A text that cannot be parsed or edited.

    Attributes:
        offset: position of the problem in code points, if known.
    """

    def __init__(self, message: str, offset: int | None = None) -> None:
        super().__init__(message)
        self.offset = offset


@dataclass(frozen=True, slots=True)
class TextSpan:
    """Half-open range of code points."""

    start: int
    end: int


class _Composer(StrictLoader):
    """Composes nodes and records what PyYAML drops: positions of aliases, and the pairs of a mapping before merges."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.aliases: dict[tuple[int, int], TextSpan] = {}
        self.pairs: dict[int, list[tuple[yaml.Node, yaml.Node]]] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            self.aliases[_place(parent, index)] = TextSpan(event.start_mark.index, event.end_mark.index)
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        self.pairs[id(node)] = list(node.value)
        return node


def _place(parent: yaml.Node | None, index: Any) -> tuple[int, int]:
    return id(parent), index if isinstance(index, int) else id(index)


@dataclass(frozen=True, eq=False)
class Found:
    """A value and its position.

    Attributes:
        node: of the value; for an alias, the anchored node.
        span: the range that a splice replaces: without anchor, tag and comments after a block scalar.
        alias: whether the value is written as an alias.
        key: node of its key, in a mapping.
    """

    node: yaml.Node
    span: TextSpan
    alias: bool
    key: yaml.Node | None = None


@dataclass(frozen=True, eq=False)
class Document:
    """A parsed text, see `parse`."""

    text: str
    data: Any
    _root: yaml.Node | None
    _shift: int
    _aliases: dict[tuple[int, int], TextSpan] = field(repr=False)
    _pairs: dict[int, list[tuple[yaml.Node, yaml.Node]]] = field(repr=False)
    _spans: dict[int, TextSpan] = field(repr=False, default_factory=dict)

    def find(self, path: Path) -> Found | None:
        """The value at `path`; None if it is not in the text (merged keys are not).

        Raises:
            TextError: the path goes through an alias, so that an edit would change the anchored value.
        """
        if self._root is None:
            return None
        found = Found(self._root, self._span(self._root), alias=False)
        for depth, step in enumerate(path):
            if found.alias:
                name = ".".join(map(str, path[:depth]))
                raise TextError(f"{name} is an alias of another value; edit the text", found.span.start)
            child = self._child(found.node, step)
            if child is None:
                return None
            found = child
        return found

    def _child(self, node: yaml.Node, step: str | int) -> Found | None:
        if isinstance(node, yaml.SequenceNode) and isinstance(step, int):
            return self._found(node, step, node.value[step]) if step < len(node.value) else None
        for key, value in self._pairs.get(id(node), ()):
            if isinstance(key, yaml.ScalarNode) and key.value == step:
                return self._found(node, key, value)
        return None

    def _found(self, parent: yaml.Node, index: Any, node: yaml.Node) -> Found:
        alias = self._aliases.get(_place(parent, index))
        key = index if isinstance(index, yaml.Node) else None
        if alias:
            return Found(node, TextSpan(alias.start + self._shift, alias.end + self._shift), alias=True, key=key)
        return Found(node, self._span(node), alias=False, key=key)

    def pairs(self, node: yaml.Node) -> list[tuple[yaml.Node, Found]]:
        """The keys and values of a mapping, without merged ones, in order."""
        return [(key, self._found(node, key, value)) for key, value in self._pairs.get(id(node), ())]

    def items(self, node: yaml.Node) -> list[Found]:
        """The items of a sequence."""
        return [self._found(node, i, item) for i, item in enumerate(node.value)]

    def start(self, node: yaml.Node) -> int:
        """Start of a node, including anchor and tag."""
        return int(node.start_mark.index) + self._shift

    def _span(self, node: yaml.Node) -> TextSpan:
        if id(node) not in self._spans:
            self._spans[id(node)] = self._find_span(node)
        return self._spans[id(node)]

    def _find_span(self, node: yaml.Node) -> TextSpan:
        start, end = self.start(node), int(node.end_mark.index) + self._shift
        if isinstance(node, yaml.ScalarNode):
            skipped = _PROPERTIES.match(self.text, start, end)
            start = skipped.end() if skipped else start
            if node.style in ("|", ">"):
                end = self._block_scalar_end(start, end)
        elif (
            isinstance(node, yaml.CollectionNode) and not node.flow_style
        ):  # PyYAML's end mark is that of the next token: use the last child's
            children = [value.span.end for _, value in self.pairs(node)] + (
                [item.span.end for item in self.items(node)] if isinstance(node, yaml.SequenceNode) else []
            )
            end = max(children, default=end)
        return TextSpan(start, end)

    def _block_scalar_end(self, start: int, end: int) -> int:
        """End of the last line that is indented like the scalar's first; PyYAML's mark is after later comments."""
        lines = self.text[start:end].splitlines(keepends=True)
        last, offset, indent = start + len(lines[0].rstrip("\r\n")), start + len(lines[0]), None
        for line in lines[1:]:
            body = line.rstrip("\r\n")
            if body.strip(" "):
                width = len(body) - len(body.lstrip(" "))
                indent = width if indent is None else indent
                if width < indent:
                    break
                last = offset + len(body)
            offset += len(line)
        return last

    def line_start(self, offset: int) -> int:
        """Start of the line that contains `offset`."""
        return max(self.text.rfind("\n", 0, offset), self.text.rfind("\r", 0, offset), -1 + self._shift) + 1

    def line_end(self, offset: int) -> int:
        """End of the line that contains `offset`, before its break."""
        found = _BREAK.search(self.text, offset)
        return found.start() if found else len(self.text)

    @functools.cached_property
    def newline(self) -> str:
        """The first line break of the text."""
        found = _BREAK.search(self.text)
        return found.group() if found else "\n"


@functools.lru_cache(maxsize=8)
def parse(text: str) -> Document:
    """Parse one YAML document. `data` is cached: copy it before changing it.

    Raises:
        TextError: not a YAML document, or a duplicate key; with the position.
    """
    shift = len(_BOM) if text.startswith(_BOM) else 0
    try:
        data, loader, root = load_yaml(text[shift:], "text", _Composer)
    except YamlError as error:
        raise TextError(error.reason, None if error.offset is None else error.offset + shift) from None
    assert isinstance(loader, _Composer)
    return Document(text, data, root, shift, loader.aliases, loader.pairs)


class Utf16:
    """Converts code points to UTF-16 units, in which browsers count: an emoji is one code point and two units."""

    def __init__(self, text: str) -> None:
        self._wide = [i for i, c in enumerate(text) if c > "\uffff"] if not text.isascii() else []

    def units(self, offset: int) -> int:
        """UTF-16 units before a code point."""
        return offset + bisect.bisect_left(self._wide, offset)
