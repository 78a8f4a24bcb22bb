"""materialize: a mixture by reference -> the mixture that tokenize would have written with copies of the frames.

Shard by shard: every column but the images is taken as it is, and the frames are read from the source.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from oxe_curate.beam import runner
from oxe_curate.errors import ConfigError
from oxe_curate.mixture.spec import mixture_yaml
from oxe_curate.outputs import claim_output, hold_output
from oxe_curate.storage import Folder
from oxe_curate.tokenize import shards
from oxe_curate.tokenize.copy_build import MaterializeJob, MaterializeTask, materialize_shard
from oxe_curate.tokenize.fingerprints import TOKENIZE_FORMAT, plan_id, shard_fingerprint
from oxe_curate.tokenize.folder import MixtureFolder
from oxe_curate.tokenize.manifest import (
    MANIFEST,
    REFERENCE_KEYS,
    RESOLVED,
    STATISTICS,
    TOKENS,
    describe_outputs,
    hashes_of_written,
    publish_manifest,
)
from oxe_curate.tokenize.pipeline import TokenizeResult, bytes_per_worker, shards_at_once
from oxe_curate.tokenize.resume import resume


@dataclass(frozen=True)
class MaterializeOptions:
    """Options of `run_materialize`; each is that of `TokenizeOptions`.

    Attributes:
        source: root of all data sets, if they have moved since tokenize.
    """

    source: str | None = None
    check_records: bool | None = None
    verify: bool = False
    overwrite: bool = False
    workers: int | None = None
    beam_args: tuple[str, ...] = ()
    progress: bool = True


def run_materialize(mixture: str | Path, out: str | Path, options: MaterializeOptions | None = None) -> TokenizeResult:
    """Write a mixture with copies of its frames, equal byte for byte to what tokenize writes with `copy: true`.

    Shards that an interrupted run finished are kept if they are undamaged.

    Args:
        mixture: a folder that tokenize wrote with `image: {copy: false}`.
        out: output folder.
        options: None for the defaults.

    Raises:
        ConfigError: the mixture is no mixture by reference; `out` contains another mixture.
        DataError: the mixture is damaged; a source shard is missing or has changed. CorruptError: a record of it is
            damaged. StorageError: something cannot be read or written.
    """
    start = time.monotonic()
    options = options or MaterializeOptions()
    claim_output(out, "mixture", {"mixture": mixture})
    opened = MixtureFolder.open(str(mixture), options.source)
    if opened.copies:
        raise ConfigError(f"{opened.folder}: has copies of its frames already; expected a mixture by reference")
    for root in dict.fromkeys(row.root.uri for row in opened.sources):
        claim_output(out, "mixture", {"mixture": mixture, "source": root})
    with hold_output(out, "mixture"):
        return _materialize(opened, Folder.of(out), options, start)


def _materialize(opened: MixtureFolder, folder: Folder, options: MaterializeOptions, start: float) -> TokenizeResult:
    folder.check_writable()
    folder.sweep()
    planned = _plan(opened, folder)
    found = resume(folder, planned, opened.tokens, options.overwrite, options.verify)
    todo, kept = set(found.todo), len(planned) - len(found.todo)
    if found.complete:
        return TokenizeResult(found.manifest, 0, kept, time.monotonic() - start, opened.tokens)
    known = dict(found.found.hashes)
    if todo:
        spec = opened.mixture
        sources = opened.sources.compare(options.progress)
        folder.remove(MANIFEST)
        image = replace(spec.image, copy=True)
        actions = spec.window + spec.chunk - 1
        job = MaterializeJob(opened.folder, sources, opened.swapped, image, spec.window, actions, options.check_records)
        written = runner.run_tasks(
            [task for task in planned if task.output in todo], functools.partial(materialize_shard, job),
            title="materialize", workers=options.workers, bytes_per_worker=bytes_per_worker(job.image),
            threads=shards_at_once(job.image), beam_args=options.beam_args, progress=options.progress,
        )  # fmt: skip
        known |= hashes_of_written(folder, written, options.verify)
    manifest = _finish(opened, planned, folder, known, options.verify)
    seconds = time.monotonic() - start
    return TokenizeResult(manifest, len(todo), kept, seconds, opened.tokens, tuple(found.found.damaged))


def _plan(opened: MixtureFolder, out: Folder) -> list[MaterializeTask]:
    """A task for each shard, in the order of the manifest."""
    entries = {name: entry for name, entry in opened.manifest["outputs"].items() if "rows" in entry}
    shard_bytes, copying = opened.manifest["shard_bytes"], opened.manifest["copying"]
    mean = sum(entry["rows"] for entry in entries.values()) / max(len(entries), 1) or 1
    tasks = []
    for name, entry in entries.items():
        if name.startswith("text-"):  # the same files in both mixtures
            fingerprint = shards.read_shard_meta(opened.folder, name)["fingerprint"]
        else:
            fingerprint = shard_fingerprint(copying, name, shard_bytes)
        size = max(int(shard_bytes * entry["rows"] / mean), 1)
        tasks.append(MaterializeTask(out, name, size, fingerprint, entry["footer_sha256"]))
    return tasks


def _finish(
    opened: MixtureFolder, tasks: Sequence[MaterializeTask], out: Folder, known: Mapping[str, Any], verify: bool
) -> dict[str, Any]:
    """Write the other files, and the manifest last."""
    spec, recorded = opened.mixture, opened.manifest
    out.publish_bytes(RESOLVED, mixture_yaml(replace(spec, image=replace(spec.image, copy=True))).encode())
    for name in (STATISTICS, TOKENS):
        out.publish_bytes(name, opened.folder.read_bytes(name))
    small = (STATISTICS, RESOLVED, TOKENS)
    rows, frames, outputs = describe_outputs(out, tasks, small, known, verify, "text" in recorded["rows"])
    manifest = {key: value for key, value in recorded.items() if key not in REFERENCE_KEYS}
    manifest |= {"format": TOKENIZE_FORMAT, "plan": plan_id(tasks), "rows": rows, "outputs": outputs}
    if frames:
        manifest["frames"] = frames
    if opened.moved is not None:
        manifest["inputs"] = _moved(recorded["inputs"], opened.moved, opened.names)
    publish_manifest(out, manifest)
    return manifest


def _moved(inputs: Mapping[str, Any], root: Folder, names: Sequence[str]) -> dict[str, Any]:
    """The manifest's inputs with the root of --source, as tokenize writes them with that option."""
    moved = {} if root.uri == inputs["source"] else dict.fromkeys(names, root.uri)
    found: dict[str, Any] = {}
    for key, value in inputs.items():
        if key != "sources":
            found[key] = value
        if key == "source" and moved:
            found["sources"] = moved
    return found
