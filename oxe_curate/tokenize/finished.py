"""Which output shards an earlier run finished: a shard counts only if its bytes are those that were written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from oxe_curate.errors import DataError
from oxe_curate.storage import Folder
from oxe_curate.tokenize import shards
from oxe_curate.tokenize.checksum import FileHashes, hash_file
from oxe_curate.tokenize.fingerprints import ShardTask

_THREADS = 8


@dataclass
class Finished:
    """What is in the output folder.

    Attributes:
        hashes: finished shard -> its hashes.
        damaged: shards of this mixture that must be written again; those that cannot be read may be of another one.
    """

    hashes: dict[str, FileHashes] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)


def find_finished(out: Folder, tasks: Sequence[ShardTask], recorded: Mapping[str, Any], verify: bool) -> Finished:
    """Check the shards of these tasks that exist.

    Local shards are read whole: their own checksum and, if the manifest lists them, their hash must match. In an object
    store, whose files appear complete, that is done if `verify`; else the sizes of shards that the manifest lists are
    compared, in one listing, and the footers of others are read.

    Args:
        out: the mixture's folder.
        tasks: all tasks of the mixture.
        recorded: the outputs of an earlier manifest of this mixture, if there is one.
        verify: read every byte, also in an object store.
    """
    present = {name: size for name, is_folder, size in out.list() if not is_folder}
    existing = [task for task in tasks if task.output in present]
    found = Finished()

    def check(task: ShardTask) -> FileHashes | None:
        entry = recorded.get(task.output)
        if entry is not None and not verify and not out.is_local:
            listed = FileHashes(present[task.output], entry.get("footer_sha256", ""), entry.get("sha256", ""))
            if listed.size != entry["bytes"]:
                raise DataError("has another size than in the manifest")
            return listed
        if shards.read_shard_meta(out, task.output).get("fingerprint") != task.fingerprint and entry is None:
            return None  # a shard of another mixture
        hashes = hash_file(out, task.output, whole=verify or out.is_local)
        if entry is not None and not _same(hashes, entry):
            raise DataError("differs from its hash in the manifest")
        return hashes

    with ThreadPoolExecutor(_THREADS) as pool:  # hashing and waiting release the GIL
        for task, result in zip(existing, [pool.submit(check, task) for task in existing], strict=True):
            try:
                hashes = result.result()
            except DataError:
                found.damaged.append(task.output)
            else:
                if hashes is not None:
                    found.hashes[task.output] = hashes
    return found


def _same(hashes: FileHashes, entry: Any) -> bool:
    pairs = (hashes.size, "bytes"), (hashes.footer_sha256, "footer_sha256"), (hashes.sha256, "sha256")
    return all(not value or entry.get(key) in (None, value) for value, key in pairs)
