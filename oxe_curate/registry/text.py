"""Read instructions: one text per step, as a string or a row of code points -> distinct texts and an index."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oxe_curate.episode import pick
from oxe_curate.errors import DataError, did_you_mean


def read_texts(
    steps: Mapping[str, NDArray[Any]], keys: tuple[str, ...], codepoints: bool, num_steps: int, kept: slice
) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """Return the distinct texts of the kept steps and, per step, which of them it has.

    A step's text is the first non-empty one among `keys`, and of a key with several texts per step the first non-empty
    one. Absent keys are skipped if at least one is present: they are
    alternatives.

    Args:
        steps: flat step key -> array with time first.
        keys: keys with texts, in order of preference; without keys there are no texts.
        codepoints: the texts are rows of Unicode code points, zero-padded.
        num_steps: length that each array must have.
        kept: the steps that remain.

    Returns:
        The distinct non-empty texts in order of appearance, and int32 (T',): index into them, -1 for no text.

    Raises:
        DataError: no key is present, or a key has a different length, a wrong type or invalid text.
    """
    present = [key for key in keys if key in steps]
    if keys and not present:
        raise DataError(f"the step key {keys[0]!r} is missing. {did_you_mean(keys[0], steps)}")
    texts: list[str] = [""] * len(range(num_steps)[kept])
    for key in present:
        array = steps[key]
        if len(array) != num_steps:
            raise DataError(f"{key!r} has {len(array)} steps, the other keys have {num_steps}")
        if not texts:
            break
        values = _rows(key, array[kept]) if codepoints else strings(key, array[kept])
        if values.count(values[0]) == len(values) and not any(texts):  # nearly every episode has a single text
            if text := _decode(key, values[0], codepoints):
                return (text,), np.zeros(len(texts), np.int32)
            continue
        decoded = {value: _decode(key, value, codepoints) for value in set(values)}
        texts = [old or decoded[value] for old, value in zip(texts, values, strict=True)]
        if all(texts):
            break
    distinct = tuple(dict.fromkeys(text for text in texts if text))
    place = {"": -1} | {text: i for i, text in enumerate(distinct)}
    return distinct, np.array([place[text] for text in texts], np.int32)


def draw_text(steps: Mapping[str, NDArray[Any]], keys: tuple[str, ...], name: str) -> dict[str, NDArray[Any]]:
    """Put one of several alternative instructions of an episode first, at random among those that have a text.

    Args:
        steps: flat step key -> array with time first.
        keys: keys with texts (not code points), all of them in `steps`.
        name: the episode's, by which the draw is made.

    Returns:
        The steps, in which the arrays of `keys` have changed places.
    """
    written = [key for key in keys if any(strings(key, steps[key]))]
    if len(written) < 2:
        return dict(steps)
    chosen = written[pick(name, len(written), "language")]
    order = [chosen, *(key for key in keys if key != chosen)]
    return {**steps, **{key: steps[other] for key, other in zip(keys, order, strict=True)}}


def strings(key: str, array: NDArray[Any]) -> list[Any]:
    """One text (bytes or str) per step of an array with texts: of several, the first that is not empty."""
    if array.dtype.kind not in "SUO":
        raise DataError(f"{key!r} holds {array.dtype} of shape {array.shape}, expected one text per step")
    values: list[Any] = array.tolist()
    if array.ndim == 1 and {bytes, str}.issuperset(map(type, values)):
        return values
    return [_first(key, value) for value in values]


def _first(key: str, value: Any) -> Any:
    if isinstance(value, bytes | str):
        return value
    if not isinstance(value, list | tuple | np.ndarray):
        raise DataError(f"{key!r} holds {type(value).__name__}, expected text")
    return next((text for text in (_first(key, item) for item in value) if text), "")


def _rows(key: str, array: NDArray[Any]) -> list[bytes]:
    if array.ndim != 2 or array.dtype.kind not in "iu":
        raise DataError(f"{key!r} holds {array.dtype} of shape {array.shape}, expected (steps, code points)")
    array = np.ascontiguousarray(array, np.int32)
    return [row.tobytes() for row in array]


def _decode(key: str, value: object, codepoints: bool) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, bytes):
        raise DataError(f"{key!r} holds {type(value).__name__}, expected text")
    if codepoints:
        return from_codepoints(np.frombuffer(value, np.int32))
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{key!r} holds text that is not UTF-8: {error}") from None


def from_codepoints(codes: NDArray[np.int32]) -> str:
    """Read one row of Unicode code points up to the first zero; an invalid one becomes U+FFFD, as in TensorFlow.

    >>> from_codepoints(np.array([104, 105, 0, 120], np.int32))
    'hi'
    """
    zeros = np.flatnonzero(codes == 0)
    codes = codes[: zeros[0]] if len(zeros) else codes
    valid = (codes >= 0) & (codes < 0x110000) & ~((codes >= 0xD800) & (codes < 0xE000))
    return "".join(map(chr, np.where(valid, codes, 0xFFFD).tolist()))
