"""Edits of a mixture's YAML: operations become splices of the text, so that everything else keeps its bytes.

    apply_edit(text, [Set(("datasets", 3, "weight"), 0.5)]).text

The result of every edit is parsed and compared with the expected object; on a mismatch nothing is changed.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from oxe_curate.editor.spans import Document, Found, Path, TextError, TextSpan, parse

Scalar = str | int | float | bool | None
_PLAIN = re.compile(r"[A-Za-z_][\w./+@-]*", re.ASCII)
_MAX_GAP = 10_000
"""Characters of comments between a dash and its entry; the search takes quadratic time."""
_DASH = re.compile(r"-(?:[ \t]*(?:#[^\r\n]*)?(?:\r\n|\r|\n))*[ \t]*$")


@dataclass(frozen=True, slots=True)
class Set:
    """Set a scalar, or a list of scalars; a missing key is added."""

    path: Path
    value: Scalar | tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class Add:
    """Add an entry at the end of `datasets`."""

    name: str
    weight: float


@dataclass(frozen=True, slots=True)
class Remove:
    """Remove the entry at a position of `datasets`, with its lines; comments on their own lines are kept."""

    position: int


EditOperation = Set | Add | Remove


@dataclass(frozen=True, slots=True)
class Splice:
    """Replace the code points start .. end by a text."""

    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Edit:
    """The new text and its splices: sorted, without overlap, with positions in the old text."""

    text: str
    splices: tuple[Splice, ...]


def apply_edit(text: str, operations: Sequence[EditOperation]) -> Edit:
    """Apply operations as one step; their positions refer to the text before the step.

    Raises:
        TextError: the text is not YAML, an entry does not exist, or the operation would change another value too (one
            with the same anchor).
    """
    document = parse(text)
    expected = _expected(document.data, operations)
    splices: list[Splice] = []
    for operation in operations:
        if isinstance(operation, Set):
            splices += _set(document, operation)
    removed = sorted({op.position for op in operations if isinstance(op, Remove)})
    added = [op for op in operations if isinstance(op, Add)]
    if removed or added:
        splices += _entries(document, removed, added)
    ordered = _merged(splices)
    result = apply_splices(text, ordered)
    try:
        same = alike(parse(result).data, expected)
    except TextError as error:
        raise TextError(f"this change would break the YAML ({error}); edit the text") from None
    if not same:
        raise TextError("this value depends on an anchor, a merge or a tag; edit the text", _first(ordered))
    return Edit(result, ordered)


def apply_splices(text: str, splices: Sequence[Splice]) -> str:
    """Apply sorted splices."""
    parts, position = [], 0
    for splice in splices:
        parts += [text[position : splice.start], splice.text]
        position = splice.end
    return "".join([*parts, text[position:]])


def alike(a: Any, b: Any) -> bool:
    """Equality that distinguishes True from 1, but not 1 from 1.0."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(alike(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(alike, a, b))
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a):
        return math.isnan(b)
    return isinstance(a, type(b)) or isinstance(b, type(a)) or _numbers(a, b) if a == b else False


def _numbers(a: Any, b: Any) -> bool:
    return isinstance(a, int | float) and isinstance(b, int | float)


