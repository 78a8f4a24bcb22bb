"""files.json: every index file, its checksums, and the source shard that it describes.

index.json names the SHA-256 of files.json, files.json that of each index file's footer, and the footer that of
everything before it; pages have checksums of their own. So an index whose files were lost, swapped or damaged is
noticed by whatever reads it, without reading every byte.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from oxe_curate import config
from oxe_curate.errors import ConfigError, DataError
from oxe_curate.index.index_json import FORMAT, Summary
from oxe_curate.storage import Folder

FILES_JSON = "files.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceShard:
    """What identifies a source shard by its contents, wherever it is stored.

    Attributes:
        path: relative to the root of the data sets.
        bytes: its size. records: how many it has.
        digest: of the framing of all records (see `rlds.tfrecord.Framing`).
    """

    path: str
    bytes: int
    records: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexFile:
    """One index file.

    Attributes:
        rows: episodes. bytes: its size.
        footer_sha256: of the footer (see `index.store.read_footer`).
        fingerprint: hash of the options that determine its contents.
        values_at: numeric column -> byte offset of its first value, where values can be read by byte range.
    """

    rows: int
    bytes: int
    footer_sha256: str
    fingerprint: str
    shard: SourceShard
    summary: Summary
    values_at: dict[str, int] = field(default_factory=dict)


def read_files(folder: Folder, sha256: str | None = None) -> dict[str, IndexFile]:
    """Read files.json: path of an index file -> what it is.

    Args:
        folder: the index.
        sha256: of the file, from index.json; None: not compared.

    Raises:
        DataError: the file is missing, damaged, or belongs to another index.json.
    """
    where = f"{folder}/{FILES_JSON}"
    if not folder.exists(FILES_JSON):
        raise DataError(f"{where}: file not found; {_ADVICE}")
    data = folder.read_bytes(FILES_JSON)
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise DataError(f"{where}: damaged, or of another index (its hash differs from index.json); {_ADVICE}")
    try:
        found = json.loads(data)
        if found["format"] != FORMAT:
            raise DataError(f"{where}: format {found['format']!r} is not supported (expected {FORMAT}); {_ADVICE}")
        return {path: _entry(entry, f"{where}: {path}") for path, entry in found["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ConfigError) as error:
        raise DataError(f"{where}: damaged ({str(error)[:200]}); {_ADVICE}") from None


_ADVICE = "run the same `oxe-curate filter` again (finished files are kept)"


def _entry(data: Any, where: str) -> IndexFile:
    summary = config.build(Summary, data["summary"], where)
    shard = config.build(SourceShard, data["shard"], where)
    if shard.path.startswith("/") or ".." in shard.path.split("/"):
        raise ValueError(f"{where}: expected a path below the source, got {shard.path!r}")
    rest = {key: value for key, value in data.items() if key not in ("summary", "shard")}
    return IndexFile(**rest, summary=summary, shard=shard)


def write_files(folder: Folder, files: Mapping[str, IndexFile]) -> str:
    """Publish files.json; return its SHA-256."""
    entries = {path: asdict(files[path]) for path in sorted(files)}
    data = (json.dumps({"format": FORMAT, "files": entries}, indent=1) + "\n").encode()
    folder.publish_bytes(FILES_JSON, data)
    return hashlib.sha256(data).hexdigest()
