"""tokenize: episode index + mixture -> shuffled Parquet shards. One Beam element per output shard; manifest last."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oxe_curate import __version__, runner
from oxe_curate.errors import ConfigError, DataError
from oxe_curate.filter.duplicates import check_leaks
from oxe_curate.filter.index import Index
from oxe_curate.storage import Folder
from oxe_curate.tokenize import build, samples, shards
from oxe_curate.tokenize.action_tokens import ActionTokens
from oxe_curate.tokenize.bins import ActionBins
from oxe_curate.tokenize.bounds import Bounds, lookup, read_statistics
from oxe_curate.tokenize.build import TokenizeTask
from oxe_curate.tokenize.corpus import count_tokens
from oxe_curate.tokenize.mixture import Mixture, Source, read_mixture, resolve, to_yaml, with_statistics
from oxe_curate.tokenize.numbers import Numbers
from oxe_curate.tokenize.roundtrip import RoundTrip
from oxe_curate.tokenize.token_rules import Rule
from oxe_curate.tokenize.tokenizers import read_vocabulary

FORMAT = 1
MANIFEST, STATISTICS, TOKENS, RESOLVED = (
    "manifest.json", "dataset_statistics.json", "action_tokens.parquet", "mixture.yaml",
)  # fmt: skip
SHARD_BYTES = 256 << 20
RESIZED_BYTES_PER_WORKER = 64 << 20  # decoding takes the time, so more processes pay off much sooner
BYTES_PER_WORKER = 1 << 30
"""Another process takes two seconds to start; one of them writes this much in less than three."""
_SHARD_NAME = re.compile(r"(train|validation)-\d{5}-of-\d{5}\.parquet")


@dataclass(frozen=True)
class TokenizeOptions:
    """What `tokenize` is asked to do besides the mixture.

    Attributes:
        tokenizer: a tokenizer folder or file; None: Llama 2's size and rule, bound to no file.
        rule: "last", "counts" or "reserved". corpus: texts for "counts".
        statistics: a published dataset_statistics.json, instead of the mixture's bounds.
        cards: a folder of the user's own cards, as given to filter.
        shard_bytes: images per output shard; a worker's memory follows it.
        overwrite: replace another finished mixture in the output folder.
    """

    tokenizer: Path | None = None
    rule: Rule = "last"
    corpus: tuple[Path, ...] = ()
    statistics: Path | None = None
    cards: Path | None = None
    shard_bytes: int = SHARD_BYTES
    overwrite: bool = False
    workers: int | None = None
    beam_args: tuple[str, ...] = ()
    progress: bool = True


@dataclass(frozen=True)
class TokenizeResult:
    """What `tokenize` did: its manifest, and how many shards were done now or before."""

    manifest: dict[str, Any]
    shards_done: int
    shards_kept: int
    seconds: float
    tokens: ActionTokens = field(repr=False)


def run_tokenize(
    mixture: str | Path, index: str | Path, out: str | Path, options: TokenizeOptions | None = None
) -> TokenizeResult:
    """Write a mixture's shards, statistics, action tokens and manifest to `out`.

    Shards that an interrupted run of the same command finished are left as they are.

    Raises:
        ConfigError: the mixture, the index or a file of statistics or a tokenizer is wrong.
        DataError: a source shard is not what the index says. StorageError: something cannot be read or written.
    """
    start = time.monotonic()
    options = options or TokenizeOptions()
    spec = with_statistics(read_mixture(Path(mixture)), options.statistics)
    opened = Index.open(Folder.of(index))
    sources = resolve(spec, opened, str(mixture), options.cards)
    drawn = {source.dataset: source.entry.splits for source in sources}
    check_leaks(opened.datasets, drawn, bool(opened.criteria.get("allow_leak")))
    folder = Folder.of(out)
    folder.check_writable()
    folder.sweep()
    tokens = _tokens(spec, options)
    over = spec.bounds.over if spec.bounds.over == "all" else "kept"
    numbers = {s.entry.name: Numbers(opened, s.dataset, over) for s in sources}
    statistics = {s.entry.name: _bounds(spec, numbers[s.entry.name], s, Path(mixture).parent) for s in sources}
    tasks = plan(spec, opened, sources, statistics, folder, options.shard_bytes)
    done = {task.output for task in tasks if _is_done(task)}
    _check_out(folder, {task.output for task in tasks}, done, options.overwrite)
    todo = [task for task in tasks if task.output not in done]
    if todo:
        folder.remove(MANIFEST)
    worth = BYTES_PER_WORKER if spec.image.size is None else RESIZED_BYTES_PER_WORKER
    runner.run(
        todo, build.run, title="tokenize", workers=options.workers, bytes_per_worker=worth,
        beam_args=options.beam_args, progress=options.progress,
    )  # fmt: skip
    manifest = _finish(spec, opened, sources, statistics, numbers, tokens, tasks, folder)
    return TokenizeResult(manifest, len(todo), len(tasks) - len(todo), time.monotonic() - start, tokens)


def _tokens(spec: Mixture, options: TokenizeOptions) -> ActionTokens:
    bins = ActionBins(spec.bins)
    if options.tokenizer is None:
        if options.rule != "last" or options.corpus:
            raise ConfigError(f"--rule {options.rule} needs a tokenizer: name its folder or file with --tokenizer")
        return ActionTokens.default(bins)
    vocabulary = read_vocabulary(options.tokenizer)
    counts = None
    if options.rule == "counts":
        if not options.corpus:
            raise ConfigError("--rule counts needs texts to count tokens in: name files or folders with --corpus")
        counts = count_tokens(vocabulary, options.corpus, progress=options.progress)
    return ActionTokens.build(vocabulary, options.rule, bins, counts)


def _bounds(spec: Mixture, numbers: Numbers, source: Source, base: Path) -> Bounds:
    over = spec.bounds.over
    name = source.entry.name
    if over not in ("kept", "all"):
        path = Path(over) if Path(over).is_absolute() or Path(over).exists() else base / over
        return lookup(read_statistics(path), name, source.aliases)
    try:
        fitted = Bounds.fit(
            numbers.column("action"), low=spec.bounds.low, high=spec.bounds.high, proprio=numbers.column("proprio")
        )
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    return replace(fitted, num_trajectories=numbers.episodes)


def plan(
    spec: Mixture, index: Index, sources: Sequence[Source], bounds: dict[str, Bounds], out: Folder, shard_bytes: int
) -> list[TokenizeTask]:
    """Decide which episodes go to which output shard: one task each. Reads ids and sizes alone."""
    found: list[tuple[int, str, NDArray[np.int64], NDArray[np.bool_], NDArray[np.float64], list[str]]] = []
    for number, source in enumerate(sources):
        for path in index.files(source.dataset):
            if _split(path) not in source.entry.splits:
                continue
            table = index.table(
                path, ["episode_id", "duplicate_of", "kept", "num_steps", "source_steps", "camera_spans"]
            )
            rows = np.flatnonzero(np.asarray(table["kept"]))
            if len(rows) == 0:
                continue
            ids = table["episode_id"].take(rows).to_pylist()
            cost = _expected_bytes(table, spec, source.entry.weight)[rows]
            # a copy goes where its original goes: never one to train and the other to validation
            originals = [c or n for n, c in zip(ids, table["duplicate_of"].take(rows).to_pylist(), strict=True)]
            found.append((number, path, rows, samples.held_out(originals, spec.validation), cost, ids))
    if not found:
        raise ConfigError(f"{index.folder}: the mixture's splits hold no kept episode")
    decided = _fingerprint(spec, index, sources, bounds)
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


def _expected_bytes(table: Any, spec: Mixture, weight: float) -> NDArray[np.float64]:
    """Bytes of images that each episode is expected to contribute, float64 (episodes,)."""
    steps = np.asarray(table["num_steps"])
    stored = samples.stored_frames(steps, spec.window, spec.stride) * weight
    if spec.image.size is not None:  # a JPEG of quality 95 without subsampling takes at most a byte a pixel or so
        frame = spec.image.size**2 * len(spec.image.cameras)
        return np.asarray(stored * frame)
    lengths = np.zeros(len(table))
    for row, spans in enumerate(table["camera_spans"].to_pylist()):
        lengths[row] = sum(span["length"] for role, span in spans if role in spec.image.cameras)
    return np.asarray(lengths / np.maximum(np.asarray(table["source_steps"]), 1) * stored)


def _fingerprint(spec: Mixture, index: Index, sources: Sequence[Source], bounds: dict[str, Bounds]) -> str:
    """Hash of everything that decides every shard."""
    mixture = asdict(spec)
    if spec.stride == 1:
        del mixture["stride"]  # as before there was one: finished shards stay good
    parts = {
        "format": FORMAT, "version": __version__, "mixture": mixture,
        "sources": [(s.dataset, sorted(s.bgr)) for s in sources],
        "bounds": {name: b.to_json() for name, b in bounds.items()},
        "index": _index_hashes(index, sources),
    }  # fmt: skip
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _index_hashes(index: Index, sources: Sequence[Source]) -> dict[str, str]:
    """One hash per data set, over its index files."""
    found = {}
    for source in sources:
        digest = hashlib.sha256()
        for path in index.files(source.dataset):
            digest.update(hashlib.sha256(index.folder.read_bytes(path)).digest())
        found[source.dataset] = digest.hexdigest()
    return found


def _is_done(task: TokenizeTask) -> bool:
    if not task.out.exists(task.output):
        return False
    try:
        return bool(shards.read_meta(task.out, task.output).get("fingerprint") == task.fingerprint)
    except DataError:
        return False


def _check_out(out: Folder, planned: set[str], done: set[str], overwrite: bool) -> None:
    """Remove shards of an unfinished other mixture. Raises ConfigError if a finished one is there."""
    present = [name for name, folder, _ in out.list() if not folder and _SHARD_NAME.fullmatch(name)]
    if done >= set(present):
        return
    if out.exists(MANIFEST) and not overwrite:
        raise ConfigError(f"{out} holds another finished mixture. Use another --out, or --overwrite to replace it.")
    out.remove(MANIFEST)
    for name in present:
        if name not in planned:
            out.remove(name)


def _finish(
    spec: Mixture,
    index: Index,
    sources: Sequence[Source],
    statistics: dict[str, Bounds],
    numbers: dict[str, Numbers],
    tokens: ActionTokens,
    tasks: Sequence[TokenizeTask],
    out: Folder,
) -> dict[str, Any]:
    """Write the files beside the shards, then the manifest."""
    text = json.dumps({name: b.to_json() for name, b in statistics.items()}, indent=2) + "\n"
    out.publish_bytes(STATISTICS, text.encode())
    out.publish_bytes(RESOLVED, to_yaml(spec).encode())
    tokens.write(f"{out}/{TOKENS}")
    rows: dict[str, dict[str, int]] = {"train": {}, "validation": {}}
    frames: dict[str, dict[str, int]] = {}
    names = [*(task.output for task in tasks), STATISTICS, RESOLVED, TOKENS]
    with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter
        outputs = dict(zip(names, pool.map(lambda name: _hash(out, name), names), strict=True))
    for task in tasks:
        meta = shards.read_meta(out, task.output)
        split = "validation" if task.validation else "train"
        for name, count in meta["counts"].items():
            rows[split][name] = rows[split].get(name, 0) + count
        for name, count in meta.get("frames", {}).items():
            frames.setdefault(split, {})[name] = frames.get(split, {}).get(name, 0) + count
        outputs[task.output] = {"rows": meta["rows"], **outputs[task.output]}
    manifest = {
        "format": FORMAT,
        "software": f"oxe-curate {__version__}",
        "mixture": spec.name,
        "seed": spec.seed,
        "rows": rows,
        **({"frames": frames} if spec.window > 1 else {}),
        "share": _shares(sources, index, rows["train"]),
        "round_trip": _round_trip(spec, numbers, statistics),
        "bins": spec.bins,
        "tokens": {
            "rule": tokens.rule,
            "tokenizer_sha256": tokens.tokenizer_sha256,
            "vocabulary_size": tokens.vocabulary_size,
        },
        "inputs": {"source": index.source.uri, "index": _index_hashes(index, sources)},
        "outputs": outputs,
    }
    out.publish_bytes(MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
    return manifest


def _hash(out: Folder, name: str) -> dict[str, Any]:
    if out.is_local:
        with out.path(name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
    else:
        digest = hashlib.sha256(out.read_bytes(name))
    return {"bytes": out.size(name), "sha256": digest.hexdigest()}


def _shares(sources: Sequence[Source], index: Index, rows: dict[str, int]) -> dict[str, dict[str, float]]:
    """Asked share (weight times kept steps of the drawn splits) beside the drawn one, per data set."""
    asked = {s.entry.name: s.entry.weight * _steps(index, s) for s in sources}
    total, drawn = sum(asked.values()) or 1, sum(rows.values()) or 1
    return {
        name: {"weight": s.entry.weight, "asked": asked[name] / total, "drawn": rows.get(name, 0) / drawn}
        for s in sources
        for name in [s.entry.name]
    }


def _steps(index: Index, source: Source) -> int:
    files = [path for path in index.files(source.dataset) if _split(path) in source.entry.splits]
    tables = (index.table(path, ["kept", "num_steps"]) for path in files)
    return sum(int(np.asarray(t["num_steps"])[np.asarray(t["kept"])].sum()) for t in tables)


def _split(path: str) -> str:
    """The split that an index file belongs to."""
    return path.rsplit("/", 1)[-1].rsplit("-", 3)[0]


def _round_trip(spec: Mixture, numbers: dict[str, Numbers], bounds: dict[str, Bounds]) -> dict[str, dict[str, Any]]:
    """What binning loses, per data set, in metres and degrees."""
    report = {}
    for name, found in numbers.items():
        check = RoundTrip(bounds[name], ActionBins(spec.bins))
        for block in found.column("action"):
            check.add(block)
        report[name] = check.result()
    return report
