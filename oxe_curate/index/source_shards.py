"""Whether source shards are still those that were read: by one listing of each folder, or by their records' framing."""

from __future__ import annotations

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from oxe_curate.errors import CorruptError, StorageError
from oxe_curate.index.files import SourceShard
from oxe_curate.rlds import tfrecord
from oxe_curate.rlds.shards import open_shard
from oxe_curate.storage import Folder, StoredFile

_THREADS = 8  # folders that are listed at once

SOURCES_JSON = "sources.json"
"""What each source shard looked like when it was read. Only a cache: where a shard looks different, or the file is
missing, its contents are compared."""

Looks = dict[str, str]
"""Source shard ("root/path") -> its identity in a listing, which changes when the file is replaced."""


def read_looks(out: Folder) -> Looks:
    """Read sources.json; empty if it is missing or damaged."""
    try:
        found = json.loads(out.read_bytes(SOURCES_JSON))["sources"]
        return {path: look for path, look in found.items() if isinstance(look, str)}
    except (StorageError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def write_looks(out: Folder, looks: Looks) -> None:
    """Publish sources.json."""
    data = {"sources": {path: looks[path] for path in sorted(looks)}}
    out.publish_bytes(SOURCES_JSON, (json.dumps(data, indent=0) + "\n").encode(), sync=False)


def list_shards(folders: Iterable[tuple[Folder, str]]) -> dict[str, StoredFile]:
    """All files of some folders as they are now ("root/path" -> file), by one listing of each folder.

    Args:
        folders: (root, folder below it); a folder that does not exist has no files.
    """
    folders = list(dict.fromkeys(folders))
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda place: place[0].list_files(place[1]), folders)
        return {f"{root}/{file.name}": file for (root, _), files in zip(folders, found, strict=True) for file in files}


def matches_shard(root: Folder, path: str, shard: SourceShard, verify: bool = False) -> bool:
    """Whether a shard, whose size is right, has the records that an index file was made from.

    Args:
        root: of the data sets.
        path: of the shard.
        shard: what the index says of it.
        verify: compare every record's data with its checksum; otherwise only the framing of the records is read.

    Raises:
        CorruptError: with `verify`, the data of a record fails its checksum. StorageError: the shard cannot be read.
    """
    framing = tfrecord.Framing()
    try:
        with open_shard(root, path) as opened:
            opened.expect(shard.records)
            for offset, length in tfrecord.records(opened.buffer, opened.ensure, framing):
                if verify:
                    opened.ensure(offset, length + tfrecord.FOOTER)
                    tfrecord.check_data(opened.buffer, offset, length)
    except CorruptError:
        pass  # with --skip-corrupt, a shard is recorded up to where its records can be found
    return len(framing.crcs) == shard.records and framing.digest == shard.digest
