"""What a run finds in the output folder: the finished shards of this mixture, or another mixture."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from oxe_curate.actions.action_tokens import ActionTokens
from oxe_curate.errors import ConfigError, DataError, StorageError
from oxe_curate.storage import Folder
from oxe_curate.tokenize.fingerprints import ShardTask, plan_id
from oxe_curate.tokenize.finished import Finished, find_finished
from oxe_curate.tokenize.folder import read_manifest
from oxe_curate.tokenize.manifest import MANIFEST, RESOLVED, STATISTICS, TOKENS
from oxe_curate.tokenize.sources import SOURCES

_SHARD_NAME = re.compile(r"(train|validation|text)-\d{5}-of-\d{5}\.parquet")


@dataclass(frozen=True)
class Resumed:
    """What a run can keep.

    Attributes:
        todo: names of the shards to write, in the order of the tasks.
        found: the others, and the damaged ones.
        manifest: of an earlier run with the same plan; empty if there is none.
        complete: whether this manifest describes all that is there, so that nothing is left to do.
    """

    todo: list[str]
    found: Finished
    manifest: dict[str, Any]
    complete: bool


def resume(out: Folder, planned: Sequence[ShardTask], tokens: ActionTokens, overwrite: bool, verify: bool) -> Resumed:
    """Find what an earlier run finished; remove the shards of another mixture, if it is unfinished or given up.

    Args:
        out: the output folder.
        planned: a task for every shard of the mixture.
        tokens: its action tokens.
        overwrite: give up another finished mixture, or its action tokens.
        verify: read every byte of finished shards in an object store; local ones always are.

    Raises:
        ConfigError: `out` contains another finished mixture, or this one with other action tokens.
    """
    manifest = _recorded(out, plan_id(planned))
    recorded = manifest.get("outputs", {})
    found = find_finished(out, planned, recorded, verify)
    ours = {*found.hashes, *(found.damaged if recorded else ())}
    _check_out(out, {task.output for task in planned}, ours, tokens, overwrite)
    todo = [task.output for task in planned if task.output not in found.hashes]
    # in an object store, this takes a request per shard less
    complete = bool(recorded) and not todo and not out.is_local and not verify and _same_files(out, recorded, tokens)
    return Resumed(todo, found, manifest, complete)


def _recorded(out: Folder, plan: str) -> dict[str, Any]:
    """The manifest of an earlier run with the same plan; empty if there is none."""
    try:
        manifest = read_manifest(out) if out.exists(MANIFEST) else {}
    except DataError:
        return {}
    return manifest if manifest.get("plan") == plan else {}


def _same_files(out: Folder, recorded: dict[str, Any], tokens: ActionTokens) -> bool:
    """Whether the files besides the shards are those of the manifest, with these action tokens."""
    try:
        same = all(
            hashlib.sha256(out.read_bytes(name)).hexdigest() == recorded[name]["sha256"]
            for name in (STATISTICS, RESOLVED, TOKENS, *([SOURCES] if SOURCES in recorded else []))
        )
    except (KeyError, StorageError):
        return False
    return same and not _other_tokens(out, tokens)


def _check_out(out: Folder, planned: set[str], done: set[str], tokens: ActionTokens, overwrite: bool) -> None:
    """Remove the shards of another mixture that is unfinished or that `overwrite` gives up.

    Raises:
        ConfigError: `out` contains another finished mixture, or this one with other action tokens.
    """
    finished = out.exists(MANIFEST) and not overwrite
    present = [name for name, folder, _ in out.list() if not folder and _SHARD_NAME.fullmatch(name)]
    if done >= set(present):
        if finished and _other_tokens(out, tokens):
            raise ConfigError(
                f"{out}: this mixture is finished with other action tokens (another --tokenizer, --rule or --corpus). "
                f"Use --overwrite to replace {TOKENS}; finished shards are kept."
            )
        return
    if finished:
        raise ConfigError(f"{out}: contains another finished mixture. Use another --out, or --overwrite to replace it.")
    out.remove(MANIFEST)
    out.remove(SOURCES)
    for name in present:
        if name not in planned:
            out.remove(name)


def _other_tokens(out: Folder, tokens: ActionTokens) -> bool:
    """Whether the table in `out` is another one than `tokens`; False if it is missing or damaged."""
    try:
        return not ActionTokens.read(f"{out}/{TOKENS}").to_table().equals(tokens.to_table(), check_metadata=True)
    except (DataError, StorageError):
        return False