def format_scalar(value: Scalar | tuple[Scalar, ...], old: str = "") -> str:
    """YAML for a value; a string keeps the quotes of the `old` text if possible."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(format_scalar, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TextError(f"expected a finite number, got {value}")
        text = repr(value)  # YAML 1.1 reads 1e-05 as a string
        return text.replace("e", ".0e") if "e" in text and "." not in text else text
    if old.startswith("'") and value.isprintable() and "'" not in value:
        return f"'{value}'"
    if old.startswith('"') or not _PLAIN.fullmatch(value) or parse(value).data != value:
        return json.dumps(value, ensure_ascii=False)
    return value


def _expected(data: Any, operations: Sequence[EditOperation]) -> Any:
    data = copy.deepcopy(data)
    if not isinstance(data, dict):
        raise TextError("expected keys and values. Start with `name:` and `datasets:`.", 0)
    entries = data.get("datasets")
    for operation in operations:
        if isinstance(operation, Set):
            _assign(data, operation)
        elif isinstance(operation, Remove) and (not isinstance(entries, list) or operation.position >= len(entries)):
            raise TextError(f"datasets: no entry {operation.position + 1}")
    gone = {op.position for op in operations if isinstance(op, Remove)}
    added = [{"name": op.name, "weight": op.weight} for op in operations if isinstance(op, Add)]
    if gone or added:
        if not isinstance(entries, list | None):
            raise TextError("datasets is not a list; edit the text")
        data["datasets"] = [entry for i, entry in enumerate(entries or []) if i not in gone] + added
    return data


def _assign(data: Any, operation: Set) -> None:
    here = data
    for depth, step in enumerate(operation.path[:-1]):
        try:
            here = here.setdefault(step, {}) if isinstance(here, dict) else here[step]
        except (IndexError, KeyError, TypeError):
            here = None
        if not isinstance(here, dict | list):
            raise TextError(f"{'.'.join(map(str, operation.path[: depth + 1]))} is missing or not a mapping")
    value = operation.value
    try:
        here[operation.path[-1]] = list(value) if isinstance(value, tuple) else value
    except (IndexError, TypeError):
        raise TextError(f"{'.'.join(map(str, operation.path))} does not exist") from None


def _set(document: Document, operation: Set) -> list[Splice]:
    found = document.find(operation.path)
    if found is None:
        return [_add_key(document, operation)]
    old = document.text[found.span.start : found.span.end]
    if isinstance(found.node, yaml.ScalarNode) and not found.alias and old:
        current = parse(old).data if found.node.style is None else found.node.value
        if alike(current, operation.value):
            return []
    if isinstance(found.node, yaml.CollectionNode) and not found.node.flow_style and found.key is not None:
        colon = document.text.index(":", int(document.start(found.key)) + len(found.key.value))
        return [Splice(colon + 1, found.span.end, f" {format_scalar(operation.value)}")]
    new = format_scalar(operation.value, old)
    space = " " if not old and document.text[found.span.start - 1 : found.span.start] == ":" else ""
    return [Splice(found.span.start, found.span.end, space + new)]


def _add_key(document: Document, operation: Set) -> Splice:
    parent, name = document.find(operation.path[:-1]), str(operation.path[-1])
    line = f"{name}: {format_scalar(operation.value)}"
    if parent is None:  # `image.size` without `image`
        parent = document.find(operation.path[:-2])
        line = f"{operation.path[-2]}: {{{line}}}"
    if parent is None or parent.alias or not isinstance(parent.node, yaml.MappingNode):
        raise TextError(f"cannot add {'.'.join(map(str, operation.path))} here; edit the text")
    pairs = document.pairs(parent.node)
    if not pairs:
        start = document.text.index("{", parent.span.start) + 1
        return Splice(start, start, line)
    if parent.node.flow_style:
        return Splice(pairs[-1][1].span.end, pairs[-1][1].span.end, f", {line}")
    first = document.start(pairs[0][0])
    end = document.line_end(pairs[-1][1].span.end)
    return Splice(end, end, f"{document.newline}{' ' * (first - document.line_start(first))}{line}")


def _entries(document: Document, removed: Sequence[int], added: Sequence[Add]) -> list[Splice]:
    found = document.find(("datasets",))
    if found is None or not isinstance(found.node, yaml.SequenceNode):
        return [_first_entries(document, found, added)]
    if found.alias:
        raise TextError("datasets is an alias; edit the text", found.span.start)
    items = document.items(found.node)
    if found.node.flow_style:
        return _flow_entries(document, found.span, items, removed, added)
    splices = [_cut(document, items[i].span, document.start(items[i].node)) for i in removed]
    if added:
        end = document.line_end(items[-1].span.end)
        splices.append(Splice(end, end, "".join(_like(document, items[-1], entry) for entry in added)))
    elif len(removed) == len(items):
        colon = _after_key(document, found)
        splices.append(Splice(colon, colon, " []"))
    return splices


def _first_entries(document: Document, found: Found | None, added: Sequence[Add]) -> Splice:
    body = "".join(f"{document.newline}  - name: {format_scalar(e.name)}{document.newline}    weight: "
                   f"{format_scalar(e.weight)}" for e in added)  # fmt: skip
    if found is None:
        end = len(document.text)
        lead = "" if document.line_start(end) == end else document.newline
        return Splice(end, end, f"{lead}datasets:{body}{document.newline}")
    return Splice(_after_key(document, found), found.span.end, body)


def _after_key(document: Document, found: Found) -> int:
    assert found.key is not None
    return document.text.index(":", document.start(found.key) + len("datasets")) + 1


def _flow_entries(
    document: Document, span: TextSpan, items: Sequence[Found], removed: Sequence[int], added: Sequence[Add]
) -> list[Splice]:
    splices = []
    if removed and len(removed) == len(items):
        items, removed = [], []
        splices = [] if added else [Splice(span.start, span.end, "[]")]
    for i in removed:
        if i + 1 < len(items):
            splices.append(Splice(document.start(items[i].node), document.start(items[i + 1].node), ""))
        else:
            splices.append(Splice(items[i - 1].span.end if i else document.start(items[i].node), items[i].span.end, ""))
    entries = ["{" + f"name: {format_scalar(e.name)}, weight: {format_scalar(e.weight)}" + "}" for e in added]
    if entries and items:
        start = document.start(items[-1].node)
        lead = document.text[document.line_start(start) : start]
        gap = f",{document.newline}{lead}" if not lead.strip() else ", "
        splices.append(Splice(items[-1].span.end, items[-1].span.end, gap + gap.join(entries)))
    elif entries:
        splices.append(Splice(span.start, span.end, f"[{', '.join(entries)}]"))
    return splices


def _cut(document: Document, span: TextSpan, start: int) -> Splice:
    """Remove a block entry: from the end of the line before its dash to the end of its last line."""
    dash = _DASH.search(document.text, max(start - _MAX_GAP, 0), start)
    if dash is None:
        raise TextError("the dash of the entry was not found; edit the text", start)
    line = document.line_start(dash.start())
    before = line - len(document.newline) if document.text[:line].endswith(document.newline) else line - 1
    if line == 0 or document.text[line : dash.start()].strip():
        raise TextError("the entry shares its line with other text; edit the text", start)
    return Splice(before, document.line_end(span.end), "")


def _like(document: Document, model: Found, entry: Add) -> str:
    """A new block entry, formatted like the one before it."""
    name, weight = format_scalar(entry.name), format_scalar(entry.weight)
    start = document.start(model.node)
    if model.alias:
        start = model.span.start
    dash = _DASH.search(document.text, max(start - _MAX_GAP, 0), start)
    if dash is None:
        raise TextError("the dash of the last entry was not found; edit the text", start)
    indent = " " * (dash.start() - document.line_start(dash.start()))
    line = document.newline + indent
    if model.alias or not isinstance(model.node, yaml.MappingNode) or model.node.flow_style:
        return f"{line}- {{name: {name}, weight: {weight}}}"
    inner = document.start(document.pairs(model.node)[0][0])
    width = inner - document.line_start(inner) - len(indent)
    gap = " " * max(width - 1, 1)
    return f"{line}-{gap}name: {name}{line} {gap}weight: {weight}"


def _merged(splices: Sequence[Splice]) -> tuple[Splice, ...]:
    """Sort splices and merge overlapping deletions. Raises TextError if other changes overlap."""
    ordered: list[Splice] = []
    for splice in sorted(splices, key=lambda s: (s.start, s.end)):
        if ordered and splice.start < ordered[-1].end:
            last = ordered[-1]
            if last.text or splice.text:
                raise TextError("two changes overlap; make them one after the other", splice.start)
            ordered[-1] = Splice(last.start, max(last.end, splice.end), "")
        else:
            ordered.append(splice)
    return tuple(ordered)


def _first(splices: Sequence[Splice]) -> int | None:
    return splices[0].start if splices else None
