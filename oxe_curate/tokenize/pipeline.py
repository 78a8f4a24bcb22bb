"""tokenize: episode index + mixture -> shuffled Parquet shards. One Beam element per output shard; manifest last."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from oxe_curate.actions.action_tokens import ActionTokens
from oxe_curate.actions.bins import ActionBins
from oxe_curate.actions.bounds import Bounds, lookup, read_statistics
from oxe_curate.actions.token_rules import TokenRule
from oxe_curate.actions.tokenizers import read_vocabulary
from oxe_curate.beam import runner
from oxe_curate.errors import ConfigError, DataError, StorageError
from oxe_curate.index.numbers import Numbers
from oxe_curate.index.store import Index
from oxe_curate.mixture.check import refuse
from oxe_curate.mixture.data_checks import bounds_path
from oxe_curate.mixture.kinds import KINDS
from oxe_curate.mixture.problems import Problem
from oxe_curate.mixture.published import resolve_mixture
from oxe_curate.mixture.spec import ImageSpec, IndexedDataset, Mixture, read_mixture, resolve, with_statistics
from oxe_curate.mixture.texts import open_texts
from oxe_curate.outputs import claim_output, hold_output
from oxe_curate.storage import Folder
from oxe_curate.tokenize import build, references, text_build
from oxe_curate.tokenize.build import Built
from oxe_curate.tokenize.corpus import count_tokens
from oxe_curate.tokenize.fingerprints import index_hashes
from oxe_curate.tokenize.manifest import MANIFEST, References, finish, hashes_of_written
from oxe_curate.tokenize.plan import DEFAULT_SHARD_BYTES, plan_shards
from oxe_curate.tokenize.planned import TokenizeJob, TokenizeTask
from oxe_curate.tokenize.resume import resume
from oxe_curate.tokenize.sources import compare_sources
from oxe_curate.tokenize.text_build import TextTask, plan_texts

_RESIZED_BYTES_PER_WORKER = 64 << 20  # decoding dominates, so more processes pay off much sooner
_BYTES_PER_WORKER = 1 << 30  # a process takes two seconds to start; it writes this much in less than three
_REFERENCE_BYTES_PER_WORKER = 32 << 20  # a process takes two seconds to start; it writes this much in as many
_THREADS = 2


_AT_ONCE = 2  # data sets whose numbers are read at once: numpy and pyarrow release the GIL for most of the time


@dataclass(frozen=True)
class TokenizeOptions:
    """Options of `run_tokenize`.

    Attributes:
        tokenizer: a tokenizer folder or file; None: Llama 2's size and rule, tied to no file.
        rule: "last", "counts" or "reserved".
        corpus: text files or folders for rule "counts".
        statistics: a published dataset_statistics.json that replaces the mixture's bounds.
        cards: a folder of the user's own cards, as given to filter.
        source: root of all data sets, if they were moved or are read from a mirror.
        check_records: compare the data of each record that is drawn from with its checksum; None: see `SourceRecords`,
            and not for a mixture by reference, which reads no record.
        verify: read every byte of finished shards in an object store; local ones always are.
        shard_bytes: bytes of images per output shard; a worker's memory is proportional to it.
        overwrite: replace another finished mixture, or its action tokens, in the output folder.
        workers: number of processes; None: as many as the work is worth.
        beam_args: options for Beam.
        progress: whether to show a progress bar.
    """

    tokenizer: Path | None = None
    rule: TokenRule = "last"
    corpus: tuple[Path, ...] = ()
    statistics: Path | None = None
    cards: Path | None = None
    source: str | None = None
    check_records: bool | None = None
    verify: bool = False
    shard_bytes: int = DEFAULT_SHARD_BYTES
    overwrite: bool = False
    workers: int | None = None
    beam_args: tuple[str, ...] = ()
    progress: bool = True


@dataclass(frozen=True)
class TokenizeResult:
    """The outcome of `tokenize`.

    Attributes:
        shards_done, shards_kept: that this run wrote, and found finished.
        damaged: shards that it found damaged and wrote again.
        warnings: what `mixture check` warns of in the data, and that no row is for validation.
    """

    manifest: dict[str, Any]
    shards_done: int
    shards_kept: int
    seconds: float
    tokens: ActionTokens = field(repr=False)
    damaged: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def run_tokenize(
    mixture: str | Path, index: str | Path, out: str | Path, options: TokenizeOptions | None = None
) -> TokenizeResult:
    """Write a mixture's shards, statistics, action tokens and manifest to `out`.

    Shards that an interrupted run of the same command finished are kept if they are undamaged.

    Args:
        mixture: a mixture file, or the name of a published mixture.
        index: folder that filter wrote.
        out: output folder.
        options: None for the defaults.

    Raises:
        ConfigError: the mixture, the index, the statistics or the tokenizer is wrong; `out` contains another mixture.
        DataError: a source shard is not the one that was filtered. CorruptError: a record of it is damaged.
        StorageError: something cannot be read or written.
    """
    start = time.monotonic()
    options = options or TokenizeOptions()
    path = resolve_mixture(mixture)
    spec = with_statistics(read_mixture(path), options.statistics)
    opened = Index.open(Folder.of(index), options.source)
    roots = dict.fromkeys(opened.source_of(dataset).uri for dataset in opened.datasets)
    for root in roots or (opened.source.uri,):
        claim_output(out, "mixture", {"index": index, "source": root})
    with hold_output(out, "mixture"):
        return _tokenize(spec, opened, path, Folder.of(out), options, start)


def _tokenize(
    spec: Mixture, opened: Index, path: Path, folder: Folder, options: TokenizeOptions, start: float
) -> TokenizeResult:
    sources = resolve(spec, opened, str(path), options.cards)
    texts = open_texts(spec.texts, path.parent, str(path))
    problems = refuse(path, opened, options.cards, options.statistics)
    folder.check_writable()
    folder.sweep()
    tokens = _tokens(spec, options)
    over = spec.bounds.over if spec.bounds.over == "all" else "kept"
    numbers = {s.entry.name: Numbers(opened, s.dataset, over) for s in sources}
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        fitted = pool.map(lambda s: _bounds(spec, numbers[s.entry.name], s, path.parent), sources)
        statistics = dict(zip(numbers, fitted, strict=True))
    hashes = index_hashes(opened, sources)
    plan = plan_shards(spec, opened, sources, statistics, folder, options.shard_bytes, hashes, options.check_records)
    text_tasks = plan_texts(spec, texts, folder, options.shard_bytes)
    planned: list[TokenizeTask | TextTask] = [*plan.tasks, *text_tasks]
    found = resume(folder, planned, tokens, options.overwrite, options.verify)
    todo, kept, known = set(found.todo), len(planned) - len(found.todo), dict(found.found.hashes)
    if found.complete:
        seconds, warnings = time.monotonic() - start, _warnings(spec, problems, found.manifest)
        return TokenizeResult(found.manifest, 0, kept, seconds, tokens, (), warnings)
    referring, unseen = None, tuple[str, ...]()
    if not spec.image.copy:
        shards, unseen = compare_sources(opened, plan.sources, options.progress)
        referring = References(shards, plan.copying, options.shard_bytes)
    if todo:
        _check_roots(opened, [s for s in sources if _reads_source(spec, opened, s, options)])
        folder.remove(MANIFEST)
        job, located = plan.write(folder, found.todo)
        del plan
        try:
            written = runner.run_tasks(
                [*located, *(task for task in text_tasks if task.output in todo)],
                functools.partial(_work, job), title="tokenize", workers=options.workers,
                bytes_per_worker=bytes_per_worker(spec.image), threads=shards_at_once(spec.image),
                beam_args=options.beam_args, progress=options.progress,
            )  # fmt: skip
        finally:
            folder.remove(job.plan)
        known |= hashes_of_written(folder, written, options.verify)
    manifest = finish(
        spec, opened, sources, statistics, numbers, tokens, planned, hashes, texts, folder, known, options.verify,
        referring,
    )  # fmt: skip
    return TokenizeResult(
        manifest, len(todo), kept, time.monotonic() - start, tokens, tuple(found.found.damaged),
        (*unseen, *_warnings(spec, problems, manifest)),
    )  # fmt: skip


def bytes_per_worker(image: ImageSpec) -> int:
    """Bytes to write that justify one more process."""
    if not image.copy:
        return _REFERENCE_BYTES_PER_WORKER
    return _BYTES_PER_WORKER if image.size is None else _RESIZED_BYTES_PER_WORKER


def shards_at_once(image: ImageSpec) -> int:
    """Shards that a process builds at once, in threads: reading, hashing and writing encoded frames needs no GIL.

    Resizing takes it for each of many small products: two threads are hardly faster than one. A machine of two cores
    is better off with them all the same, since a second process takes seconds to start and as much memory again.
    """
    if not image.copy or (image.size is not None and runner.usable_cores() > _THREADS):
        return 1
    return _THREADS


def _reads_source(spec: Mixture, index: Index, source: IndexedDataset, options: TokenizeOptions) -> bool:
    """Whether the shards of a data set are read; those of a mixture by reference only if something is not known."""
    return spec.image.copy or bool(options.check_records) or index.datasets[source.dataset].frames != "exact"


def _warnings(spec: Mixture, problems: Sequence[Problem], manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Findings in the data, without those of the cards, and that no row is for validation."""
    lines = [f"{p.message}. {p.advice} [{p.code}]" for p in problems if KINDS[p.code].needs == "index"]
    accepted = any(entry.finding == "no_held_out" for entry in spec.accept)
    if not sum(manifest["rows"]["validation"].values()) and not accepted:
        lines = [line for line in lines if not line.endswith("[no_held_out]")]
        lines.append(
            f"no row is for validation: validation {spec.validation:g} held out no episode. Raise `validation` in the "
            "mixture, or evaluate on another split. [no_held_out]"
        )
    return tuple(lines)


