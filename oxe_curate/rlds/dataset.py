"""TFDS folders on disk: dataset_info.json and features.json, splits and shards, through tensorflow_datasets.

tensorflow_datasets reads both files and resolves splits without importing TensorFlow.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oxe_curate.errors import ConfigError, DataError, did_you_mean
from oxe_curate.storage import Folder

INFO, FEATURES = "dataset_info.json", "features.json"
_DEPTH = 3  # <name>/<config>/<version>


@dataclass(frozen=True, slots=True, order=True)
class Shard:
    """One TFRecord file of a split, or the part of it that a sub-split selects.

    Attributes:
        dataset: the folder's name, which may differ from the published name (bridge_dataset -> bridge_orig).
        path: relative to the source root.
        skip, take: the records [skip, skip + take) are selected.
        records: number of records in the file, by dataset_info.json.
    """

    dataset: str
    version: str
    split: str
    number: int
    count: int
    path: str
    skip: int
    take: int
    records: int

    @property
    def index_path(self) -> str:
        """Path of this shard's file in the episode index."""
        return f"{self.dataset}/{self.version}/{self.split}-{self.number:05d}-of-{self.count:05d}.parquet"


@dataclass(frozen=True)
class RldsDataset:
    """A version folder of a TFDS data set."""

    source: Folder
    path: str
    name: str
    version: str

    def __getstate__(self) -> dict[str, Any]:
        """Pickle only the names; a worker parses the JSON files itself."""
        return {key: value for key, value in self.__dict__.items() if not key.startswith("_")}

    @property
    def label(self) -> str:
        """name/version, for messages."""
        return f"{self.name}/{self.version}"

    @functools.cached_property
    def _json(self) -> tuple[Any, Any]:
        return _read(self.source, self.path)

    @property
    def features(self) -> Any:
        """The tfds FeaturesDict of one episode."""
        return self._json[1]

    @property
    def num_bytes(self) -> int:
        """Size of all splits, by dataset_info.json."""
        return sum(int(split.num_bytes) for split in self._json[0].splits)

    @functools.cached_property
    def _splits(self) -> Any:
        from tensorflow_datasets.core import naming, splits

        info = self._json[0]
        found = []
        for proto in info.splits:
            template = naming.ShardedFileTemplate(
                data_dir=Path("/"),
                dataset_name=info.name,
                filetype_suffix=info.file_format or "tfrecord",
                template=proto.filepath_template or naming.DEFAULT_FILENAME_TEMPLATE,
            )
            found.append(splits.SplitInfo.from_proto(proto, template))
        return splits.SplitDict(found)

    @property
    def split_names(self) -> list[str]:
        """Names of the splits, in the order of dataset_info.json."""
        return [proto.name for proto in self._json[0].splits]

    def shards(self, splits: Iterable[str] = ()) -> list[Shard]:
        """Return the shards of some splits (tfds syntax: `train`, `train[:95%]`, `train[100:200]`), of all by default.

        Raises:
            ConfigError: unknown split, or a slice that tfds cannot parse.
            DataError: the data set is not stored as TFRecord, or lists no shards.
        """
        info = self._json[0]
        if (info.file_format or "tfrecord") != "tfrecord":
            raise DataError(
                f"{self.path}/{INFO}: unsupported fileFormat {info.file_format!r} (expected 'tfrecord'); "
                "convert it with tensorflow_datasets' convert_format"
            )
        selected = list(splits) or self.split_names
        found: list[Shard] = []
        for spec in selected:
            base = spec.split("[")[0].strip()
            if base not in self.split_names:
                raise ConfigError(f"{self.label} has no split {base!r}. {did_you_mean(base, self.split_names)}")
            try:
                instructions = self._splits[spec].file_instructions
            except (ValueError, AssertionError, KeyError) as error:
                raise ConfigError(f"split {spec!r} of {self.label}: {str(error).splitlines()[0]}") from None
            names = list(self._splits[base].filenames)
            order = {name: number for number, name in enumerate(sorted(names))}
            for instruction in instructions:
                name = Path(instruction.filename).name
                shard = Shard(
                    dataset=self.name, version=self.version, split=base, number=order[name], count=len(names),
                    path=f"{self.path}/{name}", skip=int(instruction.skip), take=int(instruction.take),
                    records=int(instruction.examples_in_shard),
                )  # fmt: skip
                found.append(shard)
        if len({s.path for s in found}) != len(found):
            raise ConfigError(f"{self.label}: the splits {', '.join(selected)} overlap; name each split once")
        return sorted(found, key=lambda s: (s.split, s.number))


