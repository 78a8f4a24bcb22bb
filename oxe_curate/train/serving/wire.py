"""Arrays in JSON, in the format of the json-numpy package: {"__numpy__": base64, "dtype": "|u1", "shape": [2, 2]}.

OpenVLA's deploy.py and its clients use it. Only numbers and booleans are read: no objects, no pickles.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

_KEY = "__numpy__"


def dumps(value: Any) -> str:
    """Write JSON that may hold arrays and numpy scalars. Raises ValueError for NaN and infinity outside arrays."""
    return json.dumps(value, default=_encode, allow_nan=False, separators=(",", ":"))


def loads(text: str | bytes) -> Any:
    """Read JSON that may hold arrays.

    Raises:
        ValueError: not JSON, or a malformed array; the message is for the sender.
    """
    try:
        return json.loads(text, object_hook=_decode)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _encode(value: Any) -> dict[str, Any]:
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf":
        array = np.asarray(value)
        data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
        return {_KEY: data, "dtype": array.dtype.str, "shape": list(array.shape)}
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _decode(entry: dict[str, Any]) -> Any:
    if _KEY not in entry:
        return entry
    dtype, shape = _dtype(entry.get("dtype")), entry.get("shape")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"array shape: expected a list of integers, got {_short(shape)}")
    try:
        data = base64.b64decode(entry[_KEY], validate=True)
    except (TypeError, binascii.Error, ValueError) as error:
        raise ValueError(f"array data ({_KEY}) is not valid base64: {error}") from None
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"array data: {len(data):,} bytes do not match dtype {dtype} and shape {shape}")
    array: NDArray[Any] = np.frombuffer(data, dtype).reshape(shape)
    return array if shape else array[()]


def _dtype(name: Any) -> np.dtype[Any]:
    try:
        dtype = np.dtype(name) if isinstance(name, str) else None
    except (TypeError, ValueError, SyntaxError):
        dtype = None
    if dtype is None or dtype.kind not in "biuf" or dtype.shape:
        raise ValueError(f"array dtype: expected a numeric type such as '|u1' or '<f4', got {_short(name)}")
    return dtype


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