def _check_roots(index: Index, sources: Sequence[IndexedDataset]) -> None:
    """Raise StorageError if the folder of a data set is not where it was."""
    for root in dict.fromkeys(index.source_of(source.dataset) for source in sources):
        if not root.exists():
            raise StorageError(
                f"{root}: folder not found; the data sets were filtered from it. Give their new folder with "
                f"--source, or set `source` in {index.folder}/index.json"
            )


def _work(job: TokenizeJob, task: TokenizeTask | TextTask) -> Built:
    if isinstance(task, TextTask):
        return text_build.build_text_shard(task)
    return build.build_shard(job, task) if job.mixture.image.copy else references.build_reference(job, task)


def _tokens(spec: Mixture, options: TokenizeOptions) -> ActionTokens:
    bins = ActionBins(spec.bins)
    if options.tokenizer is None:
        if options.rule != "last" or options.corpus:
            raise ConfigError(f"--rule {options.rule} needs a tokenizer; give its folder or file with --tokenizer")
        return ActionTokens.default(bins)
    vocabulary = read_vocabulary(options.tokenizer)
    counts = None
    if options.rule == "counts":
        if not options.corpus:
            raise ConfigError("--rule counts needs text to count tokens in; give files or folders with --corpus")
        counts = count_tokens(vocabulary, options.corpus, progress=options.progress)
    return ActionTokens.build(vocabulary, options.rule, bins, counts)


def _bounds(spec: Mixture, numbers: Numbers, source: IndexedDataset, base: Path) -> Bounds:
    over = spec.bounds.over
    name = source.entry.name
    if over not in ("kept", "all"):
        return lookup(read_statistics(bounds_path(over, base)), name, source.aliases)
    try:
        fitted = Bounds.fit(
            numbers.column("action"), low=spec.bounds.low, high=spec.bounds.high, proprio=numbers.column("proprio")
        )
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    return replace(fitted, num_trajectories=numbers.episodes)
