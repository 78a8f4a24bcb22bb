"""How requests to an object store are made: retries, time limit, how many at once."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields

from oxe_curate.errors import ConfigError

_PREFIX = "OXE_CURATE_STORE_"


@dataclass(frozen=True)
class StoreOptions:
    """Options of requests to gs:// and s3://; local files do not use them.

    They are kept in the environment (OXE_CURATE_STORE_RETRIES and so on), so that worker processes inherit them; on
    other machines `apply` sets them from a pickled copy.

    Attributes:
        retries: how often a request is repeated after a failure that may pass.
        timeout: seconds after which a request counts as failed.
        requests: requests in flight per worker process.
    """

    retries: int = 5
    timeout: float = 30.0
    requests: int = 32

    @classmethod
    def current(cls) -> StoreOptions:
        """The options of this process. Raises ConfigError if a variable of the environment is not a valid number."""
        values: dict[str, float] = {}
        for field in fields(cls):
            name = _PREFIX + field.name.upper()
            text = os.environ.get(name)
            if text is None:
                continue
            kind, least = (float, 0.1) if field.name == "timeout" else (int, 0 if field.name == "retries" else 1)
            try:
                values[field.name] = kind(text)
            except ValueError:
                raise ConfigError(f"{name}: expected a number, got {text[:40]!r}") from None
            if not least <= values[field.name] <= 86400:
                raise ConfigError(f"{name}: expected a number from {least} to 86400, got {text[:40]}")
        return cls(**values)  # type: ignore[arg-type]

    def apply(self) -> None:
        """Make these the options of this process and of those that it starts. Safe to repeat."""
        for field in fields(self):
            os.environ[_PREFIX + field.name.upper()] = str(getattr(self, field.name))
