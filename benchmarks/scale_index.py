"""A synthetic episode index of any size, written by the product's own writer: what `filter` leaves behind.

Data sets have the names and cards of the registry, and sizes that differ as those of Open X-Embodiment do. The source
shards do not exist: only frames are read from them. Every file depends only on (data set, file), so files are made in
parallel.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from oxe_curate import registry
from oxe_curate.episode import EpisodeId, Trajectory
from oxe_curate.filter.plausible import with_findings
from oxe_curate.index.files import IndexFile, SourceShard, write_files
from oxe_curate.index.index_json import FORMAT, INDEX_JSON, DatasetEntry, IndexJson, Summary
from oxe_curate.index.store import SCHEMA, IndexFiles, describe_file, write_table
from oxe_curate.index.table import IndexRow, index_table, with_decisions
from oxe_curate.mixture.published import resolve_mixture
from oxe_curate.mixture.spec import read_mixture
from oxe_curate.storage import Folder

VERSION = "1.0.0"
FRAME_BYTES = 25_000  # a JPEG of 256 px
CRITERIA: dict[str, Any] = {}
_MADE = "made.json"
_HELD_OUT = 0.1  # share of the files that belong to the split val
_DROPPED, _COPIED, _TWO_TEXTS = 0.08, 0.01, 0.02
_REASONS = ("failed", "no_language", "not_finite", "no_third_person_camera")
_SCALE = np.array([0.01, 0.01, 0.01, 0.05, 0.05, 0.05, 1], np.float32)  # metres and radians a step
_VERBS = ("put", "move", "push", "slide", "lift", "drop", "turn", "place", "bring", "pull", "take", "stack")
_COLOURS = ("red", "blue", "green", "yellow", "white", "black", "orange", "purple", "small", "large")
_THINGS = ("cup", "pot", "spoon", "towel", "block", "bowl", "can", "knife", "sponge", "lid", "carrot", "bottle")
_PLACES = ("table", "stove", "shelf", "tray", "rack", "plate", "sink", "box", "cloth", "pan", "drawer", "counter")


@dataclass(frozen=True)
class IndexSize:
    """How much to make; the numbers of episodes and steps are approximate."""

    episodes: int = 1_000_000
    steps: int = 100_000_000
    datasets: int = 40
    files: int = 2_000


@dataclass(frozen=True)
class _File:
    """One index file to write; `located`: with the place of every frame."""

    dataset: str
    hz: float | None
    number: int
    split: str
    position: int
    count: int
    episodes: int
    mean_steps: float
    located: bool

    @property
    def path(self) -> str:
        return f"{self.dataset}/{VERSION}/{self.split}-{self.position:05d}-of-{self.count:05d}.parquet"

    @property
    def shard(self) -> str:
        end = f"{self.position:05d}-of-{self.count:05d}"
        return f"{self.dataset}/{VERSION}/{self.dataset}-{self.split}.tfrecord-{end}"


def make_index(folder: Path, size: IndexSize, soup: str = "") -> None:
    """Write an index to `folder`, unless it is there. Exits if `folder` has an index of another size or format.

    Args:
        folder: of the index.
        size: of the index.
        soup: a published mixture, whose data sets are made with every frame located; "": `size.datasets` others.
    """
    names = soup_names(soup) if soup else dataset_names(size.datasets)
    wanted = {"format": FORMAT, **asdict(replace(size, datasets=len(names))), **({"soup": soup} if soup else {})}
    note = folder / _MADE
    if note.exists() and json.loads(note.read_text()) != wanted:
        raise SystemExit(f"{folder} contains another index, {note.read_text()}; delete it or choose another folder")
    if (folder / INDEX_JSON).exists():  # written last
        return
    folder.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(wanted))
    files = _files(size, names, located=bool(soup))
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        entries = dict(pool.map(_write, [folder] * len(files), files, chunksize=4))
    datasets = {}
    for name in dict.fromkeys(file.dataset for file in files):
        total = Summary()
        for file in files:
            if file.dataset == name:
                total.add(entries[file.path].summary)
        splits = tuple(dict.fromkeys(file.split for file in files if file.dataset == name))
        datasets[name] = DatasetEntry(
            version=VERSION, card=name, recipe="openvla", verdict="pass", splits=splits,
            frames="exact" if soup else "span", seconds=0.0, summary=total,
        )  # fmt: skip
    out = Folder.of(folder)
    sha256 = write_files(out, entries)
    source = str(folder / "source")
    index = IndexJson(source=source, criteria=CRITERIA, datasets=datasets, files_sha256=sha256)
    nothing = replace(index, datasets={})
    replace(index, datasets=with_findings(IndexFiles(out, entries), {}, nothing, index)).finish(out)


def mixture_text(names: Sequence[str], over: str = "kept") -> str:
    """A mixture of data sets, with bounds over `over`."""
    rows = "".join(f"  - {{name: {name}, weight: {1 + i % 3 / 2:g}}}\n" for i, name in enumerate(names))
    return f"name: scale\nbounds: {{over: {json.dumps(over)}}}\ndatasets:\n{rows}"


def dataset_names(count: int) -> list[str]:
    """The first data sets of the registry that meet OpenVLA's criteria and have a recipe and a primary camera."""
    found = [card.name for card in _cards() if card.verdict == "pass" and "primary" in card.cameras_by_role()]
    if count > len(found):
        raise SystemExit(f"the registry has {len(found)} such data sets, {count} were asked for")
    return found[:count]


