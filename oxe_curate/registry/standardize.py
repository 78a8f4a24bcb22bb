"""Raw step arrays -> Trajectory, by a card's recipe.

A recipe is resolved once per card (`Standardizer`); per episode there is only slicing, arithmetic and one
write into the (T', 7) result. What the recipes compute is set out in `operations`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from oxe_curate.episode import Trajectory
from oxe_curate.errors import DataError, did_you_mean
from oxe_curate.registry.operations import Columns
from oxe_curate.registry.recipe import PART_WIDTHS, ActionRecipe, Piece, Pieces, Trim

if TYPE_CHECKING:
    from oxe_curate.registry.card import DatasetCard

Steps = Mapping[str, NDArray[Any]]


def standardize(card: DatasetCard, steps: Steps, recipe: str = "openvla") -> Trajectory:
    """Bring one episode into the common convention.

    Args:
        card: the data set's card.
        steps: flat step key -> array with time first, as TFDS decodes it; texts as numpy bytes or str.
        recipe: the name of one of the card's recipes.

    Raises:
        ConfigError: the card has no such recipe.
        DataError: a key is missing, too narrow, of another length than the others, or not numeric.
    """
    return card.standardizer(recipe)(steps)


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
        self._parts = [
            (part, width, [_Column(p) for p in getattr(recipe, part)]) for part, width in PART_WIDTHS.items()
        ]
        self._proprio = [_Column(p) for p in proprio]
        self._language_keys = language_keys
        self._decode = _from_codepoints if codepoints else _from_strings

    def __call__(self, steps: Steps) -> Trajectory:
        """Standardise one episode; the arrays in `steps` are left as they are. Raises DataError."""
        kept = range(0)
        try:
            num_steps = self._num_steps(steps)
            kept = self._trim.kept(num_steps)
            # NaN, infinities and overflow pass through to the screen `not_finite`, which reports them
            with np.errstate(all="ignore"):
                action = np.empty((len(kept), 7), np.float32)
                start = 0
                for part, width, columns in self._parts:
                    stop = self._fill(action, start, columns, steps, num_steps)
                    if stop != start + width:
                        raise DataError(_width_message(part, width, columns, steps))
                    start = stop
                proprio = self._build_proprio(steps, num_steps, len(kept))
            texts = self._texts(steps, num_steps)
        except DataError as error:
            raise DataError(f"{self._where}: {error}") from None
        return _with_language(action, proprio, kept, texts)

    def _num_steps(self, steps: Steps) -> int:
        for _, _, columns in self._parts:
            for column in columns:
                if column.src is not None:
                    return len(_get(steps, column.src))
        raise DataError("the recipe reads no step key, so the number of steps is not known")

    def _fill(self, out: NDArray[np.float32], start: int, columns: list[_Column], steps: Steps, num_steps: int) -> int:
        """Write the columns side by side from column `start`; return the column after them."""
        for column in columns:
            if column.src is None:
                stop = start + column.width
                out[:, start:stop] = column.const
            else:
                values = column.compute(steps, num_steps, self._trim)
                stop = start + int(values.shape[1])
                if stop > out.shape[1]:
                    return stop
                out[:, start:stop] = values[: len(out)]
            start = stop
        return start

    def _build_proprio(self, steps: Steps, num_steps: int, kept: int) -> NDArray[np.float32]:
        if not self._proprio:
            return np.empty((kept, 0), np.float32)
        return np.concatenate(
            [
                np.full((kept, column.width), column.const, np.float32)
                if column.src is None
                else column.compute(steps, num_steps, self._trim)[:kept].astype(np.float32)
                for column in self._proprio
            ],
            axis=1,
        )

    def _texts(self, steps: Steps, num_steps: int) -> list[str]:
        """One text per surviving step: the first that is not empty among the card's language keys."""
        texts: list[str] = []
        present = [key for key in self._language_keys if key in steps]
        if self._language_keys and not present:
            _get(steps, self._language_keys[0])
        for key in present:
            array = steps[key]
            _check_length(key, array, num_steps)
            kept = array[self._trim.first :: self._trim.stride]
            here = self._decode(key, kept[: max(len(kept) - self._trim.last, 0)])
            texts = [a or b for a, b in zip(texts, here, strict=True)] if texts else here
            if all(texts):
                break
        return texts


