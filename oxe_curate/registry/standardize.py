"""Convert raw step arrays to a Trajectory with a card's recipe.

A recipe is resolved once per card (`Standardizer`). Each source array of an episode is checked once, and each piece is
one slice, its operations, and one write into the (T', 7) result, for all episodes of a shard together.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oxe_curate.episode import Steps, Trajectory
from oxe_curate.errors import DataError, did_you_mean
from oxe_curate.registry.operations import ColumnArray, OperationSpec
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
        return self.many([steps])[0]

    def many(self, episodes: Sequence[Steps]) -> list[Trajectory]:
        """Standardise several episodes, each as if it were the only one, with one call of each operation for all.

        The arrays in `episodes` are not changed.

        Raises:
            DataError: one of them cannot be standardised, or they differ in kind: standardise them one by one.
        """
        try:
            return self._many(episodes) if episodes else []
        except DataError as error:
            raise DataError(f"{self._where}: {error}") from None

    def _many(self, episodes: Sequence[Steps]) -> list[Trajectory]:
        counts = [len(_get(steps, next(iter(self._action_keys)))) for steps in episodes]
        kept = [self._trim.kept(count) for count in counts]
        has_proprio = {all(map(steps.__contains__, self._all_keys)) for steps in episodes}
        if len(has_proprio) > 1:
            raise DataError("only some episodes have proprio")
        keys = self._all_keys if has_proprio == {True} else self._action_keys
        lengths = np.array([len(range(count)[self._rows]) for count in counts], np.int64)
        sources = self._sources(keys, episodes, counts)
        rows = _Rows(lengths, np.array([len(steps) for steps in kept], np.int64))
        # the criterion `not_finite` reports NaN, infinities and overflow
        with np.errstate(all="ignore"):
            action = rows.side_by_side([_run(column, sources, lengths) for column in self._action])
            columns = self._proprio if has_proprio == {True} else []
            proprio = rows.side_by_side([_run(column, sources, lengths) for column in columns])
        place = np.asarray(self._trim.first + self._trim.stride * rows.place(), np.int32)
        found = []
        for steps, count, selected, start, stop in zip(episodes, counts, kept, *rows.bounds(), strict=True):
            instructions, index = read_texts(
                steps, self._language_keys, self._codepoints, count, slice(selected.start, selected.stop, selected.step)
            )
            found.append(Trajectory(
                action=action[start:stop], frame_index=place[start:stop], proprio=proprio[start:stop],
                instruction=instructions[0] if instructions else "", instructions=instructions, instruction_index=index,
            ))  # fmt: skip
        return found

    def _sources(
        self, keys: dict[str, int], episodes: Sequence[Steps], counts: Sequence[int]
    ) -> dict[str, NDArray[Any]]:
        """The arrays of `keys` as (rows of all episodes, columns) without the trimmed steps, each checked once."""
        sources = {}
        for key, needed in keys.items():
            arrays = []
            for steps, count in zip(episodes, counts, strict=True):
                x = _get(steps, key)
                if x.ndim == 1:
                    x = x[:, None]
                if len(x) != count:
                    raise DataError(f"{key!r} has {len(x)} steps, the other keys have {count}")
                if x.ndim != 2 or x.shape[1] < needed:
                    raise DataError(f"{key!r} has shape {x.shape}, expected (steps, at least {needed} columns)")
                if x.dtype.kind not in "fbiu":
                    raise DataError(f"{key!r} has dtype {x.dtype}, expected numbers")
                arrays.append(x[self._rows])
            if len({(x.shape[1], x.dtype) for x in arrays}) > 1:
                raise DataError(f"{key!r} has several shapes or dtypes")
            sources[key] = np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
        return sources


@dataclass(frozen=True, eq=False, slots=True)
class _Rows:
    """Rows of several episodes in one array.

    Attributes:
        lengths: int64 (n,), rows that the operations see.
        kept: int64 (n,), rows that remain.
    """

    lengths: NDArray[np.int64]
    kept: NDArray[np.int64]

    def bounds(self) -> tuple[list[int], list[int]]:
        """First row of each episode, and the one after its last, of those that remain."""
        stops = np.cumsum(self.kept)
        return (stops - self.kept).tolist(), stops.tolist()

    def place(self) -> NDArray[np.int64]:
        """The number of each remaining row in its episode."""
        return np.arange(int(self.kept.sum())) - np.repeat(np.cumsum(self.kept) - self.kept, self.kept)

    def side_by_side(self, values: Sequence[_Value]) -> NDArray[np.float32]:
        """Concatenate columns as float32; rows after an episode's last kept one are omitted."""
        widths = [value.width if isinstance(value, _Constant) else value[0].shape[1] for value in values]
        out = np.empty((int(self.kept.sum()), sum(widths)), np.float32)
        start = 0
        for value, width in zip(values, widths, strict=True):
            columns = out[:, start : start + width]
            columns[:] = value.value if isinstance(value, _Constant) else self._take(*value)
            start += width
        return out

    def _take(self, x: ColumnArray, lengths: NDArray[np.int64]) -> ColumnArray:
        if np.array_equal(lengths, self.kept):
            return x
        if len(lengths) == 1:
            return x[: self.kept[0]]
        return x[self.place() + np.repeat(np.cumsum(lengths) - lengths, self.kept)]


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
    chain: tuple[tuple[OperationSpec, str, Callable[..., ColumnArray]], ...]
    width: int | None


_Value = _Constant | tuple[ColumnArray, NDArray[np.int64]]
"""Constant columns, or columns and the rows of each episode."""


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
        chain=tuple((o.spec, o.op, functools.partial(o.spec.function, **o.parameters)) for o in piece.ops),
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


def _run(column: _Column | _Constant, sources: dict[str, NDArray[Any]], lengths: NDArray[np.int64]) -> _Value:
    """Select, cast and operate; return the columns and the rows of each episode.

    float64 stays float64: the cast to float32 comes last, as in OpenVLA's loader.
    """
    if isinstance(column, _Constant):
        return column
    x = sources[column.src]
    if column.selection is not None:
        x = x[:, column.selection]
    if x.dtype.char not in "fd":
        x = x.astype(np.float32)
    for spec, name, function in column.chain:
        if spec.width_in is not None and x.shape[1] != spec.width_in:
            raise DataError(f"{column.src!r}: {name} needs {spec.width_in} columns, got {x.shape[1]}")
        x = function(x, lengths) if spec.by_episode else function(x)
        lengths = np.maximum(lengths - spec.shortens, 0)
    if column.width is not None and x.shape[1] != column.width:
        raise DataError(f"{column.place}: {column.src!r} gives {x.shape[1]} columns, expected {column.width}")
    return x, lengths


def _get(steps: Steps, key: str) -> NDArray[Any]:
    try:
        array = steps[key]
    except KeyError:
        raise DataError(f"the step key {key!r} is missing. {did_you_mean(key, steps)}") from None
    if not array.ndim:
        raise DataError(f"{key!r} is a single value, expected an array with time as its first axis")
    return array
