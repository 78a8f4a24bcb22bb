"""Whether a person watches."""

from __future__ import annotations

import sys


def stderr_is_terminal() -> bool:
    """Whether standard error is a terminal, so that a progress bar is shown."""
    return sys.stderr.isatty()