class _Column:
    """One piece of a recipe, ready to run."""

    def __init__(self, piece: Piece) -> None:
        self.src = piece.src
        self.const = piece.const
        self.width = piece.width or 0
        self._selection = piece.selection
        self._needed = piece.needed_width
        self._cols = piece.cols
        self._ops: list[tuple[str, int | None, Callable[[Columns], Columns]]] = [
            (o.op, o.spec.width_in, functools.partial(o.spec.function, **o.parameters)) for o in piece.ops
        ]

    def compute(self, steps: Steps, num_steps: int, trim: Trim) -> Columns:
        """Select, cast and run the operations: floating-point (rows, columns)."""
        key = self.src or ""
        x = _get(steps, key)
        _check_length(key, x, num_steps)
        if x.ndim != 2:
            if x.ndim != 1:
                raise DataError(f"{key!r} has shape (T, {', '.join(map(str, x.shape[1:]))}), expected (T, columns)")
            x = x[:, None]
        if x.shape[1] < self._needed:
            raise DataError(f"{key!r} has {x.shape[1]} columns, the recipe wants {list(self._cols or ())}")
        if trim.first or trim.stride != 1:
            x = x[trim.first :: trim.stride]
        if self._selection is not None:
            x = x[:, self._selection]
        if x.dtype != np.float32 and x.dtype != np.float64:
            x = _as_float32(key, x)
        for name, width, function in self._ops:
            if width is not None and x.shape[1] != width:
                raise DataError(f"{key!r}: {name} needs {width} columns, found {x.shape[1]}")
            x = function(x)
        return x


def _as_float32(key: str, x: NDArray[Any]) -> NDArray[np.float32]:
    if x.dtype.kind not in "biuf":
        raise DataError(f"{key!r} holds {x.dtype}, expected numbers")
    return x.astype(np.float32)


def _get(steps: Steps, key: str) -> NDArray[Any]:
    try:
        return steps[key]
    except KeyError:
        raise DataError(f"the step key {key!r} is missing. {did_you_mean(key, steps)}") from None


def _check_length(key: str, array: NDArray[Any], num_steps: int) -> None:
    if len(array) != num_steps:
        raise DataError(f"{key!r} has {len(array)} steps, the other keys have {num_steps}")


def _width_message(part: str, width: int, columns: Iterable[_Column], steps: Steps) -> str:
    found = ", ".join(f"{c.src!r} {steps[c.src].shape[1:]}" for c in columns if c.src is not None)
    return f"{part} needs {width} columns; what the recipe takes from {found} gives another number"


def _from_strings(key: str, array: NDArray[Any]) -> list[str]:
    if array.ndim != 1 or array.dtype.kind not in "SUO":
        raise DataError(f"{key!r} has dtype {array.dtype} and shape {array.shape}, expected one text per step")
    values: list[object] = array.tolist()
    decoded = {value: _decode(key, value) for value in set(values)}
    return [decoded[value] for value in values]


def _decode(key: str, value: object) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, bytes):
        raise DataError(f"{key!r} holds {type(value).__name__}, expected text")
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{key!r} holds text that is not UTF-8: {error}") from None


def _from_codepoints(key: str, array: NDArray[Any]) -> list[str]:
    """Read rows of Unicode code points, cut at the first zero; TensorFlow too turns invalid ones to U+FFFD."""
    if array.ndim != 2 or array.dtype.kind not in "iu":
        raise DataError(f"{key!r} has dtype {array.dtype} and shape {array.shape}, expected (T, code points)")
    decoded: dict[bytes, str] = {}
    texts = []
    # episodes repeat one instruction: compare rows as bytes, decode each distinct one once
    for i, row in enumerate(map(bytes, np.ascontiguousarray(array))):
        if row not in decoded:
            codes = array[i]
            valid = (codes >= 0) & (codes < 0x110000) & ~((codes >= 0xD800) & (codes < 0xE000))
            end = int((codes == 0).argmax()) if (codes == 0).any() else len(codes)
            decoded[row] = "".join(map(chr, np.where(valid, codes, 0xFFFD)[:end].tolist()))
        texts.append(decoded[row])
    return texts


def _with_language(
    action: NDArray[np.float32], proprio: NDArray[np.float32], kept: range, texts: list[str]
) -> Trajectory:
    distinct = tuple(dict.fromkeys(text for text in texts if text))
    if len(distinct) == 1 and all(texts):
        index = np.zeros(len(kept), np.int32)
    elif distinct:
        place = {"": -1} | {text: i for i, text in enumerate(distinct)}
        index = np.array([place[text] for text in texts], np.int32)
    else:
        index = np.full(len(kept), -1, np.int32)
    return Trajectory(
        action=action,
        frame_index=np.arange(kept.start, kept.stop, kept.step, dtype=np.int32),
        proprio=proprio,
        instruction=distinct[0] if distinct else "",
        instructions=distinct,
        instruction_index=index,
    )
