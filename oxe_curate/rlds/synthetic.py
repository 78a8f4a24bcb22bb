"""Small valid TFDS data sets from any features.json: the demo writes drawn episodes, tests random ones."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from tensorflow_datasets.core import features as tfds

from oxe_curate.atomic import atomic_folder
from oxe_curate.errors import DataError, StorageError
from oxe_curate.rlds.encode import EpisodeValues, encode_example, flatten_episode
from oxe_curate.rlds.random_episode import random_episode
from oxe_curate.rlds.tfrecord import frame_record

EpisodeSource: TypeAlias = int | Iterable[EpisodeValues]
"""Episodes to write, or the number of random ones."""

_MODULE = __name__  # dataset_info.json's moduleName: only folders with this name are ever replaced


@dataclass(frozen=True, slots=True)
class DatasetFolder:
    """A TFDS version folder that was written.

    Attributes:
        path: `<root>/<name>/<version>`.
        splits: split -> records in each shard.
        num_steps: over all splits.
        num_bytes: of all shards, framing included.
    """

    path: Path
    name: str
    version: str
    splits: Mapping[str, tuple[int, ...]]
    num_steps: int
    num_bytes: int


def write_dataset(
    out_root: Path,
    name: str,
    version: str,
    features_json: Mapping[str, Any] | Path,
    episodes: EpisodeSource | Mapping[str, EpisodeSource],
    *,
    split: str = "train",
    shards: int = 2,
    seed: int = 0,
    replace: bool = False,
) -> DatasetFolder:
    """Write `<out_root>/<name>/<version>`: features.json, dataset_info.json and TFRecord shards.

    Episode i is in shard i modulo the number of shards. The folder is written atomically.

    Args:
        out_root: created if missing.
        name: of the data set, and of its folder.
        version: such as "1.0.0".
        features_json: the parsed file, or its path.
        episodes: of `split`, or a mapping from split names to them, for several splits.
        split: name of the split, unless `episodes` names them.
        shards: number of shards of each split, at most one per episode.
        seed: of random episodes; two calls with equal arguments write equal bytes.
        replace: whether a folder that this function wrote earlier may be replaced.

    Raises:
        DataError: features.json is not TFDS's, or an episode does not match it.
        StorageError: the folder exists (or, with `replace`, was not written by this function), or cannot be written.
    """
    structure = _read_json(features_json)
    features = load_features(structure)
    folder = Path(out_root) / name / version
    _check_replaceable(folder, replace)
    by_split = episodes if isinstance(episodes, Mapping) else {split: episodes}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(folder) as draft:
            written = {
                s: _write_split(draft, name, s, features, _episodes(features, some, seed, s), shards)
                for s, some in by_split.items()
            }
            (draft / "features.json").write_text(json.dumps(structure, indent=1) + "\n")
            (draft / "dataset_info.json").write_text(_dataset_info(name, version, written))
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written: {error}") from error
    return DatasetFolder(
        path=folder,
        name=name,
        version=version,
        splits={s: tuple(w.shard_lengths) for s, w in written.items()},
        num_steps=sum(w.num_steps for w in written.values()),
        num_bytes=sum(w.num_bytes + 16 * sum(w.shard_lengths) for w in written.values()),
    )


def load_features(structure: Mapping[str, Any]) -> tfds.FeaturesDict:
    """Build TFDS's features from a parsed features.json. Raises DataError if it is invalid."""
    try:
        features = tfds.FeatureConnector.from_json(dict(structure))
    except Exception as error:  # TFDS passes on many kinds of errors: KeyError, ParseError, ImportError, ...
        raise DataError(f"features.json: TFDS cannot read the structure: {error}") from error
    if not isinstance(features, tfds.FeaturesDict):
        raise DataError(f"features.json: expected a FeaturesDict at the top level, got {type(features).__name__}")
    return features


@dataclass(slots=True)
class _Written:
    shard_lengths: list[int]
    num_bytes: int = 0  # without framing, as TFDS counts
    num_steps: int = 0


def _write_split(
    folder: Path, name: str, split: str, features: Any, episodes: Iterator[EpisodeValues], shards: int
) -> _Written:
    written = _Written([0] * shards)
    drafts = [folder / f"{split}.{k}" for k in range(shards)]
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("wb")) for path in drafts]
        for i, episode in enumerate(episodes):
            try:
                record = encode_example(flatten_episode(features, episode))
            except DataError as error:
                raise DataError(f"{name}, {split}, episode {i}: {error}") from error
            files[i % shards].write(frame_record(record))
            written.shard_lengths[i % shards] += 1
            written.num_bytes += len(record)
            written.num_steps += _num_steps(episode)
    if not written.shard_lengths[0]:
        raise DataError(f"{name}: the split {split!r} has no episodes")
    written.shard_lengths = [n for n in written.shard_lengths if n]
    total = len(written.shard_lengths)
    for k, path in enumerate(drafts):
        if k < total:
            path.rename(folder / f"{name}-{split}.tfrecord-{k:05d}-of-{total:05d}")
        else:
            path.unlink()
    return written


def _num_steps(episode: EpisodeValues) -> int:
    node: Any = episode.get("steps", ())
    while isinstance(node, Mapping):
        node = next(iter(node.values()), ())
    return len(node)


def _episodes(features: Any, episodes: EpisodeSource, seed: int, split: str) -> Iterator[EpisodeValues]:
    if not isinstance(episodes, int):
        yield from episodes
        return
    stream = zlib.crc32(split.encode())  # each split has its own seed
    for i in range(episodes):
        yield random_episode(features, np.random.default_rng([seed, stream, i]), index=i)


def _dataset_info(name: str, version: str, splits: Mapping[str, _Written]) -> str:
    """dataset_info.json; protobuf's JSON writes 64-bit integers as strings."""
    info = {
        "description": "Synthetic episodes with the structure of the data set of this name.",
        "fileFormat": "tfrecord",
        "moduleName": _MODULE,
        "name": name,
        "splits": [
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": split,
                "numBytes": str(written.num_bytes),
                "shardLengths": [str(n) for n in written.shard_lengths],
            }
            for split, written in splits.items()
        ],
        "version": version,
    }
    return json.dumps(info, indent=2) + "\n"


def _read_json(features_json: Mapping[str, Any] | Path) -> Mapping[str, Any]:
    if isinstance(features_json, Mapping):
        return features_json
    try:
        structure = json.loads(Path(features_json).read_text())
    except OSError as error:
        raise StorageError(f"{features_json}: cannot be read: {error}") from error
    except ValueError as error:
        raise DataError(f"{features_json}: not JSON: {error}") from error
    if not isinstance(structure, dict):
        raise DataError(f"{features_json}: expected a JSON object at the top level")
    return structure


def _check_replaceable(folder: Path, replace: bool) -> None:
    if not folder.exists():
        return
    if not replace:
        raise StorageError(f"{folder}: already exists; choose another folder, or delete this one")
    try:
        ours = json.loads((folder / "dataset_info.json").read_text()).get("moduleName") == _MODULE
    except (OSError, ValueError, AttributeError):
        ours = False
    if not ours:
        raise StorageError(f"{folder}: contains data that oxe-curate did not generate; choose another folder")
