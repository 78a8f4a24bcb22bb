"""Action recipes as data: the step keys, columns and operations that make up the seven action columns.

In a card:
    trim: {first: 1, last: 1}
    xyz: [{src: observation/state, cols: [0, 3], ops: [delta]}]
    rpy: [{src: observation/state, cols: [3, 6], ops: [delta]}]
    gripper: [{src: action, cols: [-1, null], ops: [{op: binarize, lo: 0.05, hi: 0.95}]}]
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from dataclasses import field
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from oxe_curate.config import STRICT
from oxe_curate.errors import did_you_mean, quoted
from oxe_curate.registry.operations import OPERATIONS, OperationSpec

PART_WIDTHS = {"xyz": 3, "rpy": 3, "gripper": 1}
"""The parts of an action and their columns, in order."""
_MAX_STEPS, _MAX_COLUMNS = 1_000_000, 100_000
_Column = Annotated[int, Field(ge=-_MAX_COLUMNS, le=_MAX_COLUMNS)]
_Columns = Annotated[tuple[_Column | None, ...], Field(max_length=1000)]


@dataclass(frozen=True, config=STRICT)
class Operation:
    """One operation of `operations.OPERATIONS` with its parameters, checked against its signature."""

    op: str
    parameters: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.op not in OPERATIONS:
            raise ValueError(f"unknown operation {quoted(self.op)}. {did_you_mean(self.op, OPERATIONS)}")
        known = self.spec.parameters
        for name, value in self.parameters.items():
            if name not in known:
                raise ValueError(f"{self.op} has no parameter {quoted(name)}. {did_you_mean(name, known)}")
            problem = _parameter_problem(known[name], value)
            if problem:
                raise ValueError(f"{self.op}: {name} {problem}, got {quoted(value)}")

    @property
    def spec(self) -> OperationSpec:
        """The entry of the table."""
        return OPERATIONS[self.op]


def _parameter_problem(parameter: inspect.Parameter, value: object) -> str:
    """Describe what is wrong with a parameter's value; "" if it is valid."""
    if get_origin(parameter.annotation) is Literal:
        known = get_args(parameter.annotation)
        return "" if value in known else f"must be one of {', '.join(known)}"
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return "must be a number"
    if parameter.annotation is int and not isinstance(value, int):
        return "must be an integer"
    if parameter.annotation is int and abs(value) > _MAX_STEPS:
        return f"must be within ±{_MAX_STEPS:,}"
    return ""


def _parse_operation(value: object) -> object:
    """Read `{op: clip, lo: 0, hi: 1}`, or the bare name of an operation that needs no parameter."""
    if isinstance(value, str):
        return {"op": value}
    if isinstance(value, dict):
        if "op" not in value:
            raise ValueError(f"an operation is written {{op: clip, lo: 0, hi: 1}}, got {quoted(value)}")
        return {"op": value["op"], "parameters": {k: v for k, v in value.items() if k != "op"}}
    return value


@dataclass(frozen=True, config=STRICT)
class Piece:
    """Columns of one step key, or constant columns.

    Attributes:
        src: flat step key; a feature with only the time axis counts as one column.
        cols: two numbers are a half-open Python slice ([-1, null] is the last column); three or more list the
            columns in the desired order. Default: all columns.
        ops: applied left to right.
        const: the value of constant columns, instead of `src`.
        width: number of constant columns.
    """

    src: str | None = None
    cols: _Columns | None = None
    ops: tuple[Annotated[Operation, BeforeValidator(_parse_operation)], ...] = ()
    const: float | None = None
    width: int | None = Field(default=None, le=1000)

    def __post_init__(self) -> None:
        if (self.src is None) == (self.const is None):
            raise ValueError("a piece needs exactly one of the keys 'src' and 'const'")
        if self.const is not None and (self.cols is not None or self.ops or (self.width or 0) < 1):
            raise ValueError("constant columns are written {const: 0, width: 3}, without cols and ops")
        if self.src is not None and self.width is not None:
            raise ValueError("'width' belongs to 'const'; columns of 'src' are chosen with 'cols'")
        if self.cols is not None:
            _check_cols(self.cols)

    @property
    def selection(self) -> slice | list[int] | None:
        """Index of the chosen columns; None for all."""
        if self.cols is None:
            return None
        return slice(*self.cols) if len(self.cols) == 2 else [c for c in self.cols if c is not None]

    @property
    def needed_width(self) -> int:
        """The smallest width of `src` that has all chosen columns."""
        if self.cols is None:
            return 0
        last = [c if c is not None else 0 for c in self.cols]
        if len(self.cols) == 2:
            start, stop = last
            return max(start + 1 if start >= 0 else -start, stop if stop >= 0 else 1 - stop)
        return max(c + 1 if c >= 0 else -c for c in last)

    @property
    def shortens(self) -> int:
        """Rows that the operations remove from the end."""
        return sum(o.spec.shortens for o in self.ops)

    def columns(self, source_width: int | None) -> int | None:
        """Number of columns that a source of this width yields; None if unknown."""
        if self.const is not None:
            return self.width
        width = self._selected(source_width)
        for operation in self.ops:
            if width is not None and operation.spec.width_in not in (None, width):
                raise ValueError(f"{operation.op} needs {operation.spec.width_in} columns, got {width}")
            width = operation.spec.width_out or width
        return width

    def _selected(self, source_width: int | None) -> int | None:
        if self.cols is None:
            return source_width
        if len(self.cols) != 2:
            return len(self.cols)
        if source_width is not None:
            return len(range(source_width)[slice(*self.cols)])
        start, stop = self.cols[0] or 0, self.cols[1]
        if stop is None:
            return -start if start < 0 else None
        return stop - start if (start < 0) == (stop < 0) else None


