"""JSON files with a checksum of their own contents, so that damage and edits are noticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

from oxe_curate.errors import DataError

CHECKSUM = "checksum"


def seal(data: Mapping[str, Any], open_keys: Collection[str] = ()) -> dict[str, Any]:
    """Return `data` with its checksum as the last key.

    Args:
        data: what will be written as JSON.
        open_keys: keys, at any depth, that may be edited later without breaking the seal.
    """
    return {**data, CHECKSUM: _checksum(data, open_keys)}


def check_seal(data: Mapping[str, Any], where: str, open_keys: Collection[str] = ()) -> None:
    """Compare a JSON object that was read with its checksum; one without a checksum passes.

    Raises:
        DataError: they differ.
    """
    recorded = data.get(CHECKSUM)
    if recorded is not None and recorded != _checksum(data, open_keys):
        raise DataError(f"{where}: changed or damaged after it was written (its checksum does not match)")


def _checksum(data: Mapping[str, Any], open_keys: Collection[str]) -> str:
    def closed(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: closed(inner) for key, inner in value.items() if key not in open_keys}
        return [closed(inner) for inner in value] if isinstance(value, list | tuple) else value

    rest = {key: value for key, value in data.items() if key != CHECKSUM}
    return hashlib.sha256(json.dumps(closed(rest), sort_keys=True).encode()).hexdigest()
