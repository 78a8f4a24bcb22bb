"""The other files of a mixture folder, and the manifest, which is written last and marks it as finished."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from oxe_curate import __version__
from oxe_curate.actions.action_tokens import ActionTokens
from oxe_curate.actions.bins import ActionBins
from oxe_curate.actions.bounds import Bounds
from oxe_curate.index.numbers import Numbers
from oxe_curate.index.query import count_kept
from oxe_curate.index.store import Index
from oxe_curate.mixture.spec import IndexedDataset, Mixture, mixture_yaml
from oxe_curate.mixture.texts import TextSource
from oxe_curate.sealed import seal
from oxe_curate.storage import Folder
from oxe_curate.tokenize import shards
from oxe_curate.tokenize.checksum import FileHashes, hash_file
from oxe_curate.tokenize.fingerprints import ShardTask, format_of, plan_id
from oxe_curate.tokenize.roundtrip import RoundTrip
from oxe_curate.tokenize.sources import REFERENCE, SOURCES, ReferencedShard, write_sources

MANIFEST, STATISTICS, TOKENS, RESOLVED = (
    "manifest.json", "dataset_statistics.json", "action_tokens.parquet", "mixture.yaml",
)  # fmt: skip
REFERENCE_KEYS = "images", "swap", "copying", "shard_bytes"
"""Keys of the manifest that only a mixture by reference has."""
_THREADS = 8


@dataclass(frozen=True)
class References:
    """What only a mixture by reference has.

    Attributes:
        sources: the source shards that its rows refer to.
        copying: `mixture_fingerprint` of the mixture that copies its frames, for `materialize`.
        shard_bytes: bytes of images per shard.
    """

    sources: Sequence[ReferencedShard]
    copying: str
    shard_bytes: int

    def facts(self, datasets: Sequence[IndexedDataset]) -> dict[str, Any]:
        """Its part of the manifest; `materialize` leaves it out."""
        values = REFERENCE, {s.entry.name: sorted(s.bgr) for s in datasets if s.bgr}, self.copying, self.shard_bytes
        return dict(zip(REFERENCE_KEYS, values, strict=True))


def finish(
    spec: Mixture,
    index: Index,
    sources: Sequence[IndexedDataset],
    statistics: dict[str, Bounds],
    numbers: dict[str, Numbers],
    tokens: ActionTokens,
    tasks: Sequence[ShardTask],
    hashes: Mapping[str, str],
    texts: Sequence[TextSource],
    out: Folder,
    known: Mapping[str, FileHashes],
    verify: bool,
    references: References | None = None,
) -> dict[str, Any]:
    """Write the statistics, the resolved mixture and the action tokens, then the manifest.

    Args:
        spec: the mixture.
        index: that it was drawn from.
        sources: its data sets.
        statistics: of each of them.
        numbers: likewise.
        tokens: the action tokens.
        tasks: of all output shards.
        hashes: of the index, see `index_hashes`.
        texts: image-text sources.
        out: the mixture's folder.
        known: hashes of the shards that were checked before.
        verify: read shards in an object store to hash them; local ones always are.
        references: of a mixture by reference.

    Raises:
        DataError: a shard is damaged.
    """
    text = json.dumps({name: b.to_json() for name, b in statistics.items()}, indent=2) + "\n"
    out.publish_bytes(STATISTICS, text.encode())
    out.publish_bytes(RESOLVED, mixture_yaml(spec).encode())
    tokens.write(f"{out}/{TOKENS}")
    small = [STATISTICS, RESOLVED, TOKENS]
    if references is not None:
        write_sources(out, references.sources)
        small.append(SOURCES)
    rows, frames, outputs = describe_outputs(out, tasks, small, known, verify, bool(texts))
    manifest = {
        "format": format_of(spec),
        "plan": plan_id(tasks),
        "software": f"oxe-curate {__version__}",
        "mixture": spec.name,
        "seed": spec.seed,
        "rows": rows,
        **({"frames": frames} if spec.window > 1 else {}),
        "share": _shares(sources, index, rows["train"]),
        **({"texts": _texts(texts, rows)} if texts else {}),
        "round_trip": _round_trip(spec, numbers, statistics),
        "bins": spec.bins,
        "tokens": {
            "rule": tokens.rule,
            "tokenizer_sha256": tokens.tokenizer_sha256,
            "vocabulary_size": tokens.vocabulary_size,
        },
        "inputs": {
            "source": index.source.uri,
            **_roots(index, sources),
            "index": dict(hashes),
            **({"texts": {s.entry.name: s.sha256 for s in texts}} if texts else {}),
        },
        **({} if references is None else references.facts(sources)),
        "outputs": outputs,
    }
    publish_manifest(out, manifest)
    return manifest


def publish_manifest(out: Folder, manifest: Mapping[str, Any]) -> None:
    """Write the manifest, with its checksum."""
    out.publish_bytes(MANIFEST, (json.dumps(seal(manifest), indent=1) + "\n").encode())


Counts = dict[str, dict[str, int]]
"""Split -> name -> count."""


def describe_outputs(
    out: Folder,
    tasks: Sequence[ShardTask],
    small: Sequence[str],
    known: Mapping[str, FileHashes],
    verify: bool,
    texts: bool,
) -> tuple[Counts, Counts, dict[str, dict[str, Any]]]:
    """What the manifest says of the files.

    Args:
        out: the mixture's folder.
        tasks: of all shards.
        small: the other files.
        known: hashes of the shards that were checked before.
        verify: read shards in an object store to hash them; local ones always are.
        texts: whether the mixture has image-text sources.

    Returns:
        Rows by data set, stored frames (of windows), and the entry of each file.

    Raises:
        DataError: a shard is damaged.
    """
    rows: Counts = {"train": {}, "validation": {}, **({"text": {}} if texts else {})}
    frames: Counts = {}
    names = [task.output for task in tasks]
    with ThreadPoolExecutor(_THREADS) as pool:  # hashing and waiting release the GIL
        found = pool.map(lambda n: known.get(n) or hash_file(out, n, whole=verify or out.is_local), names)
        outputs = {name: _entry(entry) for name, entry in zip(names, found, strict=True)}
    outputs |= {name: _hash(out.read_bytes(name)) for name in small}
    for name in names:
        meta = shards.read_shard_meta(out, name)
        split = name.split("-")[0]
        for dataset, count in meta["counts"].items():
            rows[split][dataset] = rows[split].get(dataset, 0) + count
        for kind, count in meta.get("frames", {}).items():
            frames.setdefault(split, {})[kind] = frames.get(split, {}).get(kind, 0) + count
        outputs[name] = {"rows": meta["rows"], **outputs[name]}
    return rows, frames, outputs


def _roots(index: Index, sources: Sequence[IndexedDataset]) -> dict[str, dict[str, str]]:
    """Where the shards were read, of the data sets that are not in the index's own source."""
    roots = {s.entry.name: index.source_of(s.dataset).uri for s in sources}
    moved = {name: root for name, root in roots.items() if root != index.source.uri}
    return {"sources": moved} if moved else {}


