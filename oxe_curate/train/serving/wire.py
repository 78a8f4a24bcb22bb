"""Arrays in JSON, as the package json-numpy writes them: {"__numpy__": base64, "dtype": "|u1", "shape": [2, 2]}.

It is what OpenVLA's deploy.py and its clients speak. Only numbers and truth values are read: no objects, no pickles.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

KEY = "__numpy__"


def dumps(value: Any) -> str:
    """JSON with arrays and numpy's numbers in it. Raises ValueError for NaN and infinities outside arrays."""
    return json.dumps(value, default=_encode, allow_nan=False, separators=(",", ":"))


def loads(text: str | bytes) -> Any:
    """Read JSON with arrays in it.

    Raises:
        ValueError: not JSON, or an array that is not what it says; the message is for the sender.
    """
    try:
        return json.loads(text, object_hook=_decode)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _encode(value: Any) -> dict[str, Any]:
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf":
        array = np.asarray(value)
        data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
        return {KEY: data, "dtype": array.dtype.str, "shape": list(array.shape)}
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _decode(entry: dict[str, Any]) -> Any:
    if KEY not in entry:
        return entry
    dtype, shape = _dtype(entry.get("dtype")), entry.get("shape")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"an array's shape must be a list of whole numbers, found {_short(shape)}")
    try:
        data = base64.b64decode(entry[KEY], validate=True)
    except (TypeError, binascii.Error, ValueError) as error:
        raise ValueError(f"an array's {KEY} is not base64: {error}") from None
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"an array of {dtype} and shape {shape} cannot have {len(data):,} bytes")
    array: NDArray[Any] = np.frombuffer(data, dtype).reshape(shape)
    return array if shape else array[()]


def _dtype(name: Any) -> np.dtype[Any]:
    try:
        dtype = np.dtype(name) if isinstance(name, str) else None
    except (TypeError, ValueError, SyntaxError):
        dtype = None
    if dtype is None or dtype.kind not in "biuf" or dtype.shape:
        raise ValueError(f"an array's dtype must be a number's, such as '|u1' or '<f4'; found {_short(name)}")
    return dtype


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