def find(source: Folder, names: Iterable[str] = ()) -> list[RldsDataset]:
    """Find the TFDS data sets below a source root; `names` may be `name` or `name:version`.

    The root may contain `<name>/<version>/` or `<name>/<config>/<version>/`, or be one of these folders itself. The
    newest version is chosen unless one is named.

    Raises:
        ConfigError: no data set found, or a named data set or version does not exist.
    """
    chosen_names = list(names)
    everything = _walk(source, [name.partition(":")[0] for name in chosen_names])
    if not everything and chosen_names:
        everything = _walk(source)  # for the closest name
    if not everything:
        raise ConfigError(
            f"{source}: no TFDS data set found (looked for <name>/<version>/{INFO}); "
            "give the folder that contains the data sets' folders"
        )
    by_name: dict[str, list[RldsDataset]] = {}
    for dataset in everything:
        by_name.setdefault(dataset.name, []).append(dataset)
    chosen = []
    for choice in chosen_names or list(by_name):
        name, _, version = choice.partition(":")
        if name not in by_name:
            raise ConfigError(f"{source} has no data set {name!r}. {did_you_mean(name, by_name)}")
        versions = {d.version: d for d in by_name[name]}
        if version and version not in versions:
            raise ConfigError(f"{source}/{name} has no version {version!r}. {did_you_mean(version, versions)}")
        chosen.append(versions[version] if version else max(versions.values(), key=_version_key))
    return chosen


def _version_key(dataset: RldsDataset) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else -1 for part in dataset.version.split("."))


def _walk(source: Folder, names: Iterable[str] = ()) -> list[RldsDataset]:
    if source.exists(INFO) or source.exists(FEATURES):
        # the version folder itself: paths are relative to the root above it
        parts = source.uri.rstrip("/").rsplit("/", 2)
        if len(parts) == 3:
            return [RldsDataset(Folder(parts[0]), f"{parts[1]}/{parts[2]}", parts[1], parts[2])]
    if not source.is_local:
        return _walk_objects(source, names)
    found: list[RldsDataset] = []
    level = [""]
    for depth in range(_DEPTH):
        below = []
        for folder in level:
            entries = list(source.list(folder))
            files = {name.rsplit("/", 1)[-1] for name, is_folder, _ in entries if not is_folder}
            if folder and (INFO in files or FEATURES in files):
                found.append(_named(source, folder))
            else:
                below += [name for name, is_folder, _ in entries if is_folder]
        level = below
        if depth == _DEPTH - 1:
            found += [_named(source, folder) for folder in level if source.exists(f"{folder}/{INFO}")]
    return sorted(found, key=lambda d: d.path)


def _walk_objects(source: Folder, names: Iterable[str]) -> list[RldsDataset]:
    """Find data sets by file names, since pyarrow's gs:// does not list folders without an object of their own."""
    found = set()
    for name in list(names) or [""]:
        for path, is_folder, _ in source.list(name, recursive=True):
            folder, _, file = path.rpartition("/")
            if not is_folder and file in (INFO, FEATURES) and folder and folder.count("/") < _DEPTH:
                found.add(folder)
    return [_named(source, folder) for folder in sorted(found)]


def _named(source: Folder, path: str) -> RldsDataset:
    parts = path.split("/")
    if len(parts) == 1:  # the root is a data set's own folder: paths are relative to the folder above it
        root, _, name = source.uri.rstrip("/").rpartition("/")
        return RldsDataset(Folder(root), f"{name}/{path}", name, path)
    return RldsDataset(source, path, "/".join(parts[:-1]), parts[-1])


def _read(source: Folder, path: str) -> tuple[Any, Any]:
    """Parse the two JSON files with tfds's own classes (not its readers, which import TensorFlow if installed)."""
    from google.protobuf import json_format
    from tensorflow_datasets.core import features
    from tensorflow_datasets.core.proto import dataset_info_pb2

    def parse(name: str, build: Callable[[bytes], Any]) -> Any:
        if not source.exists(f"{path}/{name}"):
            raise DataError(f"{source}/{path}: {name} is missing, so this is not a complete TFDS version folder")
        try:
            return build(source.read_bytes(f"{path}/{name}"))
        except Exception as error:  # json, protobuf and tfds raise many kinds of errors
            raise DataError(f"{source}/{path}/{name}: cannot be read: {_first_line(error)}") from error

    info = parse(INFO, lambda data: json_format.Parse(data, dataset_info_pb2.DatasetInfo(), ignore_unknown_fields=True))
    return info, parse(FEATURES, lambda data: features.FeatureConnector.from_json(json.loads(data)))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