def _check_cols(cols: tuple[int | None, ...]) -> None:
    if len(cols) < 2 or (len(cols) > 2 and None in cols):
        raise ValueError(
            f"cols must be a slice [from, to) or a list of at least three columns, got {quoted(list(cols))}"
        )
    if len(cols) == 2:
        start, stop = cols[0] or 0, cols[1]
        if stop is not None and (start < 0) == (stop < 0) and start >= stop:
            raise ValueError(f"cols {quoted(list(cols))} is a slice [from, to) and selects no columns")


@dataclass(frozen=True, config=STRICT)
class Trim:
    """Steps that the recipe omits.

    Attributes:
        first: steps dropped from the start, before any operation sees them.
        last: steps dropped from the end, after the operations; `delta` needs at least one.
        stride: keep every n-th of the remaining steps, before the operations.
    """

    first: int = Field(default=0, le=_MAX_STEPS)
    last: int = Field(default=0, le=_MAX_STEPS)
    stride: int = Field(default=1, le=_MAX_STEPS)

    def __post_init__(self) -> None:
        if self.first < 0 or self.last < 0 or self.stride < 1:
            raise ValueError("trim needs first >= 0, last >= 0, stride >= 1")

    def kept(self, num_steps: int) -> range:
        """The source's steps that remain."""
        steps = range(self.first, num_steps, self.stride)
        return steps[: max(len(steps) - self.last, 0)]


Pieces = tuple[Piece, ...]


@dataclass(frozen=True, config=STRICT)
class ActionRecipe:
    """How (xyz, roll-pitch-yaw, gripper with 1 = open) is computed from a data set's step keys.

    Attributes:
        xyz: pieces that are concatenated to three columns.
        rpy: pieces that are concatenated to three columns.
        gripper: pieces that are concatenated to one column.
        trim: steps to omit.
        note: remarks for users who choose this recipe.
    """

    xyz: Pieces
    rpy: Pieces
    gripper: Pieces
    trim: Trim = field(default_factory=Trim)
    note: str | None = None

    def __post_init__(self) -> None:
        for where, piece in self.pieces():
            if piece.shortens > self.trim.last:
                raise ValueError(f"{where}: delta yields no value for the last step: set trim.last to 1")
        for part, width in PART_WIDTHS.items():
            widths = [piece.columns(None) for piece in getattr(self, part)]
            total = sum(w for w in widths if w is not None)
            unknown = widths.count(None)
            if unknown > 1:
                raise ValueError(f"{part}: more than one piece takes all columns of its src; set their cols")
            if total > width or (total == width) == bool(unknown):
                raise ValueError(f"{part}: expected {width} columns, got {total} from its pieces")
        if all(piece.src is None for _, piece in self.pieces()):
            raise ValueError("the recipe does not read any step key")

    def pieces(self) -> Iterator[tuple[str, Piece]]:
        """Every piece with its location, such as ("xyz.0", piece)."""
        for part in PART_WIDTHS:
            for i, piece in enumerate(getattr(self, part)):
                yield f"{part}.{i}", piece
