"""Questions over an index of 1,000,000 episodes: lazy polars scans against loops over the files.

    python -m benchmarks.index_query FOLDER        # makes the index in FOLDER first (1 to 2 minutes, 160 MB)

Each measurement runs in its own process, the two methods take turns, and the medians of three rounds are written to
benchmarks/results/index-query.md. Files are in the page cache. Both methods must give the same answer.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure
from benchmarks.report import machine
from oxe_curate.episode import EpisodeId, Trajectory
from oxe_curate.filter import across
from oxe_curate.filter.screen import ACROSS, Criteria
from oxe_curate.filter.tasks import lost_tasks
from oxe_curate.index import duplicates, query
from oxe_curate.index.episodes import Episode
from oxe_curate.index.index_json import DatasetEntry, IndexJson, Summary
from oxe_curate.index.store import Index, IndexRow, read_index_meta, split_of, write_shard
from oxe_curate.mixture.sampling import episode_hashes
from oxe_curate.mixture.survey import sample_episodes
from oxe_curate.storage import Folder

DATASETS, EPISODES = 40, 1000
SPLITS = {"train": 22, "val": 3}
ROUNDS = 3
CRITERIA = Criteria(duplicate=True)


# ── the index ────────────────────────────────────────────────────────────────────────────────────────────


def make_index(folder: Folder) -> None:
    """Write 40 data sets of 25 files of 1,000 episodes of 2 to 4 steps; a tenth dropped, a hundredth copies."""
    names = [f"set_{number:02d}" for number in range(DATASETS)]
    shards = [(name, split, n) for name in names for split, count in SPLITS.items() for n in range(count)]
    with ProcessPoolExecutor() as pool:
        summaries = list(pool.map(_write, [folder] * len(shards), *zip(*shards, strict=True), chunksize=10))
    datasets = {}
    for name in names:
        total = Summary()
        for (dataset, _, _), summary in zip(shards, summaries, strict=True):
            if dataset == name:
                total.add(summary)
        datasets[name] = DatasetEntry(
            version="1.0.0", card="bridge_orig", recipe="openvla", verdict="pass", splits=tuple(SPLITS),
            frames="span", seconds=0.0, summary=total,
        )  # fmt: skip
    IndexJson(source="/nowhere", criteria={}, datasets=datasets).finish(folder)


def _write(folder: Folder, name: str, split: str, number: int) -> Summary:
    rng = np.random.default_rng([int(name[-2:]), len(split), number])
    texts = [f"put the {a} {b} on the {c}" for a in _COLOURS for b in _THINGS for c in _PLACES]
    rows = []
    for record in range(EPISODES):
        copied = rng.random() < 0.01
        steps = 3 if copied else int(rng.integers(2, 5))
        values = np.random.default_rng(int(rng.integers(1000))) if copied else rng
        text = texts[int(rng.integers(len(texts)))]
        dropped = rng.random() < 0.1 or text.startswith("put the old cup")
        trajectory = Trajectory(
            values.normal(size=(steps, 7)).astype(np.float32), np.arange(steps, dtype=np.int32),
            np.empty((steps, 0), np.float32), text, (text,), np.zeros(steps, np.int32),
        )  # fmt: skip
        rows.append(
            IndexRow(
                id=EpisodeId(name, "1.0.0", split, number, record),
                shard=f"{name}/1.0.0/{name}-{split}.tfrecord-{number:05d}-of-{SPLITS[split]:05d}",
                record=(record * 10_000, 9000), source_steps=steps + 1,
                reason=("failed", "no_language", "too_short")[record % 3] if dropped else None,
                trajectory=trajectory, frames={}, spans={"primary": (record * 10_000 + 100, 8000)}, control_hz=5.0,
            )
        )  # fmt: skip
    summary = Summary.count((row.num_steps, row.reason) for row in rows)
    write_shard(folder, f"{name}/1.0.0/{split}-{number:05d}-of-{SPLITS[split]:05d}.parquet", rows, summary, "")
    return summary


_COLOURS = ("red", "blue", "green", "old", "new")
_THINGS = ("cup", "pot", "spoon", "towel")
_PLACES = ("table", "stove", "shelf", "tray", "rack", "plate", "sink", "box", "cloth", "pan")


# ── the questions, by loops and by scans ─────────────────────────────────────────────────────────────────


def reasons_by_loop(index: Index) -> Any:
    """Episodes and steps by reason."""
    counts: dict[str, list[int]] = {}
    for name in index.datasets:
        for _, table in index.tables(name, ["reason", "num_steps"]):
            for reason, steps in zip(table["reason"].to_pylist(), table["num_steps"].to_pylist(), strict=True):
                count = counts.setdefault(str(reason), [0, 0])
                count[0] += 1
                count[1] += steps
    return sorted(counts.items())


def reasons_by_scan(index: Index) -> Any:
    """Episodes and steps by reason."""
    import polars as pl

    frame = query.scan_files(index.folder, [path for name in index.datasets for path in index.files(name)])
    counts = frame.group_by(pl.col("reason").fill_null("None")).agg(pl.len(), pl.col("num_steps").cast(pl.Int64).sum())
    return [(reason, [n, steps]) for reason, n, steps in query.collect(counts, index.folder).sort("reason").rows()]


def tasks_by_loop(index: Index) -> Any:
    """Tasks without a kept episode."""
    lost = {}
    for name in index.datasets:
        seen: Counter[str] = Counter()
        kept: Counter[str] = Counter()
        for _, table in index.tables(name, ["instructions", "kept"]):
            for texts, keep in zip(table["instructions"].to_pylist(), table["kept"].to_pylist(), strict=True):
                seen.update(texts)
                if keep:
                    kept.update(texts)
        lost[name] = sorted((text for text in seen if text not in kept), key=lambda text: (-seen[text], text))
    return lost


def tasks_by_scan(index: Index) -> Any:
    """Tasks without a kept episode."""
    return lost_tasks(index)


def sizes_by_loop(index: Index) -> Any:
    """Kept episodes and steps of the train split of each data set: what `mixture show --index` needs."""
    found = []
    for name in index.datasets:
        summaries = [read_index_meta(index.folder, p)["summary"] for p in index.files(name) if split_of(p) == "train"]
        found.append([sum(s["kept"] for s in summaries), sum(s["steps_kept"] for s in summaries)])
    return found


def sizes_by_scan(index: Index) -> Any:
    """Kept episodes and steps of the train split of each data set: what `mixture show --index` needs."""
    return [list(query.count_kept(index, name, ["train"])) for name in index.datasets]


def copies_by_loop(index: Index) -> Any:
    """Exact copies over all data sets, and the splits that leak: columns as Python lists, as before polars."""
    files = across._files(index.folder, dict.fromkeys(index.datasets, "1.0.0"))
    reason: list[str | None] = []
    marked: list[str | None] = []
    hashes, valid, rows = [], [], []
    for path in files:
        table = index.table(path, ["reason", "duplicate_of", "num_steps", "action_hash"])
        reason += [None if r in ACROSS else r for r in table["reason"].to_pylist()]
        marked += table["duplicate_of"].to_pylist()
        hashes.append(np.asarray(table["action_hash"].fill_null(0)))
        valid.append(np.asarray(table["action_hash"].is_valid()))
        rows.append(len(table))
    held = np.array([r is None for r in reason]) & np.concatenate(valid)
    original = duplicates.exact_copies(np.concatenate(hashes), held)
    starts = np.cumsum(rows) - rows
    names: list[str | None] = [None] * len(original)
    copies = np.flatnonzero(original >= 0)
    of_file = np.searchsorted(starts, original[copies], side="right") - 1
    paths = list(files)
    for number in np.unique(of_file).tolist():
        ids = index.table(paths[number], ["episode_id"])["episode_id"]
        for row in copies[of_file == number].tolist():
            names[row] = ids[int(original[row]) - int(starts[number])].as_py()
    for row in copies.tolist():
        reason[row] = "duplicate"
    changes = []
    for path, start, count in zip(paths, starts.tolist(), rows, strict=True):
        part = slice(start, start + count)
        if names[part] != marked[part]:
            changes.append((path, reason[part], names[part]))
    return changes


def copies_by_scan(index: Index) -> Any:
    """Exact copies over all data sets, and the splits that leak."""
    changes = across.decide(index.folder, dict.fromkeys(index.datasets, "1.0.0"), CRITERIA)
    return [(change.path, change.reason, change.duplicate_of) for change in changes]


def sample_by_loop(index: Index) -> Any:
    """256 episodes of one data set by the hashes of their ids, as `mixture propose` draws them."""
    rows: list[Any] = []
    lengths, texts = 0, Counter[str]()
    for path in index.files("set_00"):
        if split_of(path) != "train":
            continue
        table = index.table(path, ["episode_id", "kept", "num_steps", "instruction"])
        kept = np.flatnonzero(np.asarray(table["kept"]))
        table = table.take(kept)
        lengths += int(np.asarray(table["num_steps"]).sum())
        texts.update(table["instruction"].to_pylist())
        hashes = episode_hashes(None, table["episode_id"].to_pylist())
        rows = sorted([*rows, *zip(hashes, [path] * len(kept), kept.tolist(), strict=True)])[:256]
    by_file: dict[str, list[int]] = {}
    for _, path, row in sorted(rows, key=lambda item: item[1:]):
        by_file.setdefault(path, []).append(row)
    return [e.id for path, numbers in by_file.items() for e in Episode.read(index.folder, path, numbers)]


def sample_by_scan(index: Index) -> Any:
    """256 episodes of one data set by the hashes of their ids, as `mixture propose` draws them."""
    return [episode.id for episode in sample_episodes(index, "set_00", ["train"], 256)[2]]


QUESTIONS: dict[str, tuple[Callable[[Index], Any], Callable[[Index], Any]]] = {
    "episodes and steps by reason": (reasons_by_loop, reasons_by_scan),
    "tasks lost": (tasks_by_loop, tasks_by_scan),
    "kept steps of a split, per data set": (sizes_by_loop, sizes_by_scan),
    "copies and leaks": (copies_by_loop, copies_by_scan),
    "256 episodes of one data set": (sample_by_loop, sample_by_scan),
}


# ── measuring ────────────────────────────────────────────────────────────────────────────────────────────


def child(question: str, way: int, folder: str) -> None:
    """Answer one question and print the seconds and a hash of the answer."""
    index = Index.open(folder)
    if way:
        import polars  # noqa: F401 (its import counts as memory, but not as time)

    start = time.perf_counter()
    answer = QUESTIONS[question][way](index)
    seconds = time.perf_counter() - start
    digest = hashlib.sha256(json.dumps(answer).encode()).hexdigest()
    print(json.dumps({"seconds": seconds, "answer": digest}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--child", nargs=2, metavar=("QUESTION", "WAY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child[0], int(options.child[1]), str(options.folder))
        return
    if not (options.folder / "index.json").exists():
        make_index(Folder.of(options.folder))
    files = list(options.folder.rglob("*.parquet"))
    lines = []
    for question in QUESTIONS:
        rounds: list[list[measure.Measurement]] = [[], []]
        for _ in range(ROUNDS):
            for way in (0, 1):
                command = [sys.executable, "-m", "benchmarks.index_query", str(options.folder)]
                command += ["--child", question, str(way)]
                rounds[way].append(measure.run(command, files, cold=False, log=options.folder / "log.txt"))
        answers = {m.result["answer"] for way in rounds for m in way}
        assert len(answers) == 1, f"{question}: the two methods disagree"
        seconds = [statistics.median(m.seconds for m in way) for way in rounds]
        memory = [statistics.median(m.anonymous for m in way) / 1e6 for way in rounds]
        lines.append(
            f"| {question} | {seconds[0]:.2f} s | {seconds[1]:.2f} s | {seconds[0] / seconds[1]:.1f} | "
            f"{memory[0]:.0f} MB | {memory[1]:.0f} MB |"
        )
    size = sum(path.stat().st_size for path in files) / 1e6
    facts = ", ".join(f"{key} {value}" for key, value in machine(options.folder).items())
    text = "\n".join(
        [
            f"`python -m benchmarks.index_query {shlex.join(sys.argv[1:])}`",
            "",
            facts,
            "",
            f"{DATASETS * sum(SPLITS.values()) * EPISODES:,} episodes in {len(files):,} files, {size:.0f} MB. Medians "
            f"of {ROUNDS} rounds in turn, each in a new process; memory is the peak of the whole process, imports "
            "included, without pages of files.",
            "",
            "| question | loops | scans | times faster | loops, memory | scans, memory |",
            "|---|---|---|---|---|---|",
            *lines,
            "",
        ]
    )
    print(text)
    (Path(__file__).parent / "results" / "index-query.md").write_text(text)


if __name__ == "__main__":
    main()