def soup_names(name: str) -> list[str]:
    """The data sets of a published mixture that meet OpenVLA's criteria and have a primary camera."""
    known = {card.name for card in _cards() if card.verdict == "pass" and "primary" in card.cameras_by_role()}
    found = [registry.load(entry.name).name for entry in read_mixture(resolve_mixture(name)).datasets]
    return [name for name in found if name in known]


def _cards() -> list[Any]:
    cards = [registry.load(name) for name in registry.names()]
    return [card for card in cards if "openvla" in card.recipes and card.control_hz]


def _files(size: IndexSize, names: Sequence[str], located: bool) -> list[_File]:
    """Sizes of data sets fall with their rank, as 1 / rank^0.7; every data set has a file of each split."""
    share = np.arange(1, len(names) + 1) ** -0.7
    counts = np.maximum(2, np.round(share / share.sum() * size.files)).astype(int)
    counts[0] = max(2, counts[0] + size.files - counts.sum())
    episodes = max(1, size.episodes // int(counts.sum()))
    found = []
    for number, (name, count) in enumerate(zip(names, counts.tolist(), strict=True)):
        held_out = max(1, round(_HELD_OUT * count))
        for split, of_split in (("train", count - held_out), ("val", held_out)):
            found += [
                _File(name, registry.load(name).control_hz, number, split, i, of_split, episodes,
                      size.steps / size.episodes, located)
                for i in range(of_split)
            ]  # fmt: skip
    return found


def _write(folder: Path, file: _File) -> tuple[str, IndexFile]:
    rng = np.random.default_rng([file.number, len(file.split), file.position])
    count = file.episodes
    steps = np.maximum(2, rng.gamma(3, file.mean_steps / 3, count)).astype(np.int64)
    copied = np.flatnonzero(rng.random(count - 1) < _COPIED) + 1  # each is a copy of the episode before it,
    copied = copied[np.diff(copied, prepend=0) > 1]  # which is not a copy itself
    steps[copied] = steps[copied - 1]
    starts = np.cumsum(steps) - steps
    action = rng.standard_normal((int(steps.sum()), 7), np.float32) * _SCALE
    action[:, 6] = action[:, 6] > 0
    for i in copied.tolist():
        action[starts[i] : starts[i] + steps[i]] = action[starts[i - 1] : starts[i - 1] + steps[i]]
    width = (7, 8, 0, 14)[file.number % 4]
    proprio = rng.standard_normal((len(action), width), np.float32)
    reasons = np.where(rng.random(count) < _DROPPED, rng.integers(0, len(_REASONS), count), -1)
    reasons[copied] = reasons[copied - 1]
    texts = _texts(file, rng)
    offset = 0
    rows, dropped = [], []
    for i, (start, length) in enumerate(zip(starts.tolist(), steps.tolist(), strict=True)):
        dropped.append(_REASONS[reasons[i]] if reasons[i] >= 0 else None)
        said = () if dropped[i] == "no_language" else texts[i]
        row = _row(file, i, offset, slice(start, start + length), action, proprio, said, dropped[i])
        rows.append(_located(row, rng) if file.located else row)
        offset += rows[-1].record[1] + 16
    table, copies = _mark_copies(with_decisions(index_table(rows), dropped), copied)
    summary = Summary.count((row.num_steps, reason) for row, reason in zip(rows, dropped, strict=True))
    summary.copies = copies
    out, identity = Folder.of(folder), f"{file.number}-{file.split}-{file.position}"
    shard = SourceShard(path=file.shard, bytes=offset, records=count, digest=identity)
    write_table(out, file.path, table, summary, identity, shard)
    return file.path, describe_file(out, file.path)


def _row(
    file: _File, record: int, offset: int, part: slice, action: NDArray[np.float32], proprio: NDArray[np.float32],
    texts: tuple[str, ...], reason: str | None,
) -> IndexRow:  # fmt: skip
    length = part.stop - part.start
    index = np.zeros(length, np.int32)
    if len(texts) > 1:
        index[length // 2 :] = 1
    trajectory = Trajectory(
        action[part], np.arange(length, dtype=np.int32), proprio[part], texts[0] if texts else "", texts, index
    )
    size = FRAME_BYTES * (length + 1)
    spans = {"primary": (offset + 1000, size), **({"wrist": (offset + 2000 + size, size)} if file.number % 2 else {})}
    return IndexRow(
        id=EpisodeId(file.dataset, VERSION, file.split, file.position, record), shard=file.shard,
        record=(offset, 3000 + size * len(spans)), record_crc=record, source_steps=length + 1,
        applies=(reason,) if reason else (), success=None, trajectory=trajectory, frames={}, spans=spans,
        control_hz=file.hz,
    )  # fmt: skip


def _located(row: IndexRow, rng: np.random.Generator) -> IndexRow:
    """The row with the place of each kept frame: frames of different sizes, as JPEGs are, that fill the span."""
    frames = {}
    for role, (start, length) in row.spans.items():
        sizes = rng.integers(FRAME_BYTES * 3 // 5, FRAME_BYTES * 7 // 5, row.source_steps)
        sizes = np.maximum((sizes * (length / sizes.sum())).astype(np.int64) - 4, 1)  # 4: a key and a length
        offsets = start + np.cumsum(sizes + 4) - sizes
        frames[role] = np.stack([offsets, sizes], axis=1)[: row.num_steps]
    return replace(row, frames=frames)


def _texts(file: _File, rng: np.random.Generator) -> list[tuple[str, ...]]:
    """The instructions of each episode: 20 to 50,000 different ones in a data set, some frequent, most rare."""
    distinct = (20, 500, 5_000, 50_000)[file.number % 4]
    chosen = (distinct * rng.random((file.episodes, 2)) ** 3).astype(int)
    two = rng.random(file.episodes) < _TWO_TEXTS
    return [
        (_sentence(a), _sentence(b)) if both and a != b else (_sentence(a),)
        for (a, b), both in zip(chosen.tolist(), two.tolist(), strict=True)
    ]


def _sentence(number: int) -> str:
    number, verb = divmod(number, len(_VERBS))
    number, colour = divmod(number, len(_COLOURS))
    number, thing = divmod(number, len(_THINGS))
    number, place = divmod(number, len(_PLACES))
    then = f", {number + 1} times" if number else ""
    return f"{_VERBS[verb]} the {_COLOURS[colour]} {_THINGS[thing]} on the {_PLACES[place]}{then}"


def _mark_copies(table: Any, copied: NDArray[np.int64]) -> tuple[Any, int]:
    """Name the original of each copy, as `filter` does; return the number of kept ones too."""
    ids, kept = table["episode_id"].to_pylist(), np.asarray(table["kept"])
    named: list[str | None] = [None] * len(ids)
    for i in copied.tolist():
        if kept[i]:
            named[i] = ids[i - 1]
    field = SCHEMA.field("duplicate_of")
    marked = table.set_column(table.schema.get_field_index(field.name), field, pa.array(named, field.type))
    return marked, sum(name is not None for name in named)


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(Path(root, name).stat().st_size for root, _, names in os.walk(folder) for name in names)
