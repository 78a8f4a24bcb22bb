"""Which tasks of a filter run are finished: the index file is whole, and its source shard has not changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from oxe_curate.errors import DataError, StorageError
from oxe_curate.filter.scanner import FilterTask
from oxe_curate.index.files import IndexFile
from oxe_curate.index.source_shards import Looks, list_shards, matches_shard
from oxe_curate.index.store import describe_file, verify_file
from oxe_curate.progress import Bar


def look_at(tasks: Iterable[FilterTask]) -> Looks:
    """How the tasks' shards look now, by one listing of each data set's folder."""
    tasks = list(tasks)
    found = list_shards((task.dataset.source, task.dataset.path) for task in tasks)
    return {task.name: found[task.name].identity for task in tasks}


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
    return found.shard.bytes == task.size and matches_shard(task.dataset.source, task.shard.path, found.shard, verify)
