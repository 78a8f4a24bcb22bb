"""Files that users and other programs wrote, read with limits: kind of file, size, encoding, nesting, numbers."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from oxe_curate.errors import ConfigError, CurateError, quoted

_MAX_DIGITS = 300
"""Digits of an integer: it fits into a float. Python refuses to read or print more than 4,300."""
_REASONS = {
    "FileNotFoundError": "file not found. Check the path",
    "PermissionError": "permission denied. Change the file's mode, or run as a user who may read it",
    "IsADirectoryError": "is a folder, not a file",
    "NotADirectoryError": "a parent of the path is a file, not a folder",
}


def read_input(path: str | Path, limit: int, what: str = "file", error: type[CurateError] = ConfigError) -> bytes:
    """Read a local file that must be a regular file of at most `limit` bytes.

    A pipe or a device is refused without waiting for it.

    Args:
        path: the file.
        limit: in bytes.
        what: what the file should be, for the message about its size.
        error: the class of the exception.

    Raises:
        CurateError: of class `error`: no such file, no permission, not a regular file, or too large.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb") as file:  # noqa: PTH123 (a handle, not a path)
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, a socket or a device"
                raise error(f"{path}: expected a regular file, got {kind}")
            data = file.read(limit + 1)
    except ValueError as problem:  # a NUL in the path
        raise error(f"{quoted(str(path))}: not a path: {problem}") from None
    except OSError as problem:
        reason = _REASONS.get(type(problem).__name__) or f"cannot read: {problem.strerror or problem}"
        raise error(f"{path}: {reason}") from None
    if len(data) > limit:
        size = f"{status.st_size:,} bytes" if status.st_size > limit else "more"
        raise error(f"{path}: expected a {what} of at most {limit:,} bytes, got {size}")
    return data


def decode_text(data: bytes, where: str, error: type[CurateError] = ConfigError) -> str:
    """Decode UTF-8, with or without a byte order mark.

    Raises:
        CurateError: of class `error`: not UTF-8; the message has the line.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise error(f"{where}: the file is UTF-16; save it as UTF-8") from None
        line = data.count(b"\n", 0, problem.start) + 1
        raise error(f"{where}:{line}: not UTF-8 ({problem.reason} at byte {problem.start}); save it as UTF-8") from None


def parse_json(
    text: str | bytes, where: str, error: type[CurateError] = ConfigError, *, constants: bool = False
) -> Any:
    """Parse JSON; error messages start with `where`.

    Refused, although Python's parser accepts them: a key that occurs twice in an object, NaN and Infinity (unless
    `constants`), numbers that float64 cannot hold, integers of more than 300 digits, and halves of surrogate pairs.

    Raises:
        CurateError: of class `error`.
    """
    if isinstance(text, bytes):
        text = decode_text(text, where, error)
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_number,
            parse_constant=None if constants else _constant,
        )
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as problem:
        raise error(f"{where}:{problem.lineno}: not valid JSON: {problem.msg}") from None
    except RecursionError:
        raise error(f"{where}: not valid JSON: nested too deeply") from None
    except UnicodeEncodeError:
        raise error(f"{where}: not valid JSON: half of a surrogate pair") from None
    except ValueError as problem:
        raise error(f"{where}: not valid JSON: {problem}") from None
    return value


def load_json(
    path: str | Path, limit: int = 64 << 20, error: type[CurateError] = ConfigError, *, constants: bool = False
) -> Any:
    """Read a JSON file of at most `limit` bytes. Raises as `read_input` and `parse_json` do."""
    return parse_json(read_input(path, limit, "JSON file", error), str(path), error, constants=constants)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        double = next(key for key in found if keys.count(key) > 1)
        raise ValueError(f"duplicate key {quoted(double)}")
    return found


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(text):,} digits")
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"the number {quoted(text)[1:-1]} is too large for float64")
    return value


def _constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")
