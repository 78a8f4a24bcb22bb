"""A copying mixture turned into one by reference: the format of docs/formats.md, written independently of tokenize."""

import hashlib
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from oxe_curate.index.store import Index
from oxe_curate.index.table import FRAME
from oxe_curate.sealed import seal
from oxe_curate.tokenize.folder import MixtureFolder
from oxe_curate.tokenize.sources import SOURCES, MixtureSources, ReferencedShard, write_sources

GROUP = 7
"""Rows of a row group: another number than in a copying shard."""


def by_reference(mixture: MixtureFolder, index: Path, out: Path, group: int = GROUP) -> MixtureFolder:
    """Write a mixture with the same rows as `mixture` to `out`, whose frames are located by the index."""
    opened = Index.open(index)
    shards, frames = [], {}
    for dataset in opened.datasets:
        for path, table in opened.tables(dataset, ["episode_id", "shard", "cameras"]):
            name = next(entry.name for entry in mixture.mixture.datasets)
            shards.append(ReferencedShard(name, opened.source_of(dataset), opened.entry(path).shard))
            for row in table.to_pylist():
                frames[row["episode_id"]] = row["shard"], dict(row["cameras"])
    sources = MixtureSources(tuple(shards)).compare()
    numbers = {row.shard.path: number for number, row in enumerate(sources)}
    shutil.copytree(mixture.folder.path(), out)
    for path in [*out.glob("train-*"), *out.glob("validation-*")]:
        table = pq.read_table(path)
        columns = {"source": pa.array([numbers[frames[i.as_py()][0]] for i in table["episode_id"]], pa.int32())}
        for name in table.column_names:
            if name.startswith("image_"):
                columns[name] = pa.array([refer(row, frames, name[6:]) for row in table.to_pylist()], kind(table, name))
            else:
                columns[name] = table[name]
        pq.write_table(pa.table(columns), path, row_group_size=group, compression="zstd")
    write_sources(mixture.folder.of(out), sources)
    manifest = json.loads((out / "manifest.json").read_text())
    manifest |= {"format": 3, "images": "reference", "swap": {}}
    manifest.pop("checksum")
    for path in out.iterdir():
        if path.name in manifest["outputs"] or path.name == SOURCES:
            data = path.read_bytes()
            entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            manifest["outputs"][path.name] = manifest["outputs"].get(path.name, {}) | entry
    (out / "manifest.json").write_text(json.dumps(seal(manifest)))
    return MixtureFolder.open(str(out))


def kind(table, name):
    """The type of an image column, with byte ranges for images."""
    return pa.list_(FRAME) if pa.types.is_list(table.schema.field(name).type) else FRAME


def refer(row, frames, role):
    """The byte range of a row's frame, or those of its window."""
    located = frames[row["episode_id"]][1][role]
    if "observation_mask" not in row:
        return located[row["step"]]
    first = row["step"] - len(row["observation_mask"]) + 1
    return [located[first + w] if seen else None for w, seen in enumerate(row["observation_mask"])]
