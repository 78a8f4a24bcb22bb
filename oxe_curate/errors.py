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
from collections.abc import Iterable


class CurateError(Exception):
    """Base class of errors that a user can fix; the message says where, what is wrong and what to do."""

    exit_code = 2


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


def closest(name: str, known: Iterable[str]) -> str:
    """Return "Did you mean 'x'?" with the closest known name, or "" if none is close."""
    close = difflib.get_close_matches(name, sorted(set(known)), n=1, cutoff=0.6)
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
    shown = ", ".join(names[:12]) + (f", … ({len(names)} in all)" if len(names) > 12 else "")
    return f"Known: {shown}."
