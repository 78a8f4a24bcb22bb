"""The assignment of episodes to output shards, by hashes of their ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from oxe_curate import __version__
from oxe_curate.actions.bounds import Bounds
from oxe_curate.errors import ConfigError
from oxe_curate.index import query
from oxe_curate.index.store import Index
from oxe_curate.mixture import sampling as samples
from oxe_curate.mixture.spec import IndexedDataset, Mixture
from oxe_curate.storage import Folder
from oxe_curate.tokenize.build import TokenizeTask

if TYPE_CHECKING:
    import polars as pl

TOKENIZE_FORMAT = 1
DEFAULT_SHARD_BYTES = 256 << 20
"""Bytes of images per output shard."""


def plan_shards(
    spec: Mixture,
    index: Index,
    sources: Sequence[IndexedDataset],
    bounds: dict[str, Bounds],
    out: Folder,
    shard_bytes: int,
    hashes: Mapping[str, str],
) -> list[TokenizeTask]:
    """Assign the episodes to output shards, one task each. Reads only ids and sizes.

    `hashes` come from `index_hashes`; they are part of the tasks' fingerprints.
    """
    import polars as pl

    found: list[tuple[int, str, NDArray[np.int64], NDArray[np.bool_], NDArray[np.float64], list[str]]] = []
    for number, source in enumerate(sources):
        kept = query.scan_index(index, source.dataset, source.entry.splits).filter("kept")
        original = pl.coalesce("duplicate_of", "episode_id").alias("original")
        columns = ["file", "row", "episode_id", original, "num_steps", "source_steps", _image_bytes(spec)]
        frame = query.collect(kept.select(columns))
        for (path,), part in frame.group_by("file", maintain_order=True):
            # a duplicate is assigned like its original: never one to train and the other to validation
            held = samples.held_out(part["original"].to_list(), spec.validation)
            rows, ids = part["row"].to_numpy().astype(np.int64), part["episode_id"].to_list()
            found.append((number, str(path), rows, held, _expected_bytes(part, spec, source.entry.weight), ids))
    if not found:
        raise ConfigError(f"{index.folder}: no kept episode in the splits of the mixture")
    decided = _fingerprint(spec, sources, bounds, hashes)
    tasks = []
    for validation in (False, True):
        total = sum(float(cost[held == validation].sum()) for *_, held, cost, _ in found)
        if not any((held == validation).any() for *_, held, _, _ in found):
            continue
        count = max(1, -int(-total // shard_bytes))
        assigned = [samples.output_shards(spec.seed, ids, count) for *_, ids in found]
        for shard in range(count):
            episodes, size = [], 0.0
            for (number, path, rows, held, cost, _), target in zip(found, assigned, strict=True):
                mine = (held == validation) & (target == shard)
                if mine.any():
                    episodes.append((number, path, tuple(rows[mine].tolist())))
                    size += float(cost[mine].sum())
            name = f"{'validation' if validation else 'train'}-{shard:05d}-of-{count:05d}.parquet"
            digest = hashlib.sha256(f"{decided}:{name}:{shard_bytes}".encode()).hexdigest()
            tasks.append(
                TokenizeTask(
                    index=index.folder, source=index.source, out=out, output=name, validation=validation, mixture=spec,
                    sources=tuple(sources), bounds=bounds, episodes=tuple(episodes), size=max(int(size), 1),
                    fingerprint=digest,
                )
            )  # fmt: skip
    return tasks


def _image_bytes(spec: Mixture) -> pl.Expr:
    """Bytes of the source's images of the mixture's cameras, per episode."""
    import polars as pl

    # polars 1 reads a map as such a list, polars 2 as a map, which has no operations over its entries
    span = pl.Struct({"offset": pl.Int64, "length": pl.Int64})
    spans = pl.col("camera_spans").cast(pl.List(pl.Struct({"key": pl.String, "value": span})))
    entry = pl.element().struct
    of_camera = entry.field("key").is_in(spec.image.cameras)
    lengths = pl.when(of_camera).then(entry.field("value").struct.field("length")).otherwise(0)
    return spans.list.eval(lengths).list.sum().alias("image_bytes")


def _expected_bytes(episodes: pl.DataFrame, spec: Mixture, weight: float) -> NDArray[np.float64]:
    """Expected bytes of images of each episode, float64 (episodes,)."""
    stored = samples.stored_frames(episodes["num_steps"].to_numpy(), spec.window, spec.stride) * weight
    if spec.image.size is not None:  # a JPEG of quality 95 without subsampling takes at most about a byte per pixel
        frame = spec.image.size**2 * len(spec.image.cameras)
        return np.asarray(stored * frame)
    source_steps = np.maximum(episodes["source_steps"].to_numpy(), 1)
    return np.asarray(episodes["image_bytes"].to_numpy().astype(np.float64) / source_steps * stored)


def _fingerprint(
    spec: Mixture, sources: Sequence[IndexedDataset], bounds: dict[str, Bounds], hashes: Mapping[str, str]
) -> str:
    """Hash of everything that determines the shards, except their names."""
    mixture = asdict(spec)
    del mixture["texts"]  # they have their own shards
    if spec.stride == 1:
        del mixture["stride"]  # keeps the fingerprints of versions without this key
    parts = {
        "format": TOKENIZE_FORMAT, "version": __version__, "mixture": mixture,
        "sources": [(s.dataset, sorted(s.bgr)) for s in sources],
        "bounds": {name: b.to_json() for name, b in bounds.items()},
        "index": dict(hashes),
    }  # fmt: skip
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def index_hashes(index: Index, sources: Sequence[IndexedDataset]) -> dict[str, str]:
    """One hash per data set, over its index files. Reads all of them, so call it once per run."""
    found = {}
    for source in sources:
        digest = hashlib.sha256()
        for path in index.files(source.dataset):
            digest.update(hashlib.sha256(index.folder.read_bytes(path)).digest())
        found[source.dataset] = digest.hexdigest()
    return found
