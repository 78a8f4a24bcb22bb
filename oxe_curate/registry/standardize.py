"""Convert raw step arrays to a Trajectory with a card's recipe.

A recipe is resolved once per card (`Standardizer`). Per episode, each source array is checked once, and each
piece is one slice, its operations, and one write into the (T', 7) result.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oxe_curate.episode import Steps, Trajectory
from oxe_curate.errors import DataError, did_you_mean
from oxe_curate.registry.operations import ColumnArray
from oxe_curate.registry.recipe import PART_WIDTHS, ActionRecipe, Operation, Piece, Pieces
from oxe_curate.registry.text import read_texts


class Standardizer:
    """A recipe, resolved: call it with one episode's steps."""

    def __init__(
        self,
        where: str,
        recipe: ActionRecipe,
        proprio: Pieces,
        language_keys: tuple[str, ...],
        codepoints: bool,
    ) -> None:
        self._where = where
        self._trim = recipe.trim
        self._rows = slice(recipe.trim.first, None, recipe.trim.stride)
        self._action = _merge([column for part in PART_WIDTHS for column in _resolve_part(recipe, part)])
        self._proprio = _merge([_resolve(piece, None, "proprio") for piece in proprio])
        self._action_keys = _needed_widths(self._action)
        self._all_keys = _needed_widths([*self._action, *self._proprio])
        self._language_keys = language_keys
        self._codepoints = codepoints

    def __call__(self, steps: Steps) -> Trajectory:
        """Standardise one episode; the arrays in `steps` are not changed. Raises DataError."""
        try:
            num_steps = len(_get(steps, next(iter(self._action_keys))))
            kept = self._trim.kept(num_steps)
            has_proprio = all(map(steps.__contains__, self._all_keys))
            sources = self._sources(self._all_keys if has_proprio else self._action_keys, steps, num_steps)
            # the criterion `not_finite` reports NaN, infinities and overflow
            with np.errstate(all="ignore"):
                action = _side_by_side([_run(column, sources) for column in self._action], len(kept))
                proprio = _side_by_side([_run(c, sources) for c in self._proprio if has_proprio], len(kept))
            instructions, index = read_texts(
                steps, self._language_keys, self._codepoints, num_steps, slice(kept.start, kept.stop, kept.step)
            )
        except DataError as error:
            raise DataError(f"{self._where}: {error}") from None
        return Trajectory(
            action=action,
            frame_index=np.arange(kept.start, kept.stop, kept.step, dtype=np.int32),
            proprio=proprio,
            instruction=instructions[0] if instructions else "",
            instructions=instructions,
            instruction_index=index,
        )

    def _sources(self, keys: dict[str, int], steps: Steps, num_steps: int) -> dict[str, NDArray[Any]]:
        """The arrays of `keys` as (rows, columns) views without the trimmed steps, each checked once."""
        sources = {}
        for key, needed in keys.items():
            x = _get(steps, key)
            if x.ndim == 1:
                x = x[:, None]
            if len(x) != num_steps:
                raise DataError(f"{key!r} has {len(x)} steps, the other keys have {num_steps}")
            if x.ndim != 2 or x.shape[1] < needed:
                raise DataError(f"{key!r} has shape {x.shape}, expected (steps, at least {needed} columns)")
            if x.dtype.kind not in "fbiu":
                raise DataError(f"{key!r} has dtype {x.dtype}, expected numbers")
            sources[key] = x[self._rows]
        return sources


@dataclass(frozen=True, slots=True)
class _Constant:
    value: float
    width: int


@dataclass(frozen=True, slots=True)
class _Column:
    """A piece that reads `src`. `width` is the required number of columns, None if the recipe does not fix it."""

    place: str
    src: str
    cols: tuple[int | None, ...] | None
    selection: slice | list[int] | None
    needed: int
    operations: tuple[Operation, ...]
    chain: tuple[tuple[str, int | None, Callable[[ColumnArray], ColumnArray]], ...]
    width: int | None


