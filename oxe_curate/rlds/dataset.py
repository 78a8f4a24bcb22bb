"""TFDS folders on disk: dataset_info.json and features.json, splits and shards, through tensorflow_datasets.

tensorflow_datasets reads both files and resolves splits without importing TensorFlow.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from oxe_curate.errors import ConfigError, DataError, StorageError, did_you_mean
from oxe_curate.rlds.foreign import HEAD, foreign
from oxe_curate.rlds.naming import is_incomplete, is_version, newest, snake_case
from oxe_curate.storage import Folder

INFO, FEATURES = "dataset_info.json", "features.json"
SHARD_FORMATS = ("tfrecord", "array_record")
"""The formats of shards that can be read."""
_DEPTH = 3  # <name>/<config>/<version>
_METADATA = "Download the file again, or write it with `tfds.folder_dataset.write_metadata`"


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
    """A version folder of a TFDS data set.

    Attributes:
        ignored: other folders of the data set that look like a version and are none, such as
            "1.0.0.incompleteA1B2", which tfds had not finished.
    """

    source: Folder
    path: str
    name: str
    version: str
    ignored: tuple[str, ...] = field(default=(), compare=False)

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
                dataset_name=info.name or self.name.split("/")[0],
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
            DataError: the format of the shards is not supported, or a split lists no shards.
        """
        info = self._json[0]
        where = f"{self.source}/{self.path}/{INFO}"
        if (info.file_format or "tfrecord") not in SHARD_FORMATS:
            raise DataError(
                f"{where}: the shards have the format {info.file_format!r}, expected {' or '.join(SHARD_FORMATS)}; "
                "convert them with `python -m tensorflow_datasets.scripts.convert_format "
                f"--dataset_version_dir={self.source}/{self.path} --out_file_format=tfrecord --out_dir=NEW_FOLDER`"
            )
        if not self.split_names:
            raise DataError(f"{where}: lists no splits, so its shards are not known. {_METADATA}")
        selected = list(splits) or self.split_names
        found: list[Shard] = []
        for spec in selected:
            base = spec.split("[")[0].strip()
            if base not in self.split_names:
                raise ConfigError(f"{self.label} has no split {base!r}. {did_you_mean(base, self.split_names)}")
            (proto,) = (proto for proto in info.splits if proto.name == base)
            if not any(proto.shard_lengths) or min(proto.shard_lengths) < 0:
                lengths = ", ".join(map(str, proto.shard_lengths[:4]))
                has = f"the shardLengths {lengths}" if proto.shard_lengths else "no shardLengths"
                raise DataError(
                    f"{where}: the split {base!r} has {has}, so its shards are not known. {_METADATA}, or select other "
                    "splits with --split"
                )
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
    """Find the TFDS data sets below a source root, by tfds's rules.

    The root may contain `<name>/<version>/` or `<name>/<config>/<version>/`, or be one of these folders itself. Only
    folders whose whole name is a version count, and the highest is chosen unless one is named.

    Args:
        source: the root.
        names: `name` or `name:version`, whose parts may be `*`; a name in CamelCase is that of the builder's class. The
            name of a data set with builder configs is `name/config`; without a config it is the default one.

    Raises:
        ConfigError: no data set found, or a named data set or version does not exist.
    """
    chosen_names = list(names)
    everything = _walk(source, [_folder(name) for name in chosen_names])
    if not everything and chosen_names:
        everything = _walk(source)  # for the closest name
    by_name: dict[str, dict[str, RldsDataset]] = {}
    others: dict[str, list[str]] = {}
    named = {choice.partition(":")[::2] for choice in chosen_names}  # (name, version)
    for dataset in everything:
        is_root = f"{dataset.source}/{dataset.path}" == source.uri.rstrip("/")  # the user named this very folder
        is_named = (dataset.name, dataset.version) in named and not is_incomplete(dataset.version)
        if is_version(dataset.version) or is_root or is_named:
            by_name.setdefault(dataset.name, {})[dataset.version] = dataset
        else:
            others.setdefault(dataset.name, []).append(dataset.version)
    if not by_name:
        raise ConfigError(f"{source}: no TFDS data set found {_found_instead(others)}")
    chosen = []
    for choice in chosen_names or list(by_name):
        given, _, wanted = choice.partition(":")
        name = _resolve(source, given, by_name)
        if name not in by_name:
            beside = f"; {name} {_found_instead({name: others[name]})}" if name in others else ""
            raise ConfigError(f"{source} has no data set {given!r}. {did_you_mean(given, by_name)}{beside}")
        versions = by_name[name]
        version = newest(versions, wanted or "*.*.*") or (None if wanted else next(iter(versions)))
        if version is None:
            raise ConfigError(f"{source}/{name} has no version {wanted!r}. {did_you_mean(wanted, versions)}")
        chosen.append(replace(versions[version], ignored=tuple(others.get(name, ()))))
    return chosen


