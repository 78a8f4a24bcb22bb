"""Refuse an output folder that belongs to something else, before anything is written.

A folder is recognised by the file that each command writes last, so a folder that a killed command left is recognised
by the names of the files in it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from oxe_curate.atomic import LOCK, is_internal
from oxe_curate.errors import ConfigError
from oxe_curate.lock import lock_folder
from oxe_curate.storage import Folder

OutputKind = Literal["index", "mixture", "run", "export", "evaluation", "demo"]

_NAMES: dict[str, str] = {
    "index": "an episode index",
    "mixture": "a mixture",
    "run": "a training run",
    "export": "an exported model",
    "model": "a model checkpoint",
    "evaluation": "an evaluation",
    "demo": "a demo",
    "data set": "a source data set",
}
_MARKERS = {
    "index.json": "index",
    "unfinished.json": "index",
    "manifest.json": "mixture",
    "run.json": "run",
    "oxe_curate.json": "export",
    "evaluation.json": "evaluation",
    ".written": "demo",
}
_DATASET = ("dataset_info.json", "features.json")
_UNFINISHED: dict[str, tuple[str, ...]] = {
    "index": ("*/*/*.parquet", "*/*/*/*.parquet", "files.json", "sources.json"),
    "mixture": (
        "train-*-of-*.parquet", "validation-*-of-*.parquet", "text-*-of-*.parquet", "dataset_statistics.json",
        "action_tokens.parquet", "mixture.yaml", "sources.parquet",
    ),
    "run": ("dataset_statistics.json", "action_tokens.parquet", "mixture.yaml", "config.yaml"),
    "evaluation": ("predictions.parquet", "index.html", "checkpoint-*/*"),
    "demo": ("rlds/*", "index/*", "mixture/*", "demo.yaml"),
}  # fmt: skip
"""What a killed command leaves where its marker comes last; the other kinds have a marker from the start, or none."""
_IGNORED = (".failed", ".job", ".DS_Store")
_SUBFOLDERS = 8
"""In an object store, how many folders of each level are looked into for a data set."""


def claim_output(out: str | Path, kind: OutputKind, inputs: Mapping[str, str | Path]) -> None:
    """Check that a command may write into a folder; writes nothing itself.

    The folder may be missing, empty, or hold earlier (also unfinished) output of the same kind, except for "export",
    which needs a new or empty folder.

    Args:
        out: local folder or object-store prefix, with or without content.
        kind: what the command is about to write there.
        inputs: what the command reads: name for the message ("base model", "mixture") -> file or folder.

    Raises:
        ConfigError: `out` is a file; is an input, is inside one or contains one; or holds something of another kind.
        StorageError: the object store cannot be read.
    """
    folder, option = Folder.of(out), "--run" if kind == "run" else "--out"
    where = f"{option} {folder}"
    if folder.is_local and folder.path().exists() and not folder.path().is_dir():
        raise ConfigError(f"{where}: is a file, expected a folder")
    for name, path in inputs.items():
        relation = _relation(folder, Folder.of(path))
        if relation:
            raise ConfigError(f"{where}: {relation} the {name} ({path}). Choose another folder.")
    entries = _entries(folder)
    found = {_MARKERS[name] for name in entries if name in _MARKERS}
    if "config.json" in entries and any(name.endswith(".safetensors") for name in entries):
        found |= {"model"} - {kind}
    others = sorted(found - {kind})
    if not others and kind != "demo" and kind not in found and _is_dataset(folder, entries):
        others = ["data set"]
    if others:
        raise ConfigError(f"{where}: holds {_NAMES[others[0]]}. Choose another folder.")
    if kind == "export" and any(not _ignored(name) for name in entries):
        raise ConfigError(f"{where}: is not empty. Choose another folder, or remove it.")
    if kind not in found and not _unfinished(folder, entries, _UNFINISHED.get(kind, ())):
        raise ConfigError(f"{where}: is not empty and does not hold {_NAMES[kind]}. Choose another folder.")


@contextmanager
def hold_output(out: str | Path, kind: OutputKind) -> Iterator[None]:
    """Keep other commands from writing into a folder until the block ends, and check its contents once more.

    The lock is `.oxe-lock` in the folder; of an export, which appears as a whole, `.oxe-lock-<name>` next to it.

    Args:
        out: as for `claim_output`, which comes first.
        kind: what is written there.

    Raises:
        ConfigError: another process is writing there; or did between `claim_output` and now.
        StorageError: the folder cannot be written.
    """
    folder, name = Folder.of(out), LOCK
    where = f"{'--run' if kind == 'run' else '--out'} {folder}"
    if kind == "export" and folder.is_local:
        digest = hashlib.blake2b(os.fsencode(folder.path().name), digest_size=4).hexdigest()
        name = f"{LOCK}-{folder.path().name[:40]}-{digest}"
        folder = Folder.of(folder.path().parent)
    with lock_folder(folder, name, where, "training" if kind == "run" else "writing"):
        claim_output(out, kind, {})
        yield


def _relation(out: Folder, other: Folder) -> str | None:
    """The relation of `out` to an input: "is", "is inside", "contains", or None."""
    one, two = _parts(out), _parts(other)
    if one == two:
        return "is"
    if one[: len(two)] == two:
        return "is inside"
    return "contains" if two[: len(one)] == one else None


def _parts(folder: Folder) -> tuple[str, ...]:
    """Path components, with symbolic links followed."""
    return Path(os.path.realpath(folder.path())).parts if folder.is_local else tuple(folder.uri.split("/"))


def _entries(folder: Folder) -> dict[str, bool]:
    """Name -> whether it is a folder, for everything directly in a folder; empty if it is missing."""
    if folder.is_local:
        path = folder.path()
        return {entry.name: entry.is_dir() for entry in path.iterdir()} if path.is_dir() else {}
    return {name: is_folder for name, is_folder, _ in folder.list()}


def _ignored(name: str) -> bool:
    return is_internal(name) or name in _IGNORED


def _is_dataset(folder: Folder, entries: Mapping[str, bool], depth: int = 2) -> bool:
    """Whether a TFDS description is in the folder (a version), one level down (a data set) or two (a source)."""
    if any(name in entries for name in _DATASET):
        return True
    below = [name for name, is_folder in entries.items() if is_folder and not _ignored(name)]
    if depth == 0:
        return False
    below = below if folder.is_local else below[:_SUBFOLDERS]
    return any(_is_dataset(folder.sub(name), _entries(folder.sub(name)), depth - 1) for name in below)


def _unfinished(folder: Folder, entries: Mapping[str, bool], patterns: tuple[str, ...], prefix: str = "") -> bool:
    """Whether every file matches one of the patterns, part by part; a final "*" matches anything below."""
    for name, is_folder in entries.items():
        if _ignored(name):
            continue
        path = prefix + name
        depth = path.count("/") + 1
        fitting = [
            pattern
            for pattern in patterns
            if all(map(fnmatchcase, path.split("/"), pattern.split("/")[:depth])) and pattern.count("/") + 1 >= depth
        ]
        if is_folder and any(pattern.count("/") == depth and pattern.endswith("/*") for pattern in fitting):
            continue
        if is_folder:
            inside = [pattern for pattern in fitting if pattern.count("/") >= depth]
            below = folder.sub(name)
            if not inside or not _unfinished(below, _entries(below), tuple(inside), f"{path}/"):
                return False
        elif not any(pattern.count("/") + 1 == depth for pattern in fitting):
            return False
    return True
