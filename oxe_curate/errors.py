"""Errors that a user can mend.

CurateError                 exit code 2: the message says where, what is wrong, and what to do
├── ConfigError             a YAML file, an option, a name that nothing carries
├── DataError               a shard, a record or a features.json that is not what it should be
│   └── CorruptError        bytes that fail their length or checksum
├── StorageError            a path that is missing, not writable or full
└── WorkerError             a worker process died; exit code 1, since the command was right

Anything else that reaches the command line is an internal fault: exit code 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CurateError(Exception):
    """Base of the errors a user can mend; the message is the whole explanation."""

    exit_code = 2


class ConfigError(CurateError):
    """A configuration file, an option or a name is wrong."""


class DataError(CurateError):
    """Data on disk is not what its description says."""


class CorruptError(DataError):
    """Bytes are truncated or fail their checksum."""


class StorageError(CurateError):
    """A path cannot be read or written."""


class WorkerError(CurateError):
    """A worker process was killed, or a runner lost its work."""

    exit_code = 1


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a sentence for the end of an error: the closest of the known names, or all of them if few.

    >>> did_you_mean("bridge_orgi", ["bridge_orig", "kuka"])
    "Did you mean 'bridge_orig'?"
    """
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"Did you mean {close[0]!r}?"
    if not names:
        return "None are known."
    shown = ", ".join(names[:12]) + (f", … ({len(names)} in all)" if len(names) > 12 else "")
    return f"Known: {shown}."
