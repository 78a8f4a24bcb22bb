"""Errors that a user can fix.

CurateError                 exit code 2: the message says where, what is wrong, and what to do
├── ConfigError             a YAML file, an option or a name is wrong
├── DataError               a shard, a record or a features.json is not as described
│   └── CorruptError        truncated bytes, or a checksum that does not match
├── StorageError            a path is missing or not writable, or the disk is full
└── WorkerError             a worker process died; exit code 1, since the command itself is valid

Any other exception that reaches the command line is an internal error: exit code 1.
"""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterable
from typing import Any

_MAX_LINE, _MAX_LINES = 2000, 40
_MAX_NAME, _MAX_KNOWN = 120, 2000
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""Characters that would change the terminal's state or the order of the text, or that cannot be encoded."""


class CurateError(Exception):
    """Base class of errors that a user can fix; the message says where, what is wrong and what to do.

    The message may quote a damaged file, so its text is bounded: control characters are escaped, and long lines and
    long lists of lines are cut.
    """

    exit_code = 2

    def __str__(self) -> str:
        return bounded(super().__str__())


class ConfigError(CurateError):
    """A configuration file, an option or a name is wrong."""


class DataError(CurateError):
    """Data on disk does not match its description."""


class CorruptError(DataError):
    """Data is truncated or fails its checksum."""


class StorageError(CurateError):
    """A path cannot be read or written."""


class WorkerError(CurateError):
    """A worker process was killed, or a Beam runner lost work."""

    exit_code = 1


def bounded(text: str) -> str:
    """Cut a message to 40 lines of 2,000 characters, and escape its control characters."""
    lines = text.split("\n", _MAX_LINES)
    if len(lines) > _MAX_LINES:
        lines[-1] = f"… ({lines[-1].count(chr(10)) + 1:,} more lines)"
    return "\n".join(
        _UNSAFE.sub(_escape, line)
        if len(line) <= _MAX_LINE
        else f"{_UNSAFE.sub(_escape, line[:_MAX_LINE])}… ({len(line) - _MAX_LINE:,} more characters)"
        for line in lines
    )


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")


def quoted(value: Any, limit: int = 80) -> str:
    """A value from a file for an error message: its repr, cut to `limit` characters, with its size if it is cut.

    >>> quoted("bridge")
    "'bridge'"
    >>> quoted("x" * 1000, limit=4)
    "'xxxx…' (1,000 characters)"
    """
    if isinstance(value, str | bytes):
        if len(value) <= limit:
            return repr(value)
        shown, unit = repr(value[:limit]), "bytes" if isinstance(value, bytes) else "characters"
        return f"{shown[:-1]}…{shown[-1]} ({len(value):,} {unit})"
    if isinstance(value, int) and value.bit_length() > 256:  # Python refuses to print more than 4,300 digits
        return f"a number of about {value.bit_length() * 3 // 10:,} digits"
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 2, limit // 2, limit // 2
    short.maxdict = short.maxlist = short.maxtuple = short.maxset = short.maxfrozenset = 4
    short.maxlong = 80
    try:
        text = short.repr(value)
    except ValueError:  # a long number inside
        return f"a {type(value).__name__}"
    return text if len(text) <= 2 * limit else f"{text[: 2 * limit]}…"


def closest(name: str, known: Iterable[str]) -> str:
    """Return "Did you mean 'x'?" with the closest known name, or "" if none is close.

    Long names and long lists get no suggestion: the comparison takes quadratic time.
    """
    names = {other for other in known if len(other) <= _MAX_NAME} if len(name) <= _MAX_NAME else set()
    if not names or len(names) > _MAX_KNOWN:
        return ""
    close = difflib.get_close_matches(name, sorted(names), n=1, cutoff=0.6)
    return f"Did you mean {close[0]!r}?" if close else ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a sentence for the end of an error message: the closest known name, or the list of known names.

    >>> did_you_mean("bridge_orgi", ["bridge_orig", "kuka"])
    "Did you mean 'bridge_orig'?"
    """
    names = sorted(set(known))
    if suggestion := closest(name, names):
        return suggestion
    if not names:
        return "There are none."
    shown = ", ".join(cut(name) for name in names[:12]) + (f", … ({len(names)} in all)" if len(names) > 12 else "")
    return f"Known: {shown}."


def cut(name: str, limit: int = _MAX_NAME) -> str:
    """A name, cut to `limit` characters."""
    return name if len(name) <= limit else f"{name[:limit]}…"
