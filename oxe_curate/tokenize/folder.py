"""A finished mixture folder: its manifest, statistics and action tokens, checked when it is opened."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import yaml

from oxe_curate import config
from oxe_curate.actions.action_tokens import ActionTokens
from oxe_curate.actions.bounds import Bounds, parse_statistics
from oxe_curate.errors import ConfigError, CurateError, DataError
from oxe_curate.mixture.spec import Mixture
from oxe_curate.storage import Folder
from oxe_curate.tokenize.manifest import MANIFEST, RESOLVED, STATISTICS, TOKENS


@dataclass(frozen=True)
class MixtureFolder:
    """A folder that tokenize finished.

    Attributes:
        statistics: data set's name in the mixture -> its bounds.
        statistics_json: the same as OpenVLA's dictionaries, as in the file.
        hashes: SHA-256 of the files that a run depends on: "statistics", "tokens", "mixture".
    """

    folder: Folder
    manifest: dict[str, Any]
    mixture: Mixture
    statistics: dict[str, Bounds]
    statistics_json: dict[str, Any]
    tokens: ActionTokens
    hashes: dict[str, str]

    @classmethod
    def open(cls, uri: str) -> MixtureFolder:
        """Open a mixture folder (local, gs:// or s3://).

        Raises:
            ConfigError: the folder or its manifest is missing.
            DataError: the manifest is damaged, or a file is missing or differs from its hash in the manifest.
        """
        folder = Folder.of(uri)
        if not folder.exists(MANIFEST):
            if folder.is_local and not folder.exists():
                raise ConfigError(f"{folder}: no such folder; expected the --out of `oxe-curate tokenize`")
            raise ConfigError(
                f"{folder}: {MANIFEST} not found; expected the --out of a finished `oxe-curate tokenize`. "
                "If that command was interrupted, run it again to resume."
            )
        manifest = _manifest(folder)
        data: dict[str, bytes] = {}
        for name in (STATISTICS, TOKENS, RESOLVED):
            recorded = manifest["outputs"].get(name)
            if recorded is None or not folder.exists(name):
                raise DataError(f"{folder}/{name}: file is missing; run tokenize again (finished shards are kept)")
            data[name] = folder.read_bytes(name)
            if hashlib.sha256(data[name]).hexdigest() != recorded["sha256"]:
                raise DataError(
                    f"{folder}/{name}: changed after tokenize wrote it (its hash differs from {MANIFEST}). "
                    "Restore the file, or run tokenize again with --overwrite."
                )
        try:
            mixture = config.build(Mixture, yaml.safe_load(data[RESOLVED]), f"{folder}/{RESOLVED}")
            statistics_json = json.loads(data[STATISTICS])
            return cls(
                folder=folder,
                manifest=manifest,
                mixture=mixture,
                statistics=parse_statistics(statistics_json, f"{folder}/{STATISTICS}"),
                statistics_json=statistics_json,
                tokens=ActionTokens.read(f"{folder}/{TOKENS}"),
                hashes={
                    "statistics": manifest["outputs"][STATISTICS]["sha256"],
                    "tokens": manifest["outputs"][TOKENS]["sha256"],
                    "mixture": manifest["outputs"][RESOLVED]["sha256"],
                },
            )
        except CurateError:
            raise
        except (KeyError, ValueError) as error:
            raise DataError(f"{folder}: damaged: {error}") from None

    @property
    def names(self) -> tuple[str, ...]:
        """The mixture's names of its data sets, in order; `Rows.dataset` indexes them."""
        return tuple(entry.name for entry in self.mixture.datasets)

    def shards(self, split: str) -> list[str]:
        """File names of a split's shards ("train", "validation", "text"), in order."""
        return sorted(
            name for name in self.manifest["outputs"] if name.startswith(f"{split}-") and name.endswith(".parquet")
        )


def _manifest(folder: Folder) -> dict[str, Any]:
    try:
        manifest = json.loads(folder.read_bytes(MANIFEST))
        if isinstance(manifest["outputs"], dict) and isinstance(manifest["rows"]["train"], dict):
            return dict(manifest)
    except (ValueError, KeyError, TypeError):
        pass
    raise DataError(f"{folder}/{MANIFEST}: damaged; delete it and run tokenize again (finished shards are kept)")
