"""A file of the steps to keep of each episode, in the format of openpi's `droid_sample_ranges` files.

    {"<recording_folderpath>--<file_path>": [[0, 120], [150, 200]], ...}

keeps steps 0 to 119 and 150 to 199 of that episode, counted in the source; of an episode that is not listed, none.
The two parts of the key are DROID's metadata.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oxe_curate.errors import ConfigError, DataError, quoted
from oxe_curate.rlds import tfrecord
from oxe_curate.rlds.dataset import RldsDataset, Shard
from oxe_curate.rlds.leaf import Leaf
from oxe_curate.rlds.reader import RecordReader
from oxe_curate.rlds.shards import open_shard
from oxe_curate.storage import Folder

FIELDS = ("episode_metadata/recording_folderpath", "episode_metadata/file_path")
"""Metadata that identifies an episode."""
_PEEKED = 64
"""Episodes that are compared with the file before any work is done."""


@dataclass(frozen=True, slots=True)
class KeepRanges:
    """The contents of such a file.

    Attributes:
        ranges: episode key -> (start, stop) of the steps to keep.
        sha256: of the file.
    """

    ranges: Mapping[str, tuple[tuple[int, int], ...]]
    sha256: str

    def mask(self, key: str, num_steps: int) -> NDArray[np.bool_]:
        """Which of an episode's source steps are kept, bool (T,).

        >>> KeepRanges({"a--b": ((0, 1), (3, 9))}, "").mask("a--b", 5).tolist()
        [True, False, False, True, True]
        """
        keep = np.zeros(num_steps, bool)
        for start, stop in self.ranges.get(key, ()):
            keep[start:stop] = True
        return keep


def read_keep_ranges(path: str) -> KeepRanges:
    """Read a file, which may be in an object store; it is held until it changes.

    Raises:
        ConfigError: it is not such a file. StorageError: it cannot be read.
    """
    parent, _, name = path.rpartition("/")
    folder = Folder.of(parent or "/")
    return _read(path, folder, name, folder.identity(name))


@functools.lru_cache(maxsize=2)
def _read(path: str, folder: Folder, name: str, identity: str) -> KeepRanges:
    data = folder.read_bytes(name)
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: keep_ranges: not JSON: {error}") from None
    expected = 'expected {"<recording_folderpath>--<file_path>": [[start, stop], ...], ...}'
    if not isinstance(found, dict) or not found:
        raise ConfigError(f"{path}: keep_ranges: {expected}, got {quoted(found)}")
    ranges = {}
    for key, value in found.items():
        if not isinstance(value, list) or not all(_is_range(part) for part in value):
            raise ConfigError(
                f"{path}: keep_ranges: {quoted(key)}: expected steps [[start, stop], ...], got {quoted(value)}"
            )
        ranges[key] = tuple((start, stop) for start, stop in value)
    return KeepRanges(ranges, hashlib.sha256(data).hexdigest())


def _is_range(part: Any) -> bool:
    whole = isinstance(part, list) and len(part) == 2 and all(type(number) is int for number in part)
    return whole and 0 <= part[0] <= part[1]


def identifies_episodes(other: Mapping[str, Leaf]) -> bool:
    """Whether a data set has the metadata by which episodes are found in the file."""
    return all(field in other and other[field].kind == "text" for field in FIELDS)


def episode_key(metadata: Mapping[str, Any]) -> str:
    """The key of an episode in the file. Raises DataError if the metadata are missing."""
    parts = [metadata.get(field) for field in FIELDS]
    if not all(isinstance(part, bytes) for part in parts):
        raise DataError(f"its metadata {' or '.join(FIELDS)} is missing, so keep_ranges cannot be applied")
    return "--".join(part.decode(errors="replace") for part in parts if part is not None)


def check_keys(path: str, dataset: RldsDataset, shard: Shard) -> None:
    """Raise ConfigError if none of the first episodes of a shard is in the file."""
    known = read_keep_ranges(path)
    reader = RecordReader(dataset.features, (), metadata=FIELDS, where=f"{dataset.label} features.json")
    opened = open_shard(dataset.source, shard.path)
    keys: list[str] = []
    for (offset, length), _ in zip(tfrecord.records(opened.buffer, opened.ensure), range(_PEEKED), strict=False):
        keys.append(episode_key(reader.read(opened.buffer, offset, length, opened.ensure).metadata))
        if keys[-1] in known.ranges:
            return
    if keys:
        raise ConfigError(
            f"{path}: keep_ranges: none of the first {len(keys)} episodes of {dataset.label} is in this file. Its keys "
            f"are like {quoted(next(iter(known.ranges)))}; those of the data set are like {quoted(keys[0])}. "
            "Choose the file for this version"
        )
