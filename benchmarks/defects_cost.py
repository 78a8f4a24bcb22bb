"""The cost of judging: filter on Bridge-like shards with all measured criteria off, with the defaults, and with more.

    python -m benchmarks.defects_cost --folder FOLDER [--look 8] [--against CHECKOUT]

The data set (see make_shards.py) is made first if it is missing. The contenders take turns, each run in its own process
and with a new index; `--against` adds another checkout of this project with its defaults. The table shows the median
wall clock time and the least processor time, relative to `off`, of a run after the imports; and of the whole process.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import make_shards, measure, report
from oxe_curate.filter.criteria import MEASURED, PRESETS

REPOSITORY = Path(__file__).parents[1]

CHILD = """
import dataclasses, json, resource, sys, time
from oxe_curate.filter.pipeline import FilterOptions, run_filter
try:
    from oxe_curate.filter.criteria import Criteria
except ImportError:  # an older checkout
    from oxe_curate.filter.screen import Criteria
source, out, given, workers = sys.argv[1:]
given = json.loads(given)
options = FilterOptions(
    criteria=Criteria(**given["criteria"]), workers=int(workers), progress=False, frames="span", **given["options"])
def cpu():
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)
run_filter(source, out + "-first", dataclasses.replace(options, splits=("train[:8]",)))  # imports
start, before = time.perf_counter(), cpu()
done = run_filter(source, out, options)
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "cpu": cpu() - before, "seen": sum(s.seen for s in done.summaries.values())}))
"""


@dataclass(frozen=True)
class Contender:
    """One way to run filter.

    Attributes:
        checkout: of the project.
        criteria: of `Criteria`.
        options: of `FilterOptions`.
    """

    name: str
    checkout: Path = REPOSITORY
    criteria: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def command(self, source: Path, out: Path, workers: int) -> list[str]:
        """-P: the working directory must not hide the checkout."""
        given = json.dumps({"criteria": self.criteria, "options": self.options})
        python = ["env", f"PYTHONPATH={self.checkout}", sys.executable, "-P", "-c", CHILD]
        return [*python, str(source), str(out), given, str(workers)]


def contenders(against: Path | None, look: int) -> list[Contender]:
    """Without criteria that measure, with the defaults, with the strict preset, and looking at frames."""
    quiet = dict.fromkeys(MEASURED, False)
    found = [Contender("off", criteria=quiet), Contender("default"), Contender("strict", criteria=PRESETS["strict"])]
    if look:
        found.append(Contender(f"default, --look {look}", options={"look": look}))
    return ([Contender(f"default of {against.name}", against)] if against else []) + found


def measure_all(
    chosen: Sequence[Contender], source: Path, folder: Path, rounds: int, workers: int
) -> dict[str, list[measure.Measurement]]:
    """The contenders in turn; one round beforehand does not count."""
    shards = sorted(source.rglob("*.tfrecord-*"))
    runs: dict[str, list[measure.Measurement]] = {contender.name: [] for contender in chosen}
    for number in range(rounds + 1):
        for contender in chosen:
            out = folder / "cost-index"
            for old in folder.glob("cost-index*"):
                shutil.rmtree(old)
            command = contender.command(source, out, workers)
            done = measure.run(command, shards, cold=False, log=folder / "cost.log")
            if number:
                runs[contender.name].append(done)
                print(f"{contender.name:24} {done.seconds:.3f} s, {done.result['cpu']:.3f} s of processor", flush=True)
    return runs


def table(runs: dict[str, list[measure.Measurement]]) -> str:
    """One line per contender, with ratios to `off`."""
    seconds = {name: median(m.seconds for m in found) for name, found in runs.items()}
    # other work on the machine only adds to the processor time
    cpu = {name: min(m.result["cpu"] for m in found) for name, found in runs.items()}
    whole = {name: min(m.cpu for m in found) for name, found in runs.items()}
    lines = []
    for name, found in runs.items():
        memory = max(m.rss for m in found) / report.MB
        ratios = f"{seconds[name] / seconds['off']:.2f}", f"{cpu[name] / cpu['off']:.2f}"
        measured = f"{seconds[name]:.3f}", ratios[0], f"{cpu[name]:.3f}", ratios[1], f"{whole[name]:.2f}"
        lines.append([name, *measured, f"{memory:,.0f} MB"])
    header = ["filter", "s", "ratio", "processor s", "ratio", "process's processor s", "peak RSS"]
    return report.markdown(header, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for the data set and the indexes")
    parser.add_argument("--gb", type=float, default=0.8, help="size of the data set (%(default)s)")
    parser.add_argument("--image-size", type=int, default=256, help="in pixels (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--look", type=int, default=0, metavar="N", help="also look at N frames per episode")
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("--shared", type=Path, default=make_shards.shared_folder(), help="(%(default)s)")
    parser.add_argument("--out", type=Path, help="folder of the report (FOLDER)")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    base = make_shards.find_base(args.shared, args.folder / "base")
    name = f"bridge-{args.image_size}px-{args.gb:g}gb"
    source = make_shards.make_dataset(args.folder / name, base, gb=args.gb, shards=4, size=args.image_size)
    chosen = contenders(args.against, args.look)
    runs = measure_all(chosen, source, args.folder, args.rounds, args.workers)
    machine = report.machine(args.folder)
    episodes = next(iter(runs.values()))[0].result["seen"]
    facts = f"{args.gb:g} GB of {args.image_size} px, {episodes:,} episodes; medians of {args.rounds} rounds; "
    text = f"# What judging costs\n\n{facts}commit {machine['commit']}, {machine['processor']}.\n\n{table(runs)}\n"
    out = args.out or args.folder
    (out / "defects-cost.md").write_text(text)
    raw = {found: [dataclasses.asdict(m) for m in done] for found, done in runs.items()}
    (out / "defects-cost.json").write_text(json.dumps({"machine": machine, "runs": raw}, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
