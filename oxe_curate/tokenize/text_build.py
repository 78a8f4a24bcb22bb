"""Build the text shards: draw image-text rows by weight, resize their images, shuffle, write."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from oxe_curate import __version__
from oxe_curate.errors import DataError
from oxe_curate.index import images
from oxe_curate.index.images import EncodedFrames
from oxe_curate.index.spool import Spool
from oxe_curate.mixture import sampling
from oxe_curate.mixture.spec import ImageSpec, Mixture
from oxe_curate.mixture.texts import TextFile, TextSource
from oxe_curate.storage import Folder
from oxe_curate.tokenize import shards
from oxe_curate.tokenize.build import Built
from oxe_curate.tokenize.fingerprints import TOKENIZE_FORMAT

_BATCH = 256  # rows to read at once
_UNITS = 4  # pieces of the sources per shard, at least approximately


@dataclass(frozen=True)
class TextUnit:
    """Rows of a source that go to the same shard: a row group, or part of one.

    Attributes:
        source: number of the source.
        file: path relative to the source's folder.
        file_rows: rows of the whole file.
        group: the row group.
        first: number of its first row in the file.
        start, stop: rows of the group.
    """

    source: int
    file: str
    file_rows: int
    group: int
    first: int
    start: int
    stop: int


@dataclass(frozen=True)
class TextTask:
    """Everything a worker needs to build one text shard. The sources have no `files`."""

    out: Folder
    output: str
    sources: tuple[TextSource, ...]
    units: tuple[TextUnit, ...]
    image: ImageSpec
    seed: int
    size: int
    fingerprint: str

    @property
    def name(self) -> str:
        """The output file, for messages."""
        return f"{self.out}/{self.output}"


def plan_texts(spec: Mixture, sources: Sequence[TextSource], out: Folder, shard_bytes: int) -> list[TextTask]:
    """Assign the rows to text shards, one task each."""
    found = [
        unit
        for number, source in enumerate(sources)
        for file in source.files
        for unit in _units(number, source, file, spec.image.size, shard_bytes)
    ]
    if not found:
        return []
    names = [f"{sources[u.source].entry.name}/{u.file}:{u.group}:{u.start}" for u, _ in found]
    mixed = sampling.order(sampling.episode_hashes(spec.seed, names))
    costs = np.array([cost for _, cost in found])[mixed]
    total = float(costs.sum())
    count = max(1, -int(-total // shard_bytes))
    # as evenly as the pieces allow
    target = np.minimum((np.cumsum(costs) - costs / 2) / total * count, count - 1).astype(int)
    decided = {
        "format": TOKENIZE_FORMAT, "version": __version__, "seed": spec.seed, "shard_bytes": shard_bytes,
        "image": [spec.image.size, spec.image.quality],
        "texts": [
            [source.entry.name, source.entry.weight, asdict(source.columns), source.sha256] for source in sources
        ],
    }  # fmt: skip
    slim = tuple(TextSource(s.entry, s.folder, s.columns, ()) for s in sources)
    tasks = []
    for shard in range(count):
        name = f"text-{shard:05d}-of-{count:05d}.parquet"
        here = target == shard
        digest = hashlib.sha256(json.dumps({**decided, "name": name}, sort_keys=True).encode()).hexdigest()
        tasks.append(
            TextTask(
                out=out, output=name, sources=slim, units=tuple(found[i][0] for i in mixed[here].tolist()),
                image=spec.image, seed=spec.seed, size=max(int(costs[here].sum()), 1), fingerprint=digest,
            )
        )  # fmt: skip
    return tasks


def _units(
    number: int, source: TextSource, file: TextFile, size: int | None, shard_bytes: int
) -> Iterator[tuple[TextUnit, float]]:
    """The pieces of a file, each with its expected bytes of images."""
    first = 0
    for group, (rows, stored) in enumerate(file.groups):
        cost = (stored if size is None else rows * size**2) * source.entry.weight
        parts = min(rows, max(1, -int(-cost * _UNITS // shard_bytes)))
        cuts = np.linspace(0, rows, parts + 1).astype(int).tolist() if rows else []
        for start, stop in itertools.pairwise(cuts):
            yield TextUnit(number, file.path, file.rows, group, first, start, stop), cost * (stop - start) / rows
        first += rows


def build_text_shard(task: TextTask) -> Built:
    """Build and publish one text shard. Raises DataError or StorageError, naming the file and the row."""
    drawn = _Drawn(Spool(task.out.path() if task.out.is_local else None))
    counts: dict[str, int] = {}
    for unit in task.units:
        source = task.sources[unit.source]
        before = len(drawn.sample_id)
        for rows, batch in _read(source, unit):
            _draw(drawn, task, source, unit, rows, batch)
        if more := len(drawn.sample_id) - before:
            counts[source.entry.name] = counts.get(source.entry.name, 0) + more
    table = pa.table(
        {
            "sample_id": pa.array(drawn.sample_id, pa.string()),
            "dataset": pa.array(drawn.dataset, pa.string()),
            "question": pa.array(drawn.question, pa.string()),
            "answer": pa.array(drawn.answer, pa.string()),
        }
    )
    place = np.array(drawn.place, np.int64).reshape(-1, 2)
    frames = EncodedFrames([drawn.spool], np.zeros(len(place), np.int64), place[:, 0], place[:, 1])
    keys = np.concatenate(drawn.keys) if drawn.keys else np.empty(0, np.uint64)
    meta = {"fingerprint": task.fingerprint, "counts": counts}
    shards.write_texts(
        task.out, task.output, table, frames, np.array(drawn.frame, np.int64), sampling.order(keys), meta
    )
    return Built(steps_seen=len(keys))


@dataclass
class _Drawn:
    """Rows under construction; `place` is (offset, length) of each image, `frame` the image of each row."""

    spool: Spool
    sample_id: list[str] = field(default_factory=list)
    dataset: list[str] = field(default_factory=list)
    question: list[str] = field(default_factory=list)
    answer: list[str] = field(default_factory=list)
    keys: list[NDArray[np.uint64]] = field(default_factory=list)
    frame: list[int] = field(default_factory=list)
    place: list[tuple[int, int]] = field(default_factory=list)


def _read(source: TextSource, unit: TextUnit) -> Iterator[tuple[NDArray[np.int64], Any]]:
    """Yield (row numbers in the file, batch) of a unit, at most `_BATCH` rows at a time."""
    try:
        with source.folder.open(unit.file) as opened, pq.ParquetFile(opened) as parquet:
            at = 0
            for batch in parquet.iter_batches(_BATCH, row_groups=[unit.group], columns=source.columns.names):
                batch.validate(full=True)  # texts that are not UTF-8
                start, stop = max(unit.start - at, 0), min(unit.stop - at, len(batch))
                if start < stop:
                    yield unit.first + at + np.arange(start, stop), batch.slice(start, stop - start)
                at += len(batch)
                if at >= unit.stop:
                    break
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise DataError(f"{source.folder}/{unit.file}: damaged ({error})") from None


def _draw(
    drawn: _Drawn, task: TextTask, source: TextSource, unit: TextUnit, rows: NDArray[np.int64], batch: Any
) -> None:
    """Draw a batch's rows as often as the weight says."""
    name, entry = f"{source.entry.name}/{unit.file}", source.entry
    copies = sampling.copies(entry.weight, task.seed, name, unit.file_rows)[rows]
    taken = np.flatnonzero(copies)
    if len(taken) == 0:
        return
    batch = batch.take(pa.array(taken))
    columns = source.columns

    def where(i: int) -> str:
        return f"{source.folder}/{unit.file}: row {rows[taken[i]]}"

    answers = _texts(batch[columns.answer], columns.answer, where, empty=False)
    questions = _texts(batch[columns.question], columns.question, where) if columns.question else [""] * len(taken)
    places: list[tuple[int, int]] = []
    for i, data in enumerate(_bytes(batch[columns.image])):
        if not data:
            raise DataError(f"{where(i)}: no image bytes; images given by a path must be embedded")
        try:
            encoded = images.encode_picture(data, task.image.size, task.image.quality)
        except ValueError as error:
            raise DataError(f"{where(i)}: cannot decode the image ({error}); remove the row") from None
        places.append((drawn.spool.add(encoded), len(encoded)))
    repeats: list[tuple[int, int]] = []
    for i, (row, times) in enumerate(zip(rows[taken].tolist(), copies[taken].tolist(), strict=True)):
        drawn.place.append(places[i])
        for copy in range(times):
            repeats.append((row, copy))
            drawn.sample_id.append(f"{name}/{row:08d}#{copy}" if copy else f"{name}/{row:08d}")
            drawn.dataset.append(entry.name)
            drawn.question.append(questions[i])
            drawn.answer.append(answers[i])
            drawn.frame.append(len(drawn.place) - 1)
    steps, numbers = np.array(repeats, np.int64).T
    drawn.keys.append(sampling.order_keys(task.seed, name, unit.file_rows, steps, numbers))


def _bytes(column: Any) -> list[bytes | None]:
    inner = column.field("bytes") if pa.types.is_struct(column.type) else column
    valid = column.is_valid().to_pylist()
    return [data if v else None for data, v in zip(inner.to_pylist(), valid, strict=True)]


def _texts(column: Any, name: str, where: Any, empty: bool = True) -> list[str]:
    texts: list[str | None] = column.to_pylist()
    for i, text in enumerate(texts):
        if text is None or not (empty or text.strip()):
            raise DataError(f"{where(i)}: {name!r} is {'null' if text is None else 'empty'}; remove the row")
    return [text for text in texts if text is not None]