def _folder(choice: str) -> str:
    """The first folder of a chosen data set, below which it is looked for."""
    return snake_case(choice.partition(":")[0].partition("/")[0])


def _resolve(source: Folder, given: str, known: Iterable[str]) -> str:
    """The full name of a chosen data set, with its builder config."""
    name = given if given in known else "/".join([snake_case(given.partition("/")[0]), *given.split("/")[1:]])
    configs = [other.partition("/")[2] for other in known if other.startswith(f"{name}/")]
    if name in known or not configs:
        return name
    metadata = f"{name}/.config/metadata.json"
    default = None
    if source.exists(metadata):
        with contextlib.suppress(ValueError, AttributeError):
            default = json.loads(source.read_bytes(metadata)).get("default_config_name")
    if default in configs or len(configs) == 1:
        return f"{name}/{default if default in configs else configs[0]}"
    listed = ", ".join(f"{name}/{config}" for config in configs)
    raise ConfigError(f"{source}/{name} has several builder configs and no default; choose one of {listed}")


def _found_instead(others: Mapping[str, Sequence[str]]) -> str:
    """What was found in place of version folders."""
    if not others:
        return (
            f"(looked for <name>/<version>/{INFO} with a version such as 1.0.0); "
            "give the folder that contains the data sets' folders"
        )
    name, folders = next(iter(others.items()))
    if is_incomplete(folders[0]):
        return f"(only {name}/{folders[0]}, which tfds had not finished writing); build or download the data set again"
    return f"(only {name}/{folders[0]}, whose name is not a version such as 1.0.0); rename the folder"


def _walk(source: Folder, names: Iterable[str] = ()) -> list[RldsDataset]:
    """All folders with a file of TFDS, whatever their names."""
    if _is_version_folder(source):
        # the version folder itself: paths are relative to the root above it
        parts = source.uri.rstrip("/").rsplit("/", 2)
        if is_incomplete(parts[-1]):
            raise ConfigError(
                f"{source}: tfds had not finished writing this folder; build or download the data set again"
            )
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


def _is_version_folder(source: Folder) -> bool:
    if source.is_local:
        return source.exists(INFO) or source.exists(FEATURES)
    return any(name in (INFO, FEATURES) for name, _, _ in source.list())  # one request instead of four


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
    from tensorflow_datasets.core.proto import dataset_info_pb2

    from oxe_curate.rlds import structure

    def parse(name: str, build: Callable[[Any], Any]) -> Any:
        where = f"{source}/{path}"
        try:
            data = read[name].result()
        except StorageError:
            if source.exists(f"{path}/{name}"):
                raise
            raise DataError(f"{where}: {name} is missing, so this is not a complete TFDS version folder") from None
        if what := foreign(data[:HEAD]):
            raise DataError(f"{where}/{name} {what}")
        try:
            return build(json.loads(data))
        except Exception as error:  # json, protobuf and tfds raise many kinds of errors
            raise DataError(f"{where}/{name}: cannot be read: {_first_line(error)}") from error

    with ThreadPoolExecutor(2) as pool:
        read = {name: pool.submit(source.read_bytes, f"{path}/{name}") for name in (INFO, FEATURES)}

    def info(found: Any) -> Any:
        return json_format.ParseDict(found, dataset_info_pb2.DatasetInfo(), ignore_unknown_fields=True)

    return parse(INFO, info), parse(FEATURES, structure.parse_features)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