def _resolve_part(recipe: ActionRecipe, part: str) -> list[_Column | _Constant]:
    pieces: Pieces = getattr(recipe, part)
    known = [piece.columns(None) for piece in pieces]
    rest = PART_WIDTHS[part] - sum(width for width in known if width is not None)
    return [_resolve(piece, rest if width is None else width, part) for piece, width in zip(pieces, known, strict=True)]


def _resolve(piece: Piece, width: int | None, place: str) -> _Column | _Constant:
    if piece.src is None:
        return _Constant(piece.const or 0.0, piece.width or 0)
    return _Column(
        place=place,
        src=piece.src,
        cols=piece.cols,
        selection=piece.selection,
        needed=piece.needed_width,
        operations=piece.ops,
        chain=tuple((o.op, o.spec.width_in, functools.partial(o.spec.function, **o.parameters)) for o in piece.ops),
        width=width,
    )


def _merge(columns: list[_Column | _Constant]) -> list[_Column | _Constant]:
    """Join neighbours that read adjacent columns of one key through the same operations: fewer numpy calls."""
    merged: list[_Column | _Constant] = []
    for column in columns:
        last = merged[-1] if merged else None
        if isinstance(last, _Column) and isinstance(column, _Column) and _adjacent(last, column):
            cols = (last.selection.start, column.selection.stop)  # type: ignore[union-attr]
            merged[-1] = replace(
                last,
                place=f"{last.place}, {column.place}",
                cols=cols,
                selection=slice(*cols),
                needed=column.needed,
                width=(last.width or 0) + (column.width or 0),
            )
        else:
            merged.append(column)
    return merged


def _adjacent(a: _Column, b: _Column) -> bool:
    if not (isinstance(a.selection, slice) and isinstance(b.selection, slice)):
        return False
    bounds = (a.selection.start, a.selection.stop, b.selection.start, b.selection.stop)
    return (
        a.src == b.src
        and a.operations == b.operations
        and all(o.spec.width_in is None for o in a.operations)
        and all(isinstance(bound, int) and bound >= 0 for bound in bounds)
        and a.selection.stop == b.selection.start
        and a.width is not None
        and b.width is not None
    )


def _needed_widths(columns: list[_Column | _Constant]) -> dict[str, int]:
    needed: dict[str, int] = {}
    for column in columns:
        if isinstance(column, _Column):
            needed[column.src] = max(needed.get(column.src, 0), column.needed)
    return needed


def _run(column: _Column | _Constant, sources: dict[str, NDArray[Any]]) -> ColumnArray | _Constant:
    """Select, cast and operate. float64 stays float64: the cast to float32 comes last, as in OpenVLA's loader."""
    if isinstance(column, _Constant):
        return column
    x = sources[column.src]
    if column.selection is not None:
        x = x[:, column.selection]
    if x.dtype.char not in "fd":
        x = x.astype(np.float32)
    for name, width, function in column.chain:
        if width is not None and x.shape[1] != width:
            raise DataError(f"{column.src!r}: {name} needs {width} columns, got {x.shape[1]}")
        x = function(x)
    if column.width is not None and x.shape[1] != column.width:
        raise DataError(f"{column.place}: {column.src!r} gives {x.shape[1]} columns, expected {column.width}")
    return x


def _side_by_side(values: list[ColumnArray | _Constant], num_rows: int) -> NDArray[np.float32]:
    """Concatenate columns as float32; rows after the last kept one are omitted."""
    widths = [v.width if isinstance(v, _Constant) else v.shape[1] for v in values]
    out = np.empty((num_rows, sum(widths)), np.float32)
    start = 0
    for value, width in zip(values, widths, strict=True):
        out[:, start : start + width] = value.value if isinstance(value, _Constant) else value[:num_rows]
        start += width
    return out


def _get(steps: Steps, key: str) -> NDArray[Any]:
    try:
        array = steps[key]
    except KeyError:
        raise DataError(f"the step key {key!r} is missing. {did_you_mean(key, steps)}") from None
    if not array.ndim:
        raise DataError(f"{key!r} is a single value, expected an array with time as its first axis")
    return array
