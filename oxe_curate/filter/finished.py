"""Which tasks of a filter run are finished: the index file is whole, and its source shard has not changed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from oxe_curate.errors import CorruptError, DataError, StorageError
from oxe_curate.filter.scanner import FilterTask
from oxe_curate.index.files import IndexFile
from oxe_curate.index.store import describe_file, verify_file
from oxe_curate.progress import Bar
from oxe_curate.rlds import tfrecord
from oxe_curate.rlds.shards import open_shard
from oxe_curate.storage import Folder

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


def look_at(tasks: Iterable[FilterTask]) -> Looks:
    """How the tasks' shards look now, by one listing of each data set's folder."""
    found: Looks = {}
    folders: dict[tuple[str, str], Looks] = {}
    for task in tasks:
        source, folder = task.dataset.source, task.dataset.path
        if (source.uri, folder) not in folders:
            folders[source.uri, folder] = {file.name: file.identity for file in source.list_files(folder)}
        found[task.name] = folders[source.uri, folder][task.shard.path]
    return found


def finished(
    tasks: Iterable[FilterTask],
    known: Mapping[str, IndexFile],
    before: Looks,
    now: Looks,
    sizes: Mapping[str, int],
    verify: bool,
    progress: bool,
) -> dict[str, IndexFile]:
    """Return the finished tasks: output -> its entry in files.json.

    A file that files.json lists counts by its size and fingerprint; other files (of a killed run) and, with `verify`,
    all files are read and compared with their hash. A source shard that looks as it did counts as unchanged; otherwise
    the framing of its records is compared.

    Args:
        tasks: all tasks of the run.
        known: files.json of an earlier run.
        before: the shards' looks at the earlier run.
        now: their looks now.
        sizes: path -> size, of all files in the index.
        verify: compare everything.
        progress: whether to show a progress bar.
    """
    candidates = [task for task in tasks if task.output in sizes]

    def entry(task: FilterTask) -> IndexFile | None:
        out, path = task.out, task.output
        found = known.get(path)
        try:
            if found is None or found.bytes != sizes[path]:
                found = describe_file(out, path, whole=True)
            elif verify:
                verify_file(out, path, found)
            if found.fingerprint != task.fingerprint:
                return None
            unchanged = found.shard.bytes == task.size and not verify and before.get(task.name) == now[task.name]
            if not unchanged and not is_same_shard(task, found, verify and not task.skip_corrupt):
                return None
        except (DataError, StorageError):
            return None
        return found

    total = sum(task.size for task in candidates)
    with ThreadPoolExecutor(16) as pool, Bar("check", total, enabled=progress and verify) as bar:
        found = {}
        for task, result in zip(candidates, pool.map(entry, candidates), strict=True):
            bar.add(task.size)
            if result is not None:
                found[task.output] = result
    return found


def is_same_shard(task: FilterTask, found: IndexFile, verify: bool = False) -> bool:
    """Whether a task's shard has the contents that an index file was made from.

    Args:
        task: names the shard.
        found: the index file.
        verify: compare every record's data with its checksum; otherwise only the framing of the records is read.
    """
    if found.shard.bytes != task.size:
        return False
    framing = tfrecord.Framing()
    try:
        with open_shard(task.dataset.source, task.shard.path) as shard:
            for offset, length in tfrecord.records(shard.buffer, shard.ensure, framing):
                if verify:
                    shard.ensure(offset, length + tfrecord.FOOTER)
                    tfrecord.check_data(shard.buffer, offset, length)
    except CorruptError:
        pass  # with --skip-corrupt, a shard is recorded up to where its records can be found
    return len(framing.crcs) == found.shard.records and framing.digest == found.shard.digest
