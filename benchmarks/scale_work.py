"""What scale.py measures: each function does its work once, in a process of its own, and returns its figures."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow.parquet as pq

from benchmarks import scale_index

Result = dict[str, Any]
_TEXT_BYTES = 200  # of an episode's row besides its numbers: id, shard, instruction, byte ranges


def _cpu() -> float:
    """CPU seconds of this process and the workers that it has waited for."""
    return sum(os.times()[:4])


def _read() -> int:
    """Bytes that read calls of this process, and of the workers that it has waited for, have returned."""
    counts = Path("/proc/self/io").read_text().split()
    return int(counts[counts.index("rchar:") + 1])


def timed(name: str, folder: Path) -> Result:
    """The result of a measurement, with the wall seconds and the bytes read."""
    read, start = _read(), time.perf_counter()
    result = WORK[name](folder)
    return {"read": _read() - read, "seconds": time.perf_counter() - start, **result}


def _names(folder: Path) -> list[str]:
    return list(json.loads((folder / "index" / "index.json").read_text())["datasets"])


def _mixture(folder: Path, names: Sequence[str], over: str = "kept") -> Path:
    path = folder / "mixture.yaml"
    path.write_text(scale_index.mixture_text(names, over))
    return path


def _fresh(folder: Path, name: str) -> Path:
    """An empty output folder."""
    path = folder / "out" / name
    shutil.rmtree(path, ignore_errors=True)
    path.parent.mkdir(exist_ok=True)
    return path


# ── the index ────────────────────────────────────────────────────────────────────────────────────────────


def open_index(folder: Path) -> Result:
    """Open the index and list every data set's files."""
    from oxe_curate.index.store import Index

    index = Index.open(folder / "index")
    return {"files": sum(len(index.files(name)) for name in index.datasets)}


def mixture_check(folder: Path) -> Result:
    """`mixture check --index`, with --samples."""
    from oxe_curate.index.store import Index
    from oxe_curate.mixture.check import check_file

    path = _mixture(folder, _names(folder))
    return {"findings": len(check_file(path, Index.open(folder / "index"), 1_000_000))}


def mixture_show(folder: Path) -> Result:
    """`mixture show --index`."""
    from oxe_curate.index.store import Index
    from oxe_curate.mixture.members import members
    from oxe_curate.mixture.shares import breakdown
    from oxe_curate.mixture.spec import read_mixture

    mixture = read_mixture(_mixture(folder, _names(folder)))
    found = breakdown(mixture, members(mixture, Index.open(folder / "index")), 1_000_000)
    return {"datasets": len(found.rows)}


def report(folder: Path) -> Result:
    """`report`."""
    from oxe_curate.report import write_report

    out = _fresh(folder, "report.html")
    out.unlink(missing_ok=True)
    return {"page": write_report(folder / "index", out, progress=False).stat().st_size}


def screen(folder: Path) -> Result:
    """Every criterion, for every fifth data set."""
    from oxe_curate.filter import across
    from oxe_curate.filter.criteria import read_criteria
    from oxe_curate.index.store import Index, IndexFiles

    index = Index.open(folder / "index")
    names = _names(folder)[::5]
    entries = {path: index.entry(path) for name in names for path in index.files(name)}
    before = _cpu()
    made = across.decide(IndexFiles(index.folder, entries), read_criteria(preset="strict"))
    steps = sum(index.datasets[name].summary.steps_seen for name in names)
    return {"judge_cpu": _cpu() - before, "steps": steps, "files": len(made.files)}


def _editor(folder: Path) -> Any:
    from oxe_curate.editor.catalogue import Catalogue
    from oxe_curate.editor.files import MixtureFile
    from oxe_curate.editor.server import Editor
    from oxe_curate.index.store import Index

    path = _mixture(folder, _names(folder))
    return Editor(MixtureFile(path), Catalogue(Index.open(folder / "index")))


def editor(folder: Path) -> Result:
    """What the page asks for when it opens: the file, the catalogue, the analysis and the findings."""
    made = _editor(folder)
    opened = made.opened()
    body = {"text": opened["text"], "samples": 1_000_000}
    answers = [opened, made.facts(), made.analyse(body), made.check(body)]
    return {"answers": sum(len(json.dumps(answer)) for answer in answers)}


