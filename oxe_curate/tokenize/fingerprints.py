"""What determines a mixture's shards, as hashes: equal ones mean equal files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Protocol

from oxe_curate import __version__
from oxe_curate.actions.bounds import Bounds
from oxe_curate.index.store import Index
from oxe_curate.mixture.spec import IndexedDataset, Mixture

TOKENIZE_FORMAT = 2
REFERENCE_FORMAT = 3
"""Of mixtures by reference."""


class ShardTask(Protocol):
    """A task that writes one shard of a mixture."""

    @property
    def output(self) -> str:
        """The shard's name."""

    @property
    def fingerprint(self) -> str:
        """Hash of everything that determines the shard."""


def plan_id(tasks: Sequence[ShardTask]) -> str:
    """Hash of everything that determines the shards: two runs with the same one write the same shards."""
    return hashlib.sha256("\n".join(f"{task.output} {task.fingerprint}" for task in tasks).encode()).hexdigest()


def format_of(spec: Mixture) -> int:
    """The format version of a mixture's shards and manifest."""
    return TOKENIZE_FORMAT if spec.image.copy else REFERENCE_FORMAT


def shard_fingerprint(decided: str, output: str, shard_bytes: int) -> str:
    """Hash of everything that determines one shard.

    Args:
        decided: see `mixture_fingerprint`.
        output: the shard's name.
        shard_bytes: bytes of images per shard.
    """
    return hashlib.sha256(f"{decided}:{output}:{shard_bytes}".encode()).hexdigest()


def mixture_fingerprint(
    spec: Mixture, sources: Sequence[IndexedDataset], bounds: dict[str, Bounds], hashes: Mapping[str, str]
) -> str:
    """Hash of everything that determines the shards, except their names and size."""
    mixture = asdict(spec)
    del mixture["texts"]  # they have their own shards
    del mixture["image"]["random_view"]  # `views` has what it decides
    del mixture["accept"]  # which decides only whether there are any
    if spec.image.copy:
        del mixture["image"]["copy"]
    if spec.stride == 1:
        del mixture["stride"]  # both keep the fingerprints of versions without this key
    parts = {
        "format": format_of(spec), "version": __version__, "mixture": mixture,
        "sources": [(s.dataset, sorted(s.bgr), *s.views) for s in sources],
        "bounds": {name: b.to_json() for name, b in bounds.items()},
        "index": dict(hashes),
    }  # fmt: skip
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def index_hashes(index: Index, sources: Sequence[IndexedDataset]) -> dict[str, str]:
    """One hash per data set, over the hashes of its index files."""
    found = {}
    for source in sources:
        digest = hashlib.sha256()
        for path in index.files(source.dataset):
            digest.update(f"{path}:{index.entry(path).footer_sha256}\n".encode())
        found[source.dataset] = digest.hexdigest()
    return found
