"""A finished mixture folder: its manifest, statistics and action tokens, checked when it is opened."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oxe_curate import config, strict_yaml
from oxe_curate.actions.action_tokens import ActionTokens
from oxe_curate.actions.bounds import Bounds, parse_statistics
from oxe_curate.errors import ConfigError, CurateError, DataError
from oxe_curate.inputs import parse_json
from oxe_curate.mixture.spec import Mixture
from oxe_curate.sealed import CHECKSUM, check_seal
from oxe_curate.storage import Folder
from oxe_curate.tokenize.manifest import MANIFEST, RESOLVED, STATISTICS, TOKENS
from oxe_curate.tokenize.sources import REFERENCE, SOURCES, MixtureSources, read_sources


@dataclass(frozen=True)
class MixtureFolder:
    """A folder that tokenize finished.

    Attributes:
        statistics: data set's name in the mixture -> its bounds.
        statistics_json: the same as OpenVLA's dictionaries, as in the file.
        hashes: SHA-256 of the files that a run depends on: "statistics", "tokens", "mixture".
        moved: root that replaces those of all data sets in `sources` (`--source`).
        compared: `sources` as they were found on the disk.
    """

    folder: Folder
    manifest: dict[str, Any]
    mixture: Mixture
    statistics: dict[str, Bounds]
    statistics_json: dict[str, Any]
    tokens: ActionTokens
    hashes: dict[str, str]
    moved: Folder | None = None
    compared: MixtureSources | None = None

    @classmethod
    def open(cls, uri: str, source: str | Path | None = None) -> MixtureFolder:
        """Open a mixture folder (local, gs:// or s3://).

        Args:
            uri: the folder.
            source: of a mixture by reference: where the data sets are now, if they are not where tokenize read them.

        Raises:
            ConfigError: the folder or its manifest is missing; `source` is given for a mixture that copies its frames.
            DataError: the manifest is damaged, a file is missing or has another size, or a small file differs from its
            hash in the manifest.
        """
        folder = Folder.of(uri)
        if not folder.exists(MANIFEST):
            if folder.is_local and not folder.exists():
                raise ConfigError(f"{folder}: no such folder; expected the --out of `oxe-curate tokenize`")
            raise ConfigError(
                f"{folder}: {MANIFEST} not found; expected the --out of a finished `oxe-curate tokenize`. "
                "If that command was interrupted, run it again to resume."
            )
        manifest = read_manifest(folder)
        if source is not None and not _is_reference(manifest):
            raise ConfigError(f"{folder} has copies of its frames, so it needs no --source; leave the option out")
        _check_complete(folder, manifest)
        data: dict[str, bytes] = {}
        for name in (STATISTICS, TOKENS, RESOLVED):
            data[name] = _read_recorded(folder, manifest, name)
        try:
            mixture = config.build(
                Mixture, strict_yaml.parse_yaml(data[RESOLVED].decode(), f"{folder}/{RESOLVED}"), f"{folder}/{RESOLVED}"
            )
            statistics_json = parse_json(data[STATISTICS], f"{folder}/{STATISTICS}", DataError)
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
                moved=None if source is None else Folder.of(source),
            )
        except CurateError:
            raise
        except (KeyError, ValueError) as error:
            raise DataError(f"{folder}: damaged: {error}") from None

    @property
    def names(self) -> tuple[str, ...]:
        """The mixture's names of its data sets, in order; `Rows.dataset` indexes them."""
        return tuple(entry.name for entry in self.mixture.datasets)

    @property
    def copies(self) -> bool:
        """Whether the shards hold the bytes of the frames; else they refer to `sources`."""
        return not _is_reference(self.manifest)

    @functools.cached_property
    def sources(self) -> MixtureSources:
        """The source shards that the rows refer to; none if the mixture copies its frames.

        Raises:
            DataError: their list is damaged or changed.
        """
        if self.compared is not None:
            return self.compared
        if self.copies:
            return MixtureSources(())
        _read_recorded(self.folder, self.manifest, SOURCES)
        return read_sources(self.folder, self.moved)

    @property
    def swapped(self) -> dict[str, tuple[str, ...]]:
        """Data set -> the roles whose frames its source stores as BGR, of a mixture by reference."""
        return {name: tuple(roles) for name, roles in self.manifest.get("swap", {}).items()}

    def shards(self, split: str) -> list[str]:
        """File names of a split's shards ("train", "validation", "text"), in order."""
        return sorted(
            name for name in self.manifest["outputs"] if name.startswith(f"{split}-") and name.endswith(".parquet")
        )


def _read_recorded(folder: Folder, manifest: dict[str, Any], name: str) -> bytes:
    """A small file whose hash is in the manifest. Raises DataError if it is missing or differs."""
    recorded = manifest["outputs"].get(name)
    if recorded is None:
        raise DataError(f"{folder}/{name}: file is missing; run tokenize again (finished shards are kept)")
    data = folder.read_bytes(name)
    if hashlib.sha256(data).hexdigest() != recorded["sha256"]:
        raise DataError(
            f"{folder}/{name}: changed after tokenize wrote it (its hash differs from {MANIFEST}). "
            "Restore the file, or run tokenize again with --overwrite."
        )
    return data


def _is_reference(manifest: dict[str, Any]) -> bool:
    return manifest.get("images") == REFERENCE


def read_manifest(folder: Folder) -> dict[str, Any]:
    """Read and check the manifest, of this format or an earlier one. Raises DataError if it is damaged."""
    where = f"{folder}/{MANIFEST}"
    try:
        manifest = parse_json(folder.read_bytes(MANIFEST), where, DataError)
        version = manifest["format"]
        if version not in (1, 2, 3):
            raise DataError(
                f"{where}: format {str(version)[:20]} is not supported (expected 2 or 3); use the version "
                "of oxe-curate that wrote it"
            )
        if version > 1 and CHECKSUM not in manifest:
            raise DataError(f"{where}: changed or damaged after it was written (no checksum)")
        check_seal(manifest, where)
        _check_counts(manifest)
        if (version == 3) != _is_reference(manifest) or not all(
            isinstance(role, str) for roles in manifest.get("swap", {}).values() for role in roles
        ):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        raise DataError(f"{where}: damaged. {_AGAIN}") from None
    except DataError as error:
        raise DataError(f"{error}. {_AGAIN}") from None
    return {key: value for key, value in manifest.items() if key != CHECKSUM}


_AGAIN = "Delete it and run tokenize again (finished shards are kept)"


def _check_counts(manifest: dict[str, Any]) -> None:
    """Raise ValueError or the like unless the rows of the shards add up to those of the splits."""
    totals = {split: sum(counts.values()) for split, counts in manifest["rows"].items()}
    listed = dict.fromkeys(totals, 0)
    for name, entry in manifest["outputs"].items():
        shard = "rows" in entry  # in an object store, a shard's footer may be all that was read
        key = "footer_sha256" if shard and "sha256" not in entry else "sha256"
        if not isinstance(entry["bytes"], int) or not isinstance(entry[key], str):
            raise TypeError
        if shard:
            listed[name.partition("-")[0]] += entry["rows"]
    if listed != totals or "train" not in totals:
        raise ValueError


def _check_complete(folder: Folder, manifest: dict[str, Any]) -> None:
    """Compare the manifest with the folder in one listing. Raises DataError if a file is missing or resized."""
    sizes = {name: size for name, is_folder, size in folder.list() if not is_folder}
    outputs = manifest["outputs"]
    missing = sorted(name for name in outputs if name not in sizes)
    other = sorted(name for name in outputs if name in sizes and sizes[name] != outputs[name]["bytes"])
    if not missing and not other:
        return
    first = (missing or other)[0]
    detail = "is missing" if missing else f"has {sizes[first]:,} bytes, expected {outputs[first]['bytes']:,}"
    more = len(missing) + len(other) - 1
    rest = f", and {more} of {len(outputs)} other files are missing or resized" if more else ""
    raise DataError(
        f"{folder}/{first}: {detail}{rest}. Copy the folder again, or run tokenize again, which rebuilds such shards"
    )