def editor_samples(folder: Path) -> Result:
    """What the page asks for when its other views open."""
    made = _editor(folder)
    largest = max(made.catalogue.index.datasets.items(), key=lambda item: item[1].summary.seen)[0]
    samples = made.next_samples({"text": made.opened()["text"]})
    made.details({"dataset": largest})
    made.histograms({"datasets": [largest]})
    return {"samples": len(samples["samples"])}


def propose(folder: Path) -> Result:
    """The part of `mixture propose` that depends on the size of the index."""
    from oxe_curate.index.store import Index
    from oxe_curate.mixture.survey import SAMPLE, sample_episodes

    index = Index.open(folder / "index")
    return {"episodes": sum(len(sample_episodes(index, name, ("train",), SAMPLE)[2]) for name in index.datasets)}


# ── tokenize ─────────────────────────────────────────────────────────────────────────────────────────────


class _PlannedError(Exception):
    """Stops `tokenize` where it would start its tasks."""


def _plan(
    mixture: Path, folder: Path, inspect: Callable[[Sequence[Any], Any], Result] = lambda tasks, work: {}
) -> Result:
    """Run `tokenize` up to its tasks; return what `inspect(tasks, work)` returns."""
    from oxe_curate.beam import runner
    from oxe_curate.tokenize.pipeline import TokenizeOptions, run_tokenize

    found: list[Result] = []

    def stop(tasks: Sequence[Any], work: Any, **_: Any) -> None:
        found.append(inspect(tasks, work))
        raise _PlannedError

    source = folder / "source"  # of an index that was not filtered from anything
    source.mkdir(exist_ok=True)
    with mock.patch.object(runner, "run_tasks", stop):
        try:
            options = TokenizeOptions(progress=False, source=str(source))
            run_tokenize(mixture, folder / "index", _fresh(folder, "tokenized"), options)
        except _PlannedError:
            return found[0]
    raise AssertionError("tokenize had no tasks")


def _statistics(folder: Path, names: Sequence[str]) -> Path:
    """A dataset_statistics.json of any numbers."""
    from oxe_curate.actions.bounds import Bounds

    entry = Bounds.fit(np.random.default_rng(0).normal(size=(1000, 7))).to_json()
    path = folder / "dataset_statistics.json"
    path.write_text(json.dumps(dict.fromkeys(names, entry)))
    return path


def plan(folder: Path) -> Result:
    """Plan, pickle the tasks, and read what one of them needs of the index, as its worker would."""
    names = _names(folder)
    mixture = _mixture(folder, names, str(_statistics(folder, names)))
    before = _cpu()

    def inspect(tasks: Sequence[Any], work: Any) -> Result:
        spent = _cpu() - before
        pickled = len(pickle.dumps(work)) + sum(len(pickle.dumps(task)) for task in tasks)
        return {"plan_cpu": spent, "tasks": len(tasks), "pickled": pickled, **_draw(work.args[0], tasks[0])}

    return _plan(mixture, folder, inspect)


def _draw(job: Any, task: Any) -> Result:
    from oxe_curate.tokenize.build import draw_episodes
    from oxe_curate.tokenize.planned import read_part

    before, read = _cpu(), _read()
    episodes = [drawn.episode for drawn in draw_episodes(job, read_part(job, task), task.validation)]
    needs = sum(
        e.action.nbytes + e.proprio.nbytes + e.frame_index.nbytes + sum(f.nbytes for f in e.frames.values())
        for e in episodes
    )
    return {
        "shard_read": _read() - read, "shard_cpu": _cpu() - before, "shard_episodes": len(episodes),
        "shard_needs": needs + _TEXT_BYTES * len(episodes),
    }  # fmt: skip


def bounds(folder: Path) -> Result:
    """Plan for every fifth data set with given bounds, then with bounds from the index."""
    from oxe_curate.index.store import Index

    names = _names(folder)[::5]
    datasets = Index.open(folder / "index").datasets
    spent = []
    for over in (str(_statistics(folder, names)), "kept"):
        before = _cpu()
        _plan(_mixture(folder, names, over), folder)
        spent.append(_cpu() - before)
    return {"bounds_cpu": spent[1] - spent[0], "steps": sum(datasets[name].summary.steps_kept for name in names)}


