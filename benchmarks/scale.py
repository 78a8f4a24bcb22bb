"""Every command at the size of Open X-Embodiment: a million episodes, 100 million steps, thousands of shards.

    python -m benchmarks.scale --folder FOLDER        # needs 12 GB in FOLDER, 4 GB of memory and 15 minutes

Makes what is missing in FOLDER: a synthetic index (see scale_index.py) and synthetic source data (scale_source.py).
Each measurement runs in its own process. The table in benchmarks/results/scale.{md,json} is written again after each,
so that an interrupted run keeps its results; `--only REGEX` measures some and keeps the other rows.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import measure, scale_index, scale_source
from benchmarks.report import Aim, machine, markdown
from benchmarks.scale_index import IndexSize
from benchmarks.scale_work import WORK, timed

RESULTS = Path(__file__).parent / "results"
MB = 1e6
_LIMIT = 300  # seconds for one measurement


@dataclass(frozen=True)
class Scale:
    """Sizes of everything that is measured.

    Attributes:
        shards: source shards to filter.
        long_steps: steps of the long episode.
        side: of the large frames, in pixels; a frame has 3 * side^2 bytes.
    """

    index: IndexSize = field(default_factory=IndexSize)
    shards: int = 10_000
    long_steps: int = 20_000
    side: int = 1_640

    def part(self, factor: float) -> Scale:
        """Everything smaller by a factor, but the number of data sets, the number of files and the frames."""
        index = IndexSize(int(self.index.episodes * factor), int(self.index.steps * factor))
        return Scale(index, max(1, int(self.shards * factor)), max(100, int(self.long_steps * factor)), self.side)


Figures = Mapping[str, Any]
"""Of one measurement: cpu [s], seconds (wall), anonymous, rss and read [bytes], and what its function returned."""
Rows = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Measure:
    """A measurement, and what it must reach.

    Attributes:
        name: of the function in scale_work.py.
        text: what is done, for the table.
        aims: of its figures, given those of all measurements so far.
        more: what else the table says about it.
        data: what it reads, a key of `_makers`.
    """

    name: str
    text: str
    aims: Callable[[Figures, Rows], list[Aim]]
    more: Callable[[Figures], str] = lambda figures: ""
    data: str = "index"


def _cpu(bound: float) -> Callable[[Figures, Rows], list[Aim]]:
    return lambda figures, rows: [Aim("CPU seconds", figures["cpu"], bound, False, " s")]


def _memory(bound: float) -> Callable[[Figures, Rows], list[Aim]]:
    return lambda figures, rows: [Aim("memory", figures["anonymous"] / MB, bound, False, " MB")]


def _plan_aims(figures: Figures, rows: Rows) -> list[Aim]:
    read = figures["shard_read"] / figures["shard_needs"]
    return [
        Aim("planning, CPU seconds", figures["plan_cpu"], 10, False, " s"),
        Aim("planning, memory", figures["anonymous"] / MB, 1000, False, " MB"),
        Aim("all tasks, pickled", figures["pickled"] / MB, 20, False, " MB"),
        Aim("index bytes read for a shard, of those it needs", read, 2, False, " times"),
    ]


def _plan_more(figures: Figures) -> str:
    return (
        f"{figures['tasks']:,} output shards; reading the index for one: {figures['shard_read'] / MB:.3g} MB for "
        f"{figures['shard_episodes']} episodes, {figures['shard_cpu']:.2g} CPU s"
    )


def _reference_aims(figures: Figures, rows: Rows) -> list[Aim]:
    return [
        Aim("wall seconds", figures["seconds"], 120, False, " s"),
        Aim("CPU seconds", figures["cpu"], 240, False, " s"),
        Aim("places of the frames, bytes per frame", figures["places"] / figures["rows"], 40, False, " B"),
    ]


def _filter_aims(figures: Figures, rows: Rows) -> list[Aim]:
    if "cpu" not in rows.get("plain_scan", {}):
        return []
    return [Aim("CPU of the plain scan", figures["cpu"] / rows["plain_scan"]["cpu"], 2, False, " times")]


def _bounds_aims(figures: Figures, rows: Rows) -> list[Aim]:
    return [
        Aim("bounds, CPU seconds per million steps", figures["bounds_cpu"] / figures["steps"] * 1e6, 1, False, " s")
    ]


def _screen_aims(figures: Figures, rows: Rows) -> list[Aim]:
    per_step = figures["judge_cpu"] / figures["steps"] * 1e6
    return [
        Aim("all criteria, CPU seconds per million steps", per_step, 5, False, " s"),
        Aim("all criteria, memory", figures["anonymous"] / MB, 2000, False, " MB"),
    ]


MEASURES = (
    Measure("open_index", "open the index", _cpu(2)),
    Measure("mixture_check", "`mixture check` of all data sets", _cpu(10)),
    Measure("mixture_show", "`mixture show` of all data sets", _cpu(10)),
    Measure("report", "`report`", _cpu(20), lambda f: f"page of {f['page'] / MB:.2g} MB"),
    Measure("screen", "`screen --preset strict` of a part of the data sets", _screen_aims,
            lambda f: f"{f['steps'] / 1e6:.3g} million steps, {f['judge_cpu']:.3g} CPU s"),
    Measure("editor", "`edit`: the first page of a mixture of all data sets", _cpu(20),
            lambda f: f"answers of {f['answers'] / MB:.2g} MB"),
    Measure("editor_samples", "`edit`: 64 samples; examples and histograms of the largest data set", _cpu(20)),
    Measure("propose", "`mixture propose`: the sample of every data set, without frames", _cpu(60)),
    Measure("plan", "`tokenize` up to its tasks, with given bounds", _plan_aims, _plan_more),
    Measure("bounds", "`tokenize` up to its tasks, for a part of the data sets, with bounds computed", _bounds_aims,
            lambda f: f"{f['steps'] / 1e6:.3g} million steps, {f['bounds_cpu']:.3g} CPU s"),
    Measure("reference", "`tokenize` of a mixture by reference, 25 million steps", _reference_aims,
            lambda f: f"{f['rows']:,} rows, {f['written'] / f['rows']:.3g} B each, files and all", data="soup"),
    Measure("plain_scan", "scan the tiny shards in a loop", lambda figures, rows: [],
            lambda f: f"{f['shards']:,} shards", data="small"),
    Measure("filter", "`filter` of the tiny shards", _filter_aims, data="small"),
    Measure("filter_again", "`filter` again, all done", _cpu(10), data="small"),
    Measure("long_episode", "`filter` and `tokenize` of one long episode, resized to 224 px", _memory(1000),
            lambda f: f"{f['steps']:,} steps, {f['written'] / MB:,.0f} MB written", data="long"),
    Measure("large_frames", "`filter`, `tokenize` and the training reader with large frames", _memory(2000),
            lambda f: f"{f['frame'] / MB:.3g} MB a frame, {f['rows']} rows", data="large"),
)  # fmt: skip


# ── one measurement ──────────────────────────────────────────────────────────────────────────────────────


def child(name: str, folder: Path) -> None:
    """Do the work in this process and print its figures."""
    signal.alarm(_LIMIT)
    print(json.dumps(timed(name, folder)))


def measured(name: str, folder: Path) -> dict[str, Any]:
    """Run one measurement in a process of its own; {"failed": reason} if it fails or takes too long."""
    command = [sys.executable, "-m", "benchmarks.scale", "--folder", str(folder), "--child", name]
    try:
        done = measure.run(command, [], cold=False, log=folder / "log.txt")
    except RuntimeError as error:
        if f"exit code -{int(signal.SIGALRM)}\n" in str(error):
            return {"failed": f"not done after {_LIMIT} s"}
        return {"failed": str(error).strip().splitlines()[-1][:200]}
    numbers = {"seconds": done.process_seconds, "cpu": done.cpu, "rss": done.rss, "anonymous": done.anonymous}
    return {**done.result, **numbers}


# ── the table ────────────────────────────────────────────────────────────────────────────────────────────


def table(rows: Rows, facts: Mapping[str, str]) -> str:
    """The measurements, and their aims, in Markdown."""
    lines, aims = [], []
    for what in MEASURES:
        if what.name not in rows:
            continue
        figures = rows[what.name]
        if "failed" in figures:
            lines.append([what.text, "", "", "", "", "", figures["failed"]])
            aims.append([what.text, "", "", figures["failed"], "no"])
            continue
        memory = [f"{figures[key] / MB:,.0f} MB" for key in ("anonymous", "rss")]
        read = f"{figures['read'] / MB:,.0f} MB"
        times = [f"{figures[key]:.3g} s" for key in ("cpu", "seconds")]
        lines.append([what.text, *times, *memory, read, what.more(figures)])
        aims += [[what.text, *aim.cells()] for aim in what.aims(figures, rows)]
    heading = ["", "CPU", "wall", "memory", "with files", "read", ""]
    return "\n\n".join(
        [
            f"`python -m benchmarks.scale {shlex.join(sys.argv[1:])}`",
            ", ".join(f"{key} {value}" for key, value in facts.items()),
            _LEGEND,
            markdown(heading, lines),
            markdown(["", "aim", "bound", "measured", "met"], aims) + "\n",
        ]
    )


_LEGEND = """\
Each line is one process with its workers, imports included: CPU is user and system time, memory the largest sum of
anonymous memory, and "with files" of resident memory, which counts pages of mapped files. "read" counts the bytes that
the processes' read calls returned, without the interpreter's own files; pages of mapped files are not among them."""


def run(folder: Path, scale: Scale, only: str, out: Path | None) -> Rows:
    """Make what is missing in `folder`, measure, and write the table to `out` after each measurement."""
    if not (folder / "made.json").exists() and folder.exists() and any(folder.iterdir()):
        raise SystemExit(f"{folder}: is not empty and was not made by this benchmark; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    _same_scale(folder / "made.json", scale)
    chosen = [what for what in MEASURES if re.search(only, what.name)]
    for data in dict.fromkeys(what.data for what in chosen):
        _makers(scale)[data](folder / data)
    size = {"episodes": f"{scale.index.episodes:,}", "steps": f"{scale.index.steps:,}"}
    facts = size | {"index": f"{scale_index.folder_bytes(folder / 'index') / MB:,.0f} MB"} | machine(folder)
    note = out / "scale.json" if out else None
    rows: Rows = json.loads(note.read_text())["rows"] if note and note.exists() and only else {}
    for what in chosen:
        rows[what.name] = measured(what.name, folder)
        print(f"{what.name}: {rows[what.name]}", flush=True)
        if out and note:
            out.mkdir(parents=True, exist_ok=True)
            note.write_text(json.dumps({"environment": facts, "rows": rows}, indent=1) + "\n")
            (out / "scale.md").write_text(table(rows, facts))
    print(table(rows, facts))
    return rows


def _makers(scale: Scale) -> dict[str, Callable[[Path], object]]:
    """What makes each kind of data in a folder, unless it is there."""
    return {
        "index": lambda folder: scale_index.make_index(folder, scale.index),
        "soup": lambda folder: scale_index.make_index(folder, _quarter(scale.index), soup=True),
        "small": lambda folder: scale_source.small_shards(folder, scale.shards),
        "long": lambda folder: scale_source.long_episode(folder, scale.long_steps),
        "large": lambda folder: scale_source.large_frames(folder, scale.side),
    }


def _quarter(size: IndexSize) -> IndexSize:
    return IndexSize(size.episodes // 4, size.steps // 4, files=size.files // 4)


def _same_scale(note: Path, scale: Scale) -> None:
    wanted = json.loads(json.dumps(asdict(scale)))
    if note.exists() and json.loads(note.read_text()) != wanted:
        raise SystemExit(f"{note.parent} contains data of another size; delete it or choose another folder")
    note.write_text(json.dumps(wanted))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="folder for the data, which is kept")
    parser.add_argument("--scale", type=float, default=1, help="a factor for the sizes (%(default)s)")
    parser.add_argument("--only", default="", metavar="REGEX", help="measurements to run, by name")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the table (%(default)s)")
    parser.add_argument("--child", choices=list(WORK), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        child(options.child, options.folder)
    else:
        scale = Scale() if options.scale == 1 else Scale().part(options.scale)
        run(options.folder, scale, options.only, options.out)


if __name__ == "__main__":
    main()
