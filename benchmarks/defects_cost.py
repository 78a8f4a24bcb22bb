"""The group judging: filter on Bridge-like shards with all measured criteria off, with the defaults, and with more.

    python -m benchmarks.defects_cost --folder FOLDER [--look 8] [--against CHECKOUT]

The second form compares with another checkout of this project, and prints a table. The contenders take turns, each run
in its own process and with a new index. Times are those of a run after the imports.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import make_shards, measure, report, scan
from benchmarks.rows import Anchor, Row, at_most, round_ratio, takes_part
from benchmarks.settings import Settings, say
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
    chosen: Sequence[Contender], source: Path, folder: Path, rounds: int, workers: int, budget: float = math.inf
) -> dict[str, list[measure.Measurement]]:
    """The contenders in turn, each for at most `budget` seconds."""
    shards = sorted(source.rglob("*.tfrecord-*"))
    runs: dict[str, list[measure.Measurement]] = {contender.name: [] for contender in chosen}
    for number in range(rounds):
        for contender in chosen:
            if not takes_part([m.process_seconds for m in runs[contender.name]], budget):
                continue
            for old in folder.glob("cost-index*"):
                shutil.rmtree(old)
            command = contender.command(source, folder / "cost-index", workers)
            done = measure.run(command, shards, cold=False, log=folder / "cost.log")
            runs[contender.name].append(done)
            say(f"round {number + 1} of {rounds}, {contender.name}: {done.seconds:.3g} s")
    return runs


def rows(settings: Settings) -> Iterator[Row]:
    """On half of the data of scan-256: what the default criteria, the strict ones, and looking at frames add."""
    whole = scan.source_of(settings, 256)
    half = scan.SHARDS // 2
    source = make_shards.link_part(whole, settings.data / f"{whole.name}-first-{half}", settings.base, half)
    work = settings.data / "work" / "judging"
    work.mkdir(parents=True, exist_ok=True)
    chosen = contenders(None, look=8)
    runs = measure_all(chosen, source, work, settings.rounds, 1, settings.budget)
    base = runs["off"]
    for name, limit in (("default", at_most(1.3)), ("strict", None), ("default, --look 8", None)):
        found = runs[name]
        seconds, cpu = ([m.seconds for m in found], [m.result["cpu"] for m in found])
        ratio = round_ratio(seconds, [m.seconds for m in base])
        cpu_ratio = round_ratio(cpu, [m.result["cpu"] for m in base])
        anchor = Anchor("filter without measured criteria", median(m.seconds for m in base), ratio, "time", cpu_ratio)
        what = f"filter, criteria: {name}; 256 px, one process"
        yield Row("quality", what, median(seconds), "s", (min(seconds), max(seconds)), anchor, limit)


def table(runs: dict[str, list[measure.Measurement]]) -> str:
    """One line per contender, with ratios to `off`."""
    base = runs["off"]
    lines = []
    for name, found in runs.items():
        seconds, cpu = [m.seconds for m in found], [m.result["cpu"] for m in found]
        ratio = round_ratio(seconds, [m.seconds for m in base])
        cpu_ratio = round_ratio(cpu, [m.result["cpu"] for m in base])
        memory = f"{max(m.rss for m in found) / report.MB:,.0f} MB"
        lines.append([name, f"{median(seconds):.3f}", f"{ratio:.2f}", f"{median(cpu):.3f}", f"{cpu_ratio:.2f}", memory])
    return report.markdown(["filter", "s", "ratio", "processor s", "ratio", "peak RSS"], lines)


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
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    base = make_shards.find_base(args.shared, args.folder / "base")
    name = f"bridge-{args.image_size}px-{args.gb:g}gb"
    source = make_shards.make_dataset(args.folder / name, base, gb=args.gb, shards=4, size=args.image_size)
    chosen = contenders(args.against, args.look)
    print(table(measure_all(chosen, source, args.folder, args.rounds, args.workers)))


if __name__ == "__main__":
    main()