def reference(folder: Path) -> Result:
    """The whole of `tokenize` by reference, of a published mixture with another weight; the source is not there."""
    from oxe_curate.tokenize.pipeline import TokenizeOptions, run_tokenize

    mixture, out = folder / "reference.yaml", _fresh(folder, "reference")
    mixture.write_text(scale_index.soup_text("bridge_orig", 2.0))
    made = run_tokenize(mixture, folder / "soup", out, TokenizeOptions(progress=False)).manifest
    rows = sum(count for split in made["rows"].values() for count in split.values())
    places = sum(_place_bytes(path) for path in out.glob("*-of-*.parquet"))
    written = scale_index.folder_bytes(out)
    shutil.rmtree(out)
    return {"rows": rows, "places": places, "written": written}


def _place_bytes(shard: Path) -> int:
    """Bytes of the columns of a shard that say where the frames are."""
    footer = pq.read_metadata(shard)
    chunks = [footer.row_group(g).column(c) for g in range(footer.num_row_groups) for c in range(footer.num_columns)]
    named = [chunk for chunk in chunks if chunk.path_in_schema.startswith(("source", "image_"))]
    return sum(chunk.total_compressed_size for chunk in named)


# ── filter, and data at the limits ───────────────────────────────────────────────────────────────────────


def _filter(source: Path, out: Path) -> Any:
    from oxe_curate.filter.pipeline import FilterOptions, run_filter

    return run_filter(source, out, FilterOptions(progress=False))


def plain_scan(folder: Path) -> Result:
    """`filter`'s work on each shard, in a loop."""
    from oxe_curate.filter.plan import FilterOptions, plan_tasks
    from oxe_curate.filter.scan import write_scanned_shard
    from oxe_curate.rlds.dataset import find
    from oxe_curate.storage import Folder

    out = Folder.of(_fresh(folder, "scanned"))
    tasks = plan_tasks(find(Folder.of(folder / "small")), out, FilterOptions())
    episodes = sum(write_scanned_shard(task).seen for task in tasks)
    shutil.rmtree(out.path())
    return {"shards": len(tasks), "episodes": episodes}


def filter_(folder: Path) -> Result:
    """`filter`."""
    return {"shards": _filter(folder / "small", _fresh(folder, "filtered")).shards_done}


def filter_again(folder: Path) -> Result:
    """`filter`, after it has run."""
    done = _filter(folder / "small", folder / "out" / "filtered")
    if done.shards_done:
        raise RuntimeError(f"{done.shards_done} shards were not done before")
    return {"shards": done.shards_kept}


def _tokenize(folder: Path, name: str, size: int | None) -> tuple[Path, int]:
    """Filter and tokenize a small data set; return the mixture's folder and its training rows."""
    from oxe_curate.tokenize.pipeline import TokenizeOptions, run_tokenize

    index, out = _fresh(folder, f"{name}-index"), _fresh(folder, f"{name}-mixture")
    _filter(folder / name, index)
    mixture = folder / f"{name}.yaml"
    image = f"image: {{size: {size}}}\n" if size else ""
    mixture.write_text(f"name: {name}\nvalidation: 0\n{image}datasets: [{{name: bridge_dataset, weight: 1}}]\n")
    made = run_tokenize(mixture, index, out, TokenizeOptions(progress=False))
    return out, sum(made.manifest["rows"]["train"].values())


def long_episode(folder: Path) -> Result:
    """Filter and tokenize one long episode, resized."""
    out, rows = _tokenize(folder, "long", 224)
    written = scale_index.folder_bytes(out)
    shutil.rmtree(out)
    return {"steps": rows, "written": written}


def large_frames(folder: Path) -> Result:
    """Filter, tokenize and read back large frames."""
    from oxe_curate.tokenize.folder import MixtureFolder
    from oxe_curate.train.data.loader import Loader

    out, rows = _tokenize(folder, "large", None)
    loader = Loader(
        MixtureFolder.open(str(out)), lambda batch: batch, image_size=224, batch_size=4, steps=-(-rows // 4), workers=1
    )
    batches = sum(1 for _ in loader)
    frame = max(path.stat().st_size for path in out.glob("train-*")) // rows
    shutil.rmtree(out)
    return {"rows": rows, "batches": batches, "frame": frame}


WORK: dict[str, Callable[[Path], Result]] = {
    "open_index": open_index, "mixture_check": mixture_check, "mixture_show": mixture_show, "report": report,
    "screen": screen, "reference": reference,
    "editor": editor, "editor_samples": editor_samples, "propose": propose, "plan": plan, "bounds": bounds,
    "plain_scan": plain_scan, "filter": filter_, "filter_again": filter_again, "long_episode": long_episode,
    "large_frames": large_frames,
}  # fmt: skip