def _entry(found: FileHashes) -> dict[str, Any]:
    whole = {"sha256": found.sha256} if found.sha256 else {}
    return {"bytes": found.size, **whole, "footer_sha256": found.footer_sha256}


def _hash(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _shares(sources: Sequence[IndexedDataset], index: Index, rows: dict[str, int]) -> dict[str, dict[str, float]]:
    """Per data set: the requested share (weight times kept steps of the drawn splits) and the share drawn."""
    asked = {s.entry.name: s.entry.weight * count_kept(index, s.dataset, s.entry.splits)[1] for s in sources}
    total, drawn = sum(asked.values()) or 1, sum(rows.values()) or 1
    return {
        name: {"weight": s.entry.weight, "asked": asked[name] / total, "drawn": rows.get(name, 0) / drawn}
        for s in sources
        for name in [s.entry.name]
    }


def _texts(texts: Sequence[TextSource], rows: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, float]]:
    """Per source: weight, rows, rows drawn, and their share of all training rows."""
    total = sum(rows["train"].values()) + sum(rows["text"].values()) or 1
    return {
        s.entry.name: {"weight": s.entry.weight, "rows": s.rows, "drawn": drawn, "share": drawn / total}
        for s in texts
        for drawn in [rows["text"].get(s.entry.name, 0)]
    }


def _round_trip(spec: Mixture, numbers: dict[str, Numbers], bounds: dict[str, Bounds]) -> dict[str, dict[str, Any]]:
    """The error of binning per data set, in metres and degrees."""
    report = {}
    for name, found in numbers.items():
        check = RoundTrip(bounds[name], ActionBins(spec.bins))
        for block in found.column("action"):
            check.add(block)
        report[name] = check.result()
    return report
